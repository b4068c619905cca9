"""Every YAML of the recipes parses with its script's dataclasses, and says at its top how to launch it."""

import importlib.util
from pathlib import Path

import pytest
from trl import TrlParser

RECIPES = Path(__file__).parent.parent / "recipes"
YAMLS = sorted(RECIPES.rglob("*.yaml"))


def script_of(yaml: Path):
    spec = importlib.util.spec_from_file_location(f"recipe_{yaml.parent.name}", yaml.parent / "train.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("yaml", YAMLS, ids=lambda file: f"{file.parent.name}/{file.stem}")
def test_yaml_parses_with_its_script(yaml):
    arguments = ["--config", str(yaml), "--use_cpu", "true"]
    parsed = TrlParser(script_of(yaml).ARGUMENTS).parse_args_and_config(args=arguments)
    assert parsed[1].features is not None
    assert parsed[1].penalty_weight > 0
    assert isinstance(parsed[1].learning_rate, float)


@pytest.mark.parametrize("yaml", YAMLS, ids=lambda file: f"{file.parent.name}/{file.stem}")
def test_yaml_begins_with_its_launch_command(yaml):
    path = yaml.relative_to(RECIPES.parent)
    first = yaml.read_text(encoding="utf-8").splitlines()[0]
    assert first == f"# accelerate launch {path.parent}/train.py --config {path}"


def test_recipes_are_there():
    assert {file.name for file in YAMLS} >= {"qwen3-1.7b.yaml", "gemma-2-2b.yaml", "help-7m.yaml"}
    for script in RECIPES.rglob("train.py"):
        assert len(script.read_text(encoding="utf-8").splitlines()) <= 80
