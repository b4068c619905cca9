"""The recipes do not rot: every YAML parses and names its launch command, every command of a README can be given."""

import re
import shlex
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import pytest
from accelerate.commands.config.config_args import load_config_from_file
from trl import TrlParser
from yaml import safe_load

from sae_posttrain.cli import make_parser
from sae_posttrain.rl import script as rl_script
from sae_posttrain.rl.refusals import refuse_settings
from sae_posttrain.rl.script import REWARDS
from sae_posttrain.sft import script as sft_script

from .recipe_files import command_in, load_script, script_of

ROOT = Path(__file__).parent.parent
RECIPES = ROOT / "recipes"
ACCELERATE = sorted((RECIPES / "accelerate").glob("*.yaml"))
YAMLS = sorted(set(RECIPES.rglob("*.yaml")) - set(ACCELERATE))
READMES = sorted(RECIPES.rglob("README.md"))


@dataclass(frozen=True)
class Facts:
    """What is known of a model and its SAEs: their cards, the reports, and their configurations."""

    model: str
    num_blocks: int
    width: int
    repository: str
    num_features: int


FACTS = {
    "qwen3-1.7b": Facts("Qwen/Qwen3-1.7B-Base", 28, 2048, "Qwen/SAE-Res-Qwen3-1.7B-Base-W32K-L0_50", 32_768),
    "qwen3-8b": Facts("Qwen/Qwen3-8B-Base", 36, 4096, "Qwen/SAE-Res-Qwen3-8B-Base-W64K-L0_50", 65_536),
    "qwen3-30b-a3b": Facts("Qwen/Qwen3-30B-A3B-Base", 48, 2048, "Qwen/SAE-Res-Qwen3-30B-A3B-Base-W32K-L0_50", 32_768),
    "qwen3.5-2b": Facts("Qwen/Qwen3.5-2B-Base", 24, 2048, "Qwen/SAE-Res-Qwen3.5-2B-Base-W32K-L0_50", 32_768),
    "gemma-2-2b": Facts("google/gemma-2-2b", 26, 2304, "google/gemma-scope-2b-pt-res", 16_384),
    "gemma-2-9b": Facts("google/gemma-2-9b", 42, 3584, "google/gemma-scope-9b-pt-res", 16_384),
    "llama-3.1-8b": Facts("meta-llama/Llama-3.1-8B", 32, 4096, "fnlp/Llama3_1-8B-Base-LXR-8x", 32_768),
}


def yamls_of(recipe: str):
    files = [file for file in YAMLS if file.parent.name == recipe]
    return pytest.mark.parametrize("yaml", files, ids=lambda file: file.stem)


def yaml_of(file: Path):
    return safe_load(file.read_text(encoding="utf-8"))


def parse(yaml: Path):
    arguments = ["--config", str(yaml), "--use_cpu", "true"]
    return TrlParser(script_of(yaml).ARGUMENTS).parse_args_and_config(args=arguments)


@pytest.mark.parametrize("yaml", YAMLS, ids=lambda file: f"{file.parent.name}/{file.stem}")
def test_yaml_parses_with_its_script(yaml):
    script_args, training_args, model_args, _ = parse(yaml)
    assert (training_args.features is None) == ("-cold" in yaml.stem)
    assert isinstance(training_args.learning_rate, float)
    assert model_args.model_name_or_path
    assert script_args.dataset_name


@yamls_of("sasft_code_switching")
def test_sasft_yaml_holds_features_down(yaml):
    assert parse(yaml)[1].penalty_weight > 0


@yamls_of("dapo_repetition")
def test_dapo_yaml_steers_a_rollout_of_each_group_and_trains_on_it(yaml):
    script_args, training_args, model_args, _ = parse(yaml)
    cold = "-cold" in yaml.stem  # without an SAE
    assert (training_args.num_steered, training_args.num_cold) == ((0, 1) if cold else (1, 0))
    refuse_settings(training_args)
    assert set(script_args.reward_funcs) <= set(REWARDS)
    beta = 0.3 if yaml.stem == "help-7m" else 0  # the small model does not stand the push without it
    assert (training_args.loss_type, training_args.epsilon_high) == ("dapo", 0.28)
    assert training_args.beta == beta
    assert training_args.steer_strength is None  # the calibrated one
    assert model_args.use_peft == yaml.stem.endswith("-lora")


@pytest.mark.parametrize("yaml", YAMLS, ids=lambda file: f"{file.parent.name}/{file.stem}")
def test_yaml_begins_with_its_launch_command_hardware_and_time(yaml):
    path = yaml.relative_to(ROOT)
    first = yaml.read_text(encoding="utf-8").splitlines()[0]
    command = rf"# accelerate launch (--config_file (\S+) )?{path.parent}/train.py --config {path}"
    match = re.fullmatch(command + r" # (one|two|eight) .*(GPUs?|CPU cores?)\b.*(min|h|time not known)\b.*", first)
    assert match, first
    if match[2]:
        assert ROOT / match[2] in ACCELERATE
        assert ("eight" in first) == (load_config_from_file(match[2]).num_processes == 8)


def sasft(name):
    """The YAML files of a model: all weights, and LoRA."""
    return [RECIPES / "sasft_code_switching" / f"{name}{ending}.yaml" for ending in ("", "-lora")]


@pytest.mark.parametrize("name", FACTS)
def test_ids_blocks_and_widths_are_those_of_the_model_and_its_saes(name):
    facts = FACTS[name]
    for yaml in sasft(name):
        _, training_args, model_args, _ = parse(yaml)
        assert model_args.model_name_or_path == facts.model
        assert model_args.use_peft == yaml.stem.endswith("-lora")
        search = make_parser().parse_args(command_in(yaml))
        assert search.model == facts.model
        assert search.blocks == [facts.num_blocks - 2, facts.num_blocks - 1]
        assert all(sae.startswith(facts.repository) for sae in search.sae)
        assert str(search.out) == training_args.features
    in_thousands = re.search(r"-W(\d+)K-", facts.repository)
    if in_thousands:
        assert int(in_thousands[1]) * 1024 == facts.num_features
    if facts.repository.endswith("LXR-8x"):
        assert facts.num_features == 8 * facts.width


@pytest.mark.parametrize("name", FACTS)
def test_repetition_is_looked_for_in_blocks_and_saes_that_each_model_has(name):
    text = (RECIPES / "find_features" / "README.md").read_text(encoding="utf-8")
    (row,) = re.findall(rf"^\| `{re.escape(name)}` \| `(.+)` \| `(.+)` \| ([\d ]+) \|$", text, re.MULTILINE)
    model, sae, blocks = row
    facts = FACTS[name]
    assert model.split("-it")[0].removesuffix("-Instruct") == facts.model.removesuffix("-Base")
    assert sae.startswith(facts.repository)
    assert all(0 < int(block) < facts.num_blocks - 1 for block in blocks.split())
    given = f"--model {model} --sae {sae} --blocks {blocks} --prompts prompts.jsonl --out found"
    command = make_parser().parse_args(["find-features", "--kind", "repetition", *given.split()])
    assert command.blocks == [int(block) for block in blocks.split()]


@pytest.mark.parametrize("name", FACTS)
def test_lora_differs_from_all_weights_in_what_lora_needs_alone(name):
    full, lora = (yaml_of(path) for path in sasft(name))
    free = {"use_peft", "lora_r", "lora_alpha", "lora_dropout", "lora_target_modules"}
    free |= {"output_dir", "learning_rate", "gradient_accumulation_steps"}
    assert {key: full[key] for key in full if key not in free} == {key: lora[key] for key in lora if key not in free}


@pytest.mark.parametrize("file", ACCELERATE, ids=lambda file: file.stem)
def test_accelerate_reads_the_configurations(file):
    config = load_config_from_file(str(file))
    assert config.num_processes == (1 if file.stem == "one-gpu" else 8)
    assert config.mixed_precision == "bf16"


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
    there = {f"{file.parent.name}/{file.stem}" for file in YAMLS}
    assert there >= {f"sasft_code_switching/{name}{ending}" for name in FACTS for ending in ("", "-lora")}
    dapo = [f"dapo_repetition/qwen3-{size}{ending}" for size in ("1.7b", "8b") for ending in ("", "-lora")]
    assert there >= {*dapo, "sasft_code_switching/help-7m", "dapo_repetition/help-7m"}
    assert [file.stem for file in ACCELERATE] == ["ddp", "fsdp2", "one-gpu", "zero3"]
    for script in RECIPES.rglob("train.py"):
        assert len(script.read_text(encoding="utf-8").splitlines()) <= 80


@pytest.mark.parametrize(
    ("recipe", "command"), [("sasft_code_switching", sft_script), ("dapo_repetition", rl_script)], ids=["sft", "grpo"]
)
def test_script_takes_the_fields_that_the_command_takes(recipe, command):
    assert load_script(RECIPES / recipe / "train.py").ARGUMENTS == command.ARGUMENTS
