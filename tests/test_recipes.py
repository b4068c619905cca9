"""The recipes do not rot: every YAML parses and names its launch command, every command of a README can be given."""

import importlib.util
import re
import shlex
from itertools import pairwise
from pathlib import Path

import pytest
from trl import TrlParser

from sae_posttrain.cli import make_parser
from sae_posttrain.rl.refusals import refuse_settings
from sae_posttrain.rl.script import REWARDS

ROOT = Path(__file__).parent.parent
RECIPES = ROOT / "recipes"
YAMLS = sorted(RECIPES.rglob("*.yaml"))
READMES = sorted(RECIPES.rglob("README.md"))


def script_of(yaml: Path):
    spec = importlib.util.spec_from_file_location(f"recipe_{yaml.parent.name}", yaml.parent / "train.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def yamls_of(recipe: str):
    files = [file for file in YAMLS if file.parent.name == recipe]
    return pytest.mark.parametrize("yaml", files, ids=lambda file: file.stem)


def parse(yaml: Path):
    arguments = ["--config", str(yaml), "--use_cpu", "true"]
    return TrlParser(script_of(yaml).ARGUMENTS).parse_args_and_config(args=arguments)


@pytest.mark.parametrize("yaml", YAMLS, ids=lambda file: f"{file.parent.name}/{file.stem}")
def test_yaml_parses_with_its_script(yaml):
    script_args, training_args, model_args, _ = parse(yaml)
    assert training_args.features is not None
    assert isinstance(training_args.learning_rate, float)
    assert model_args.model_name_or_path
    assert script_args.dataset_name


@yamls_of("sasft_code_switching")
def test_sasft_yaml_holds_features_down(yaml):
    assert parse(yaml)[1].penalty_weight > 0


@yamls_of("dapo_repetition")
def test_dapo_yaml_steers_a_rollout_of_each_group_and_trains_on_it(yaml):
    script_args, training_args, model_args, _ = parse(yaml)
    assert training_args.num_steered >= 1
    refuse_settings(training_args)
    assert set(script_args.reward_funcs) <= set(REWARDS)
    beta = 0.3 if yaml.stem == "help-7m" else 0  # the small model does not stand the push without it
    assert (training_args.loss_type, training_args.epsilon_high) == ("dapo", 0.28)
    assert training_args.beta == beta
    assert training_args.steer_strength is None  # the calibrated one
    assert model_args.use_peft == yaml.stem.endswith("-lora")


@pytest.mark.parametrize("yaml", YAMLS, ids=lambda file: f"{file.parent.name}/{file.stem}")
def test_yaml_begins_with_its_launch_command(yaml):
    path = yaml.relative_to(ROOT)
    first = yaml.read_text(encoding="utf-8").splitlines()[0]
    assert first == f"# accelerate launch {path.parent}/train.py --config {path}"


@pytest.mark.parametrize("readme", READMES, ids=lambda file: file.parent.name)
def test_commands_of_the_readme_can_be_given(readme):
    blocks = re.findall(r"```bash\n(.*?)```", readme.read_text(encoding="utf-8"), re.DOTALL)
    lines = "".join(blocks).replace("\\\n", " ").splitlines()
    for name, *arguments in filter(None, map(shlex.split, lines)):
        if name == "sae-posttrain" and arguments[0] not in ("sft", "grpo"):
            make_parser().parse_args(arguments)
        files = [arguments[0]] if name == "python" else []
        files += [value for option, value in pairwise(arguments) if option == "--config"]
        for file in files:
            assert (ROOT / file).is_file(), file


def test_recipes_are_there():
    assert {f"{file.parent.name}/{file.stem}" for file in YAMLS} >= {
        "sasft_code_switching/qwen3-1.7b",
        "sasft_code_switching/gemma-2-2b",
        "sasft_code_switching/help-7m",
        "dapo_repetition/qwen3-1.7b",
        "dapo_repetition/qwen3-1.7b-lora",
        "dapo_repetition/help-7m",
    }
    for script in RECIPES.rglob("train.py"):
        assert len(script.read_text(encoding="utf-8").splitlines()) <= 80
