"""
Every recipe takes two steps: a tiny model of the same architecture, a tiny SAE in the same published layout, both in
folders as the Hub has them; the features are found in it by the command that stands in the recipe.
"""

import importlib.util
import json
import re
import sys
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    LlamaConfig,
    Qwen3_5TextConfig,
    Qwen3Config,
    Qwen3MoeConfig,
)
from trl import TrlParser

from sae_posttrain import FeatureSet
from sae_posttrain.cli import main
from sae_posttrain.training.gate import require_prompt_rows, require_training_rows

from .recipe_files import command_in, load_script, script_of

ROOT = Path(__file__).parent.parent
RECIPES = ROOT / "recipes"
NUM_BLOCKS, WIDTH, NUM_FEATURES = 4, 32, 64
LAST_BLOCKS = (NUM_BLOCKS - 2, NUM_BLOCKS - 1)
SHAPE = {
    "hidden_size": WIDTH,
    "intermediate_size": 48,
    "num_hidden_layers": NUM_BLOCKS,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 16,
    "max_position_embeddings": 512,
    "initializer_range": 0.2,
}
EXPERTS = {"moe_intermediate_size": 16, "num_experts": 4, "num_experts_per_tok": 2}
LINEAR = {
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 2,
    "linear_key_head_dim": 16,
    "linear_value_head_dim": 16,
}
CONFIGS = {
    "qwen3-1.7b": Qwen3Config,
    "qwen3-8b": Qwen3Config,
    "qwen3-30b-a3b": lambda **shape: Qwen3MoeConfig(**shape, **EXPERTS),
    "qwen3.5-2b": lambda **shape: Qwen3_5TextConfig(**shape, **LINEAR),
    "gemma-2-2b": Gemma2Config,
    "gemma-2-9b": Gemma2Config,
    "llama-3.1-8b": LlamaConfig,
    "smollm2-135m-cold": LlamaConfig,
}
FAMILIES = {"qwen": "qwen_scope", "gemma": "gemma_scope", "llama": "llama_scope"}
TEXTS = {"en": "press the key to save the page", "ko": "키를 눌러 페이지를 저장합니다", "zh": "按下按键保存页面"}


def files(recipe):
    found = sorted(file for file in (RECIPES / recipe).glob("*.yaml") if file.stem != "help-7m")
    return pytest.mark.parametrize("yaml", found, ids=lambda file: file.stem)


@pytest.fixture
def make_tiny(tokenizer, tmp_path):
    """A folder with a model of the recipe's architecture."""

    def make(name: str) -> Path:
        torch.manual_seed(0)
        ids = {"pad_token_id": tokenizer.pad_token_id, "eos_token_id": tokenizer.eos_token_id, "bos_token_id": None}
        config = CONFIGS[name](vocab_size=len(tokenizer), **SHAPE, **ids)
        folder = tmp_path / "model"
        AutoModelForCausalLM.from_config(config).to(torch.bfloat16).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        return folder

    return make


@pytest.fixture
def write_saes(tmp_path):
    """SAEs of the last two blocks in a recipe's published layout; what to give as `--sae`."""
    spec = importlib.util.spec_from_file_location("layouts", Path(__file__).parent / "saes" / "layouts.py")
    layouts = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = layouts
    spec.loader.exec_module(layouts)

    def write(name: str) -> list[str]:
        layout = layouts.LAYOUTS[FAMILIES[re.match("[a-z]+", name)[0]]]
        if layout.format == "gemma_scope":
            layout = layout._replace(weights=layout.weights.split("/", 1)[1])  # the repository of the residual stream
        repository = tmp_path / {"gemma_scope": "gemma-scope-2b-pt-res"}.get(layout.format, "sae")
        for block in LAST_BLOCKS:
            names = {}
            for field in ("weights", "config"):
                path = getattr(layout, field)
                names[field] = path and re.sub(rf"(layer_?|-L){layouts.BLOCK}\b", rf"\g<1>{block}", path, count=1)
                names[field] = names[field] and names[field].replace(f"-L{layouts.BLOCK}R", f"-L{block}R")
            layouts.write(layout._replace(**names), repository, NUM_FEATURES, WIDTH, seed=block)
            if names["config"]:
                file = repository / names["config"]
                file.write_text(file.read_text().replace(f"blocks.{layouts.BLOCK}.", f"blocks.{block}."))
        if layout.format == "gemma_scope":
            return [str(repository / f"layer_{block}/width_16k/average_l0_71") for block in LAST_BLOCKS]
        return [str(repository), *(["--k", "8"] if layout.format == "qwen_scope" else [])]

    return write


def run(yaml: Path, **fields):
    """The recipe's own script, with these fields over those of the file."""
    script = script_of(yaml)
    shared = {"max_steps": 2, "use_cpu": "true", "report_to": "none", "save_strategy": "no", "logging_steps": 1}
    arguments = [str(each) for name, value in {**shared, **fields}.items() for each in (f"--{name}", value)]
    script.main(*TrlParser(script.ARGUMENTS).parse_args_and_config(args=["--config", str(yaml), *arguments]))


def rows(folder: Path, name: str, columns) -> Path:
    file = folder / name
    each = [columns(lang, f"{text} {i}") for i in range(8) for lang, text in TEXTS.items()]
    file.write_text("\n".join(map(json.dumps, each)) + "\n", encoding="utf-8")
    return file


def find_features(yaml: Path, **own) -> FeatureSet:
    """By the command that stands in a recipe, with these options in the place of its own."""
    command = command_in(yaml)
    for name, values in own.items():
        start = command.index(f"--{name.replace('_', '-')}") + 1
        end = next((i for i in range(start, len(command)) if command[i].startswith("--")), len(command))
        command[start:end] = [str(value) for value in (values if isinstance(values, list | tuple) else [values])]
    assert main(command) == 0
    return FeatureSet.load(own["out"])


@files("sasft_code_switching")
def test_sasft_recipe_takes_two_steps(yaml, make_tiny, write_saes, tokenizer, tmp_path):
    name = yaml.stem.removesuffix("-lora")
    model, features = make_tiny(name), tmp_path / "zh.safetensors"
    texts = rows(tmp_path, "texts.jsonl", lambda lang, text: {"lang": lang, "text": text})
    found = find_features(yaml, model=model, blocks=LAST_BLOCKS, sae=write_saes(name), texts=texts, out=features)
    assert set(found.blocks) == set(LAST_BLOCKS)

    def chat(lang, text):
        messages = [{"role": "user", "content": "Write."}, {"role": "assistant", "content": text}]
        return {"lang": lang, "messages": messages}

    data, out = rows(tmp_path, "train.jsonl", chat), tmp_path / "out"
    own = {"model_name_or_path": model, "features": features, "dataset_name": data, "output_dir": out}
    template = {}
    if "chat_template_path" in yaml.read_text():
        template["chat_template_path"] = tmp_path / "chat.jinja"  # cloned, it would round the tiny vocabulary up
        template["chat_template_path"].write_text(tokenizer.chat_template)
    if "eos_token" in yaml.read_text():
        template["eos_token"] = tokenizer.eos_token  # the tiny vocabulary has one end token
    run(yaml, **own, **template, max_length=96, gradient_accumulation_steps=2, warmup_steps=0)
    assert (out / ("adapter_model.safetensors" if yaml.stem.endswith("-lora") else "model.safetensors")).is_file()


@files("dapo_repetition")
def test_dapo_recipe_takes_two_steps(yaml, make_tiny, make_features, tmp_path):
    model, out = make_tiny(yaml.stem.removesuffix("-lora")), tmp_path / "out"
    data = rows(tmp_path, "prompts.jsonl", lambda lang, text: {"lang": lang, "prompt": text})
    own = {"model_name_or_path": model, "dataset_name": data, "output_dir": out}
    if "-cold" not in yaml.stem:
        features = make_features(blocks=LAST_BLOCKS, per_block=1).save(tmp_path / "repetition.safetensors")
        own |= {"features": features, "steer_strength": 1.0, "allow_base_model": model}
    run(yaml, **own, max_completion_length=64, gradient_accumulation_steps=1, warmup_steps=0)
    assert (out / ("adapter_model.safetensors" if yaml.stem.endswith("-lora") else "model.safetensors")).is_file()


@pytest.fixture
def public_set(tmp_path):
    """A folder as the Hub has `CohereLabs/aya_dataset`: its columns, its codes of languages, one prompt twice."""
    made = []
    for i in range(12):
        for code, name, text in (("eng", "English", "en"), ("kor", "Korean", "ko"), ("zho", "Chinese", "zh")):
            row = {"inputs": f"{TEXTS[text]}? {i}", "targets": f"{TEXTS[text]} {i}", "language": name}
            made.append(row | {"language_code": code, "annotation_type": "original-annotations", "user_id": "a"})
    made.append(made[0] | {"targets": "again"})
    made.append(made[0] | {"language": "Zulu", "language_code": "zul"})
    folder = tmp_path / "aya"
    (folder / "data").mkdir(parents=True)
    Dataset.from_list(made).to_parquet(folder / "data" / "train-00000-of-00001.parquet")
    return folder


def read(file: Path):
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


PREPARE = RECIPES / "multilingual_data" / "prepare.py"


def test_recipe_takes_two_steps_on_a_public_set_with_korean_as_the_target(public_set, make_tiny, write_saes, tmp_path):
    out = tmp_path / "prepared"
    asked = ["--languages", "en", "ko", "zh", "--num-prompts", "2"]
    load_script(PREPARE).main(["--dataset", str(public_set), *asked, "--out", str(out)])
    training, prompts = read(out / "train.jsonl"), read(out / "prompts.jsonl")
    require_training_rows(training, "lang")
    require_prompt_rows(prompts, ["lang"])
    assert {row["lang"] for row in training} == {row["lang"] for row in prompts} == {"en", "ko", "zh"}
    assert len(prompts) == 6
    assert not {row["prompt"][0]["content"] for row in prompts} & {row["messages"][0]["content"] for row in training}

    yaml = RECIPES / "sasft_code_switching" / "qwen3-1.7b.yaml"
    model, features = make_tiny("qwen3-1.7b"), tmp_path / "ko.safetensors"
    own = {"model": model, "blocks": LAST_BLOCKS, "sae": write_saes("qwen3-1.7b"), "texts": out / "train.jsonl"}
    assert find_features(yaml, **own, target_group="ko", out=features).target_groups == ("ko",)
    own = {"model_name_or_path": model, "features": features, "dataset_name": out / "train.jsonl"}
    sizes = {"max_length": 96, "gradient_accumulation_steps": 2, "warmup_steps": 0, "eos_token": "<|end|>"}
    run(yaml, **own, **sizes, output_dir=tmp_path / "out", bf16="false", dtype="float32")
    assert (tmp_path / "out" / "model.safetensors").is_file()


@pytest.mark.parametrize(
    ("own", "message"),
    [
        (["--languages", "ko", "fr"], "No row is in fr. There are en, ko, zh, zu"),
        (["--languages", "ko", "--prompt-column", "question"], "column 'question' must hold a text.*inputs, targets"),
    ],
)
def test_what_a_public_set_lacks_is_said(own, message, public_set, tmp_path):
    with pytest.raises(ValueError, match=message):
        load_script(PREPARE).main(["--dataset", str(public_set), *own, "--out", str(tmp_path / "prepared")])
    assert not (tmp_path / "prepared").exists()
