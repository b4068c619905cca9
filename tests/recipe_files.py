"""What tests read of a recipe: its script, and the command that finds its features."""

import importlib.util
import re
import shlex
from pathlib import Path


def script_of(yaml: Path):
    return load_script(yaml.parent / "train.py")


def load_script(file: Path):
    spec = importlib.util.spec_from_file_location(f"recipe_{file.parent.name}", file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def command_in(yaml: Path) -> list[str]:
    """The command of the recipe's comments that finds its features."""
    comments = [line[1:] for line in yaml.read_text(encoding="utf-8").splitlines() if line.startswith("#")]
    text = "\n".join(comments).replace("\\\n", " ")
    return shlex.split(re.search(r"sae-posttrain (find-features .*)", text)[1])
