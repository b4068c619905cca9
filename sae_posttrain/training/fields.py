"""
The fields of the settings of `sft` and `grpo`, read from the source of their dataclasses.

Importing the dataclasses takes torch, transformers and TRL, which is seconds of work. A help text or a mistyped name
should not wait for that. A test compares the fields read here with the dataclasses.
"""

import ast
from collections.abc import Iterator
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

_OURS = Path(__file__).parent.parent

_FILES = {
    "FeaturePenaltyArguments": (None, "penalty/arguments.py"),
    "SASFTConfig": (None, "sft/config.py"),
    "SteeredGRPOConfig": (None, "rl/config.py"),
    "SASFTScriptArguments": (None, "sft/script.py"),
    "SteeredGRPOScriptArguments": (None, "rl/script.py"),
    "WatchArguments": (None, "training/watch/arguments.py"),
    "SFTConfig": ("trl", "trainer/sft_config.py"),
    "GRPOConfig": ("trl", "trainer/grpo_config.py"),
    "_BaseConfig": ("trl", "trainer/base_config.py"),
    "ModelConfig": ("trl", "trainer/model_config.py"),
    "ScriptArguments": ("trl", "scripts/utils.py"),
    "DatasetMixtureConfig": ("trl", "scripts/utils.py"),
    "TrainingArguments": ("transformers", "training_args.py"),
}
"""Where each dataclass is defined: its package (`None` for this one) and the file in it."""

SETTINGS = {
    "sft": ("SASFTScriptArguments", "SASFTConfig", "ModelConfig", "DatasetMixtureConfig"),
    "grpo": ("SteeredGRPOScriptArguments", "SteeredGRPOConfig", "ModelConfig", "DatasetMixtureConfig"),
}
"""For each command, the dataclasses whose fields its YAML file may hold."""


class Field(NamedTuple):
    """
    A field of a dataclass as written in the source; the default is a value, or the source of one that is computed.
    """

    name: str
    type: str
    default: Any
    help: str
    owner: str

    @property
    def is_ours(self) -> bool:
        """Whether a dataclass of this package declares it."""
        return _FILES[self.owner][0] is None


def fields_of(command: str) -> dict[str, Field] | None:
    """
    Fields that a YAML file of `sft` or `grpo` may hold, by name; `None` if the installed libraries keep their settings
    in other files than those known here.
    """
    try:
        return {field.name: field for kind in SETTINGS[command] for field in _fields_of_class(kind)}
    except (OSError, KeyError, SyntaxError):
        return None


@cache
def _fields_of_class(kind: str) -> tuple[Field, ...]:
    package, file = _FILES[kind]
    node = next(
        each for each in ast.walk(_tree(package, file)) if isinstance(each, ast.ClassDef) and each.name == kind
    )
    fields: dict[str, Field] = {}
    for base in reversed(node.bases):
        fields |= {field.name: field for field in _fields_of_class(ast.unparse(base))}
    fields |= {field.name: field for field in _declared(node)}
    return tuple(fields.values())


@cache
def _tree(package: str | None, file: str) -> ast.Module:
    if package is None:
        folder = _OURS
    else:
        spec = find_spec(package)
        if spec is None or spec.origin is None:
            raise OSError(f"{package} is not installed")
        folder = Path(spec.origin).parent
    return ast.parse((folder / file).read_text(encoding="utf-8"))


def _declared(node: ast.ClassDef) -> Iterator[Field]:
    for each in node.body:
        if not isinstance(each, ast.AnnAssign) or not isinstance(each.target, ast.Name):
            continue
        if "ClassVar" in ast.unparse(each.annotation):
            continue
        default, help_text = None, ""
        if isinstance(each.value, ast.Call):
            given = {keyword.arg: keyword.value for keyword in each.value.keywords if keyword.arg}
            if _is_false(given.get("init")):
                continue
            default = _value(given.get("default", given.get("default_factory")))
            metadata = given.get("metadata")
            if isinstance(metadata, ast.Dict):
                texts = {_value(key): value for key, value in zip(metadata.keys, metadata.values)}
                help_text = str(_value(texts.get("help")) or "")
        elif each.value is not None:
            default = _value(each.value)
        yield Field(each.target.id, ast.unparse(each.annotation), default, help_text.replace("%%", "%"), node.name)


def _is_false(node: ast.expr | None) -> bool:
    return isinstance(node, ast.Constant) and node.value is False


def _value(node: ast.expr | None) -> Any:
    """The constant in a node or returned by a lambda; the source of anything else."""
    if node is None:
        return None
    if isinstance(node, ast.Lambda):
        node = node.body
    try:
        return ast.literal_eval(node)
    except ValueError:
        return ast.unparse(node)
