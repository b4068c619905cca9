"""What a recipe takes, told beforehand: as counted on real tensors, whatever the depth, with no weights at hand."""

import re
from dataclasses import replace

import pytest
import torch
import yaml
from transformers import Gemma2Config, Qwen3Config, Qwen3ForCausalLM, Qwen3MoeConfig
from trl.trainer import add_fused_lm_head

from sae_posttrain.cli import main
from sae_posttrain.estimate.live_bytes import LiveBytes
from sae_posttrain.estimate.recipe import estimate_memory
from sae_posttrain.estimate.step import PHASES, StepSettings, _run, num_parameters, step_memory

SHAPE = {
    "vocab_size": 2000,
    "hidden_size": 64,
    "intermediate_size": 160,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
}


def adamw(model):
    return torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-3, fused=True)


STEP = StepSettings(
    rows=4,
    length=96,
    dtype=torch.float32,
    autocast=False,
    checkpointing=False,
    accumulates=False,
    make_optimiser=adamw,
)


@pytest.fixture
def recipe(tmp_path):
    """Writes a recipe for a model of which there is only a config.json."""

    def write(depth=6, **fields):
        folder = tmp_path / f"model-{depth}"
        Qwen3Config(**SHAPE, num_hidden_layers=depth, architectures=["Qwen3ForCausalLM"]).save_pretrained(folder)
        own = {"model_name_or_path": str(folder), "features": "zh.safetensors", "dataset_name": "train.jsonl"}
        own |= {"output_dir": str(tmp_path / "out"), "max_length": 96, "dtype": "float32", "bf16": False} | fields
        path = tmp_path / "recipe.yaml"
        path.write_text(yaml.safe_dump(own))
        return path

    return write


@pytest.mark.parametrize("checkpointing", [False, True])
def test_fake_tensors_take_what_real_ones_do(checkpointing):
    config = Qwen3Config(**SHAPE, num_hidden_layers=3)
    model = Qwen3ForCausalLM(config).train()
    if checkpointing:
        model.activation_checkpointing_enable({"use_reentrant": False})
    add_fused_lm_head(model, outputs=("log_probs", "entropy", "is_top1"))
    optimiser = adamw(model)
    ids = torch.randint(0, 2000, (4, 96))

    def step():
        batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids}
        model(**batch, use_cache=False, fused_lm_head=True).loss.backward()
        optimiser.step()

    step()
    optimiser.zero_grad()
    with LiveBytes() as live:
        step()
    found = step_memory(config, replace(STEP, checkpointing=checkpointing))
    assert max(getattr(found, phase) for phase in PHASES) == pytest.approx(live.peak, rel=0.02)
    assert found.weights == pytest.approx(sum(p.nbytes for p in model.parameters()), rel=0.001)
    assert found.optimiser == pytest.approx(2 * found.trained, rel=0.001)


@pytest.mark.parametrize("accumulates", [False, True])
@pytest.mark.parametrize(
    "config",
    [
        Qwen3Config(**SHAPE, num_hidden_layers=7),
        Gemma2Config(**SHAPE, num_hidden_layers=8),  # two kinds of blocks, by turns
        Qwen3MoeConfig(**SHAPE, num_hidden_layers=6, moe_intermediate_size=32, num_experts=4, num_experts_per_tok=2),
    ],
    ids=lambda config: config.model_type,
)
def test_a_few_blocks_speak_for_all(config, accumulates):
    dtype = torch.bfloat16 if config.model_type == "qwen3_moe" else torch.float32
    settings = replace(STEP, accumulates=accumulates, dtype=dtype)
    found, whole = step_memory(config, settings), _run(config, settings)
    assert found.weights == pytest.approx(whole.weights, rel=0.001)
    peaks = [max(getattr(each, phase) for phase in PHASES) for each in (found, whole)]
    assert peaks[0] == pytest.approx(peaks[1], rel=0.03)


def test_blocks_that_are_not_alike_are_refused():
    config = Qwen3MoeConfig(
        **SHAPE, num_hidden_layers=6, moe_intermediate_size=512, num_experts=8, mlp_only_layers=[0, 1, 2]
    )
    with pytest.raises(ValueError, match="not alike"):
        step_memory(config, replace(STEP, dtype=torch.bfloat16))


def test_a_step_that_fake_tensors_cannot_take_is_refused():
    config = Qwen3MoeConfig(**SHAPE, num_hidden_layers=2, moe_intermediate_size=32, num_experts=4)
    with pytest.raises(ValueError, match="qwen3_moe cannot be taken on fake tensors.*bfloat16"):
        step_memory(config, STEP)


def test_checkpointing_saves_activations_and_accumulation_keeps_gradients():
    config = Qwen3Config(**SHAPE, num_hidden_layers=7)
    plain = step_memory(config, STEP)
    assert step_memory(config, replace(STEP, checkpointing=True)).head < 0.9 * plain.head
    assert step_memory(config, replace(STEP, accumulates=True)).head == pytest.approx(plain.head + plain.trained)
    assert num_parameters(config) * 4 == pytest.approx(plain.trained)


def test_the_estimate_of_a_recipe_counts_what_its_fields_say(recipe):
    full = estimate_memory(recipe())
    assert set(full.parts) == set(PHASES) and full.peak == max(full.peaks.values())
    assert any("zh.safetensors is not here yet" in note for note in full.notes)
    adapted = estimate_memory(recipe(use_peft=True, lora_target_modules="all-linear"))
    assert adapted.parts["update"]["optimiser's state"] < 0.5 * full.parts["update"]["optimiser's state"]
    longer = estimate_memory(recipe(), ["--max_length", "960"])
    assert longer.peak > 3 * full.peak
    half = estimate_memory(recipe(), ["--dtype", "bfloat16"])
    assert half.parts["head"]["weights"] == pytest.approx(full.parts["head"]["weights"] / 2, rel=0.01)


def test_features_that_are_there_are_counted(recipe, make_features, tmp_path):
    file = make_features(per_block=3).save(tmp_path / "there.safetensors")
    estimate = estimate_memory(recipe(features=str(file)))
    assert not estimate.notes
    assert estimate.parts["head"]["rows of the features"] == 4 * 6 * (2 * 64 + 1)


def test_several_devices_keep_buckets_or_share(recipe):
    alone = estimate_memory(recipe())
    ddp = estimate_memory(recipe(), num_processes=4)
    assert ddp.peak == pytest.approx(alone.peak + ddp.parts["head"]["gradients in DDP's buckets"])
    shared = estimate_memory(recipe(), num_processes=4, sharded=True)
    assert shared.parts["update"]["optimiser's state"] == alone.parts["update"]["optimiser's state"] / 4
    with pytest.raises(ValueError, match="more than 1"):
        estimate_memory(recipe(), sharded=True)


def test_rl_counts_rollouts_and_the_second_model(recipe):
    fields = {"reward_funcs": ["endless_repetition"], "num_generations": 8, "per_device_train_batch_size": 8}
    fields |= {"max_completion_length": 128, "max_length": None, "beta": 0.1}
    path = recipe(**{name: value for name, value in fields.items() if name != "max_length"})
    text = yaml.safe_load(path.read_text())
    text.pop("max_length")
    path.write_text(yaml.safe_dump(text))
    estimate = estimate_memory(path, prompt_length=64)
    generation = estimate.parts["generation"]
    assert generation["keys and values of the rollouts"] == 2 * 6 * 2 * 16 * (64 + 128) * 8 * 4
    assert generation["reference model"] == generation["weights"]
    without = estimate_memory(path, ["--beta", "0.0"], prompt_length=64)
    assert "reference model" not in without.parts["generation"]


def test_the_command_prints_a_table(recipe, capsys):
    assert main(["estimate", "--config", str(recipe()), "--max_length", "64"]) == 0
    printed = capsys.readouterr().out
    assert re.search(r"model-6: [\d.]+ MiB on each device, in the ", printed)
    assert "optimiser's state" in printed and "Other stages" in printed


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"load_in_4bit": True}, "quantised"),
        ({"max_length": None}, "`max_length` is not set"),
        ({"model_name_or_path": None}, "names no model"),
    ],
)
def test_what_cannot_be_estimated_is_said_in_one_line(recipe, capsys, fields, message):
    assert main(["estimate", "--config", str(recipe(**fields))]) == 2
    assert message in capsys.readouterr().err


def test_a_missing_file_is_said_in_one_line(capsys):
    assert main(["estimate", "--config", "none.yaml"]) == 2
    assert "There is no file none.yaml" in capsys.readouterr().err
