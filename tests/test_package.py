import ast
import re
import subprocess
import sys
from graphlib import TopologicalSorter
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import pytest

import sae_posttrain

PACKAGE = Path(sae_posttrain.__file__).parent

MAY_IMPORT = {
    "saes.remote": set(),
    "saes.stored": {"saes.remote"},
    "saes.formats": {"saes.frozen", "saes.stored"},
    "saes": set(),
    "hooks": set(),
    "measure.statistics": set(),
    "measure.faults": set(),
    "measure.answers": {"measure.faults", "measure.statistics"},
    "measure.capability": {"measure.answers", "measure.statistics"},
    "measure.report": {"measure.answers", "measure.faults", "measure.statistics"},
    "features.set": {"hooks", "measure.answers", "saes.stored"},
    "features.read": {"features.set", "hooks", "measure.answers", "saes"},
    "features.controls": {"features.read", "features.set", "hooks", "measure.answers", "saes"},
    "features.find": {
        "features.controls",
        "features.read",
        "features.set",
        "hooks",
        "measure.answers",
        "measure.faults",
        "saes",
        "serving",
    },
    "features.calibrate": {"features.find", "features.read", "features.set", "measure"},
    "steering.export": {"features.set", "hooks"},
    "steering": {"features.find.answers", "features.read", "features.set", "hooks", "measure"},
    "features.fit": {"features.read", "features.set", "hooks", "measure.answers", "saes"},
    "analysis.browse": {"analysis", "features", "hooks", "measure.report", "saes"},
    "analysis": {"features", "hooks", "measure", "saes"},
    "analysis.synthesis": {"analysis", "features", "hooks", "measure", "saes"},
    "sae_training": {
        "saes",
        "hooks",
        "features.read",
        "features.set",
        "features.fit",
        "measure.answers",
        "model_source",
    },
    "penalty": {
        "hooks",
        "features.set",
        "features.find.causal",
        "features.read",
        "measure.answers",
        "measure.faults.script_tokens",
        "measure.faults.scripts",
        "unsloth",
    },
    "training": {"hooks.sharded", "measure", "model_source"},
    "sft": {
        "penalty",
        "training",
        "features.set",
        "measure.answers.end_of_turn",
        "checkpoints",
        "model_card",
        "model_source",
    },
    "rl": {
        "hooks",
        "features.set",
        "measure",
        "training",
        "checkpoints",
        "model_card",
        "model_source",
        "serving",
        "unsloth",
    },
    "serving": {"features.set", "hooks.strength"},
    "baselines": {"hooks", "features.set", "measure"},
    "estimate": {"hooks", "features.set", "sft", "rl"},
    "integrations": {"penalty", "features.set", "checkpoints", "rl.config", "rl.trainer"},
    "lab": {"saes", "hooks", "measure", "features", "sft", "rl"},
    "cli": {
        "saes",
        "hooks",
        "measure",
        "features",
        "training",
        "sft",
        "rl",
        "sae_training",
        "estimate",
        "lab",
        "serving",
        "analysis",
        "steering",
        "model_source",
        "__version__",
    },
}
"""For each room, or part of one, the rooms (or single files of rooms) it may import."""

OF_ALL_ROOMS = {
    "gguf_files",
    "gguf_models",
    "eval_mode",
    "cpu_logits",
    "model_records",
    "model_loading",
    "sites",
    "languages",
    "lazy",
    "precision",
    "conversations",
    "row_checks",
    "shown",
    "renamed_settings",
    "tables",
}
"""Files that every room may import, each one idea: names of sites, widths of numbers, what records say of a model."""


def imports(file: Path) -> set[str]:
    """Modules of ours that a file imports when it runs, as `room.file`; imports for the type checker do not count."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            node.body = []
    here = file.relative_to(PACKAGE.parent).with_suffix("").parts
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            base = here[: -node.level] if node.level else ()
            name = ".".join([*base, *(node.module or "").split(".")]).rstrip(".")
            found |= {name} if node.module else {f"{name}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return found


def folder_of(room: str) -> Path:
    return PACKAGE.joinpath(*room.split("."))


def files_of(room: str) -> list[Path]:
    return sorted((folder_of(room) if room != "." else PACKAGE).rglob("*.py"))


@pytest.mark.parametrize("room", sorted(MAY_IMPORT))
def test_rooms_import_only_what_lies_before_them(room):
    parts = [part for part in MAY_IMPORT if part.startswith(f"{room}.")]
    allowed = {room, *OF_ALL_ROOMS, *MAY_IMPORT[room]}
    for file in files_of(room):
        if any(file.is_relative_to(folder_of(part)) for part in parts):
            continue  # it has a row of its own
        for name in imports(file):
            if name.startswith("sae_posttrain."):
                other = name.removeprefix("sae_posttrain.")
                assert any(other == each or other.startswith(f"{each}.") for each in allowed), (
                    f"{file} imports {other}"
                )


def test_nothing_imports_the_command_line():
    for file in set(files_of(".")) - set(files_of("cli")) - {PACKAGE / "__main__.py"}:
        assert not any(f"{name}.".startswith("sae_posttrain.cli.") for name in imports(file)), file


def test_every_room_is_in_the_table():
    folders = [file.parent for file in PACKAGE.rglob("__init__.py") if file.parent != PACKAGE]
    rooms = {".".join(folder.relative_to(PACKAGE).parts) for folder in folders}
    alone = {room for room in rooms if not any(room.startswith(f"{other}.") for other in MAY_IMPORT)}
    only_parts = {room.partition(".")[0] for room in MAY_IMPORT if "." in room} - set(MAY_IMPORT)
    assert alone - only_parts <= set(MAY_IMPORT) <= rooms
    for room in only_parts:
        assert {file.parent.name for file in files_of(room)} <= {
            room,
            *(part.rpartition(".")[2] for part in MAY_IMPORT),
        }


def test_no_file_imports_itself_by_way_of_others():
    modules = {
        ".".join(("sae_posttrain", *file.relative_to(PACKAGE).with_suffix("").parts)): file for file in files_of(".")
    }
    before = {name: imports(file) & set(modules) for name, file in modules.items()}
    list(TopologicalSorter(before).static_order())  # a circle is an error that names it


def test_only_trainers_configs_and_scripts_import_trl():
    # The lab uses the trainers as its users do; an estimate takes a trainer's step.
    for file in set(PACKAGE.rglob("*.py")) - set(files_of("lab")) - set(files_of("estimate")):
        if any(name == "trl" or name.startswith("trl.") for name in imports(file)):
            assert file.name in ("trainer.py", "config.py", "script.py", "vllm_rollouts.py"), file


def typed_names(module) -> dict[str, str]:
    """The names that a type checker sees, and where it finds them."""
    tree = ast.parse(Path(module.__file__).read_text(encoding="utf-8"))
    imports = [node for block in tree.body if isinstance(block, ast.If) for node in block.body]
    return {alias.asname: node.module for node in imports for alias in node.names}


def test_public_names_are_those_of_the_type_checker_and_load():
    assert typed_names(sae_posttrain) == sae_posttrain._MODULES
    for name in sae_posttrain.__all__:
        assert getattr(sae_posttrain, name).__name__ == name
    assert set(sae_posttrain.__all__) <= set(dir(sae_posttrain))
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = sae_posttrain.nothing


@pytest.mark.parametrize("room", ["analysis", "baselines", "measure.statistics", "serving"])
def test_names_of_rooms_with_a_door_of_their_own_load(room):
    module = import_module(f"sae_posttrain.{room}")
    assert typed_names(module) == module._MODULES
    for name in module.__all__:
        assert getattr(module, name).__name__ == name
        assert find_spec(f"{module.__name__}.{name}") is None  # once imported, a file would stand before the name
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = module.nothing


def test_old_names_still_load_and_say_where_they_are_now():
    changelog = (PACKAGE.parent / "CHANGELOG.md").read_text(encoding="utf-8")
    assert not set(sae_posttrain._MOVED) & set(sae_posttrain.__all__)
    for name, place in sae_posttrain._MOVED.items():
        new = f"from sae_posttrain.{place} import {name}"
        with pytest.warns(DeprecationWarning, match=f"`{name}` moved: `{re.escape(new)}`"):
            assert getattr(sae_posttrain, name) is getattr(import_module(f"sae_posttrain.{place}"), name)
        assert f"`{name}`" in changelog


@pytest.mark.parametrize(
    "statement",
    [
        "import sae_posttrain",
        "import sae_posttrain.analysis",
        "from sae_posttrain.cli import make_parser; make_parser()",
    ],
)
def test_importing_the_package_loads_neither_torch_nor_trl(statement):
    code = f"{statement}; import sys; print(sorted({{'torch', 'trl', 'transformers', 'numpy'}} & set(sys.modules)))"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "[]"
