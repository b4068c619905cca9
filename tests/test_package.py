import ast
import subprocess
import sys
from pathlib import Path

import pytest

import sae_posttrain

PACKAGE = Path(sae_posttrain.__file__).parent

MAY_IMPORT = {
    "saes": set(),
    "hooks": set(),
    "measure": set(),
    "features": {"saes", "hooks", "measure"},
    "sae_training": {"saes", "hooks", "features", "measure", "model_source"},
    "penalty": {
        "hooks",
        "features.feature_set",
        "features.causal",
        "features.texts",
        "measure.generate",
        "measure.script_tokens",
        "measure.scripts",
        "rewritten",
    },
    "training": {"measure", "model_source"},
    "sft": {
        "penalty",
        "training",
        "features.feature_set",
        "measure.end_of_turn",
        "checkpoints",
        "model_card",
        "model_source",
    },
    "rl": {
        "hooks",
        "features.feature_set",
        "measure",
        "training",
        "checkpoints",
        "model_card",
        "model_source",
        "rewritten",
    },
    "baselines": {"hooks", "features.feature_set", "measure"},
    "estimate": {"hooks", "features.feature_set", "sft", "rl"},
    "integrations": {"penalty", "features.feature_set", "checkpoints", "rl.config", "rl.trainer"},
    "lab": {"saes", "hooks", "measure", "features", "sft", "rl"},
}
"""For each room, the rooms (or single files of rooms) it may import."""

OF_ALL_ROOMS = {"sites", "languages", "precision", "conversations", "row_checks", "renamed_settings"}
"""Files that every room may import: sites, languages, widths of numbers, what rows look like, names of settings."""


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


def files_of(room: str) -> list[Path]:
    return sorted((PACKAGE / room).rglob("*.py"))


@pytest.mark.parametrize("room", sorted(MAY_IMPORT))
def test_rooms_import_only_what_lies_before_them(room):
    for file in files_of(room):
        for name in imports(file):
            if not name.startswith("sae_posttrain."):
                continue
            other = name.removeprefix("sae_posttrain.")
            allowed = {room, *OF_ALL_ROOMS, *MAY_IMPORT[room]}
            assert other.split(".")[0] in allowed or other in allowed, f"{file.name} imports {other}"


def test_every_room_is_in_the_table():
    rooms = {folder.name for folder in PACKAGE.iterdir() if folder.is_dir() and (folder / "__init__.py").exists()}
    assert rooms == set(MAY_IMPORT)


def test_only_trainers_configs_and_scripts_import_trl():
    # The lab uses the trainers as its users do; an estimate takes a trainer's step.
    for file in set(PACKAGE.rglob("*.py")) - set(files_of("lab")) - set(files_of("estimate")):
        if any(name == "trl" or name.startswith("trl.") for name in imports(file)):
            assert file.name in ("trainer.py", "config.py", "script.py"), file


def test_public_names_are_those_of_the_type_checker_and_load():
    assert sorted(sae_posttrain.__all__) == sae_posttrain.__all__
    assert set(sae_posttrain._MODULES) == set(sae_posttrain.__all__)
    for name in sae_posttrain.__all__:
        assert getattr(sae_posttrain, name).__name__ == name
    assert set(sae_posttrain.__all__) <= set(dir(sae_posttrain))
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = sae_posttrain.nothing


@pytest.mark.parametrize(
    "statement", ["import sae_posttrain", "from sae_posttrain.cli import make_parser; make_parser()"]
)
def test_importing_the_package_loads_neither_torch_nor_trl(statement):
    code = f"{statement}; import sys; print(sorted({{'torch', 'trl', 'transformers', 'numpy'}} & set(sys.modules)))"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "[]"
