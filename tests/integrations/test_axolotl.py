"""The axolotl plugin, in the place of axolotl's own trainers."""

import re
import sys
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from pydantic import ValidationError
from yaml import safe_load

from . import axolotl_stub

PLUGIN = "sae_posttrain.integrations.axolotl.plugin.FeaturePlugin"
TEXTS = {"en": "press the key", "ko": "키를 눌러", "zh": "按下按键"}
BASE = {"plugins": [PLUGIN], "base_model": "tiny", "datasets": [{"path": "pages", "type": "chat_template"}]}


@pytest.fixture(autouse=True)
def axolotl(monkeypatch):
    axolotl_stub.install(monkeypatch)


@pytest.fixture
def features(make_features, tmp_path):
    return str(make_features().save(tmp_path / "zh.safetensors"))


@pytest.fixture
def rows(tokenizer):
    """Tokenized as axolotl hands them on, with the language where data came tokenized."""

    def make(lang=False, positions=False):
        made = []
        for i in range(4):
            for group, text in TEXTS.items():
                prompt, answer = tokenizer("Write.")["input_ids"], tokenizer(f"{text} {i}")["input_ids"]
                row = {"input_ids": prompt + answer, "labels": [-100] * len(prompt) + answer}
                row["attention_mask"] = [1] * len(row["input_ids"])
                made.append(row | ({"lang": group} if lang else {}))
                if positions:
                    made[-1]["position_ids"] = list(range(len(row["input_ids"])))
        return Dataset.from_list(made)

    return make


def arguments(tmp_path):
    plain = {"report_to": [], "save_strategy": "no", "use_cpu": True, "bf16": False, "disable_tqdm": True}
    return {"output_dir": str(tmp_path / "out"), "max_steps": 2, "logging_steps": 1, **plain}


def logged(trainer, name):
    return [entry[name] for entry in trainer.state.log_history if name in entry]


@pytest.mark.parametrize("layout", ["script", "column", "packed"])
def test_sft_takes_two_steps_with_features_held_down(layout, features, rows, make_model, tokenizer, tmp_path):
    cfg, plugin = axolotl_stub.validate(
        {**BASE, "sae_posttrain": {"features": features, "penalty_weight": 2.0}, "sample_packing": layout == "packed"}
    )
    data = rows(lang=layout == "column", positions=layout == "packed")
    own = {"per_device_train_batch_size": 2, "sample_packing": layout == "packed", "eval_strategy": "steps"}
    trainer = axolotl_stub.build(
        cfg, plugin, make_model(), tokenizer, data, rows(), **own, eval_steps=2, **arguments(tmp_path)
    )
    trainer.train()
    assert trainer.args.penalty_weight == 2.0
    assert isinstance(trainer, axolotl_stub.AxolotlTrainer)
    assert len(logged(trainer, "sae/penalty")) == 2
    assert all(value > 0 for value in logged(trainer, "sae/penalty"))
    assert len(logged(trainer, "eval_sae/penalty")) == 1


def test_packed_and_single_rows_give_the_same_groups(features, rows, make_model, tokenizer, tmp_path):
    cfg, plugin = axolotl_stub.validate({**BASE, "sae_posttrain": {"features": features}})
    trainer = axolotl_stub.build(cfg, plugin, make_model(), tokenizer, rows(), **arguments(tmp_path))
    examples = [trainer.train_dataset[i] for i in range(3)]
    single, packed = trainer.data_collator(examples), trainer.data_collator([examples])
    joined = torch.cat([ids[ids >= 0] for ids in single["group_ids"]])
    assert packed["group_ids"].shape == packed["labels"].shape
    assert torch.equal(packed["group_ids"][packed["group_ids"] >= 0], joined)


def test_weight_zero_trains_as_axolotl_does(features, rows, make_model, tokenizer, tmp_path):
    cfg, plugin = axolotl_stub.validate({**BASE, "sae_posttrain": {"features": features, "penalty_weight": 0.0}})
    ours = axolotl_stub.build(cfg, plugin, make_model(), tokenizer, rows(), **arguments(tmp_path))
    theirs = axolotl_stub.AxolotlTrainer(
        make_model(), ours.args, axolotl_stub.PadCollator(tokenizer), rows(), processing_class=tokenizer
    )
    for trainer in (ours, theirs):
        trainer.train()
    for a, b in zip(ours.model.parameters(), theirs.model.parameters()):
        assert torch.equal(a, b)


def test_grpo_takes_two_steps_with_a_steered_rollout(features, make_model, tokenizer, tmp_path, monkeypatch):
    (tmp_path / "own_rewards.py").write_text(
        "def variety(completions, **kwargs):\n    return [float(len(set(text))) for text in completions]\n"
        "variety.sees_repetition = True\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    section = {"features": features, "steer_strength": 1.0, "num_steered": 1}
    own = {"rl": "grpo", "trl": {"reward_funcs": ["own_rewards.variety"]}, "sae_posttrain": section}
    cfg, plugin = axolotl_stub.validate({**BASE, **own})
    prompts = Dataset.from_list([{"prompt": f"{text} {i}"} for i in range(4) for text in TEXTS.values()])
    sizes = {"num_generations": 4, "per_device_train_batch_size": 4, "max_completion_length": 64}
    model = make_model()
    trainer = axolotl_stub.build(cfg, plugin, model, tokenizer, prompts, **sizes, **arguments(tmp_path))
    trainer.train()
    assert trainer.model is model
    assert isinstance(trainer, axolotl_stub.AxolotlGRPOTrainer)
    assert trainer.args.epsilon_high == 0.28
    assert logged(trainer, "steer/strength") == [1.0, 1.0]
    sys.modules.pop("own_rewards")


REFUSED = [
    ({}, "no settings under `sae_posttrain`"),
    ({"sae_posttrain": {"penalty_wait": 1.0}}, "Unknown setting `penalty_wait`.*penalty_weight"),
    ({"sae_posttrain": {"num_steered": 1}}, "Unknown setting `num_steered`"),
    ({"sae_posttrain": {"penalty_weight": -1.0}}, "0 or more"),
    ({"train_on_inputs": True}, "train_on_inputs: false"),
    ({"datasets": [{"path": "pages", "roles_to_train": ["assistant", "user"]}]}, "roles_to_train"),
    ({"streaming": True}, "streaming: false"),
    ({"pretraining_dataset": [{"path": "pages"}]}, "Use `datasets`"),
    ({"reward_model": True}, "Reward models"),
    ({"processor_type": "AutoProcessor"}, "Only text"),
    ({"context_parallel_size": 2}, "context_parallel_size: 1"),
    ({"rl": "dpo", "sae_posttrain": {"features": "f"}}, "`rl: dpo` is not supported"),
    ({"rl": "grpo", "trl": {"use_vllm": True, "reward_funcs": ["a.b"]}}, "cannot be steered"),
    ({"rl": "grpo", "trl": {"async_prefetch": True, "reward_funcs": ["a.b"]}}, "async_prefetch"),
    ({"rl": "grpo", "sae_posttrain": {"features": "f", "penalty_weight": 1.0}}, "Unknown setting `penalty_weight`"),
    ({"rl": "grpo"}, "trl.reward_funcs"),
]


@pytest.mark.parametrize(("settings", "message"), REFUSED, ids=[message for _, message in REFUSED])
def test_settings_that_undo_the_method_are_refused(settings, message):
    section = {} if message.startswith("no settings") else {"sae_posttrain": {"features": "zh.safetensors"}}
    with pytest.raises(ValidationError, match=message):
        axolotl_stub.validate({**BASE, **section, **settings})


def test_an_older_trl_is_refused_for_steering(monkeypatch):
    axolotl_stub.validate({**BASE, "sae_posttrain": {"features": "f"}})
    plugin = sys.modules[PLUGIN.rsplit(".", 1)[0]]
    monkeypatch.setattr(plugin, "version", lambda package: "1.9.0")
    own = {"rl": "grpo", "trl": {"reward_funcs": ["a.b"]}, "sae_posttrain": {"features": "f"}}
    with pytest.raises(ValidationError, match="TRL 1.15 and newer, and this is TRL 1.9.0"):
        axolotl_stub.validate({**BASE, **own})


def test_the_trainer_of_another_plugin_is_refused(features):
    cfg, plugin = axolotl_stub.validate({**BASE, "sae_posttrain": {"features": features}})
    with pytest.raises(ValueError, match="took the trainer of another plugin, object"):
        plugin.post_trainer_create(cfg, object())


def test_a_stream_is_refused(features, rows, make_model, tokenizer, tmp_path):
    cfg, plugin = axolotl_stub.validate({**BASE, "sae_posttrain": {"features": features}})
    with pytest.raises(ValueError, match="streaming: false"):
        axolotl_stub.build(cfg, plugin, make_model(), tokenizer, rows().to_iterable_dataset(), **arguments(tmp_path))


def test_rejected_answers_are_refused(features, rows, make_model, tokenizer, tmp_path):
    cfg, plugin = axolotl_stub.validate({**BASE, "sae_posttrain": {"features": features, "penalty_rows": "both"}})
    with pytest.raises(ValueError, match="penalty_rows"):
        axolotl_stub.build(cfg, plugin, make_model(), tokenizer, rows(), **arguments(tmp_path))


def test_the_configurations_of_the_docs_are_accepted():
    text = (Path(__file__).parents[2] / "docs" / "integrations.md").read_text(encoding="utf-8")
    blocks = [safe_load(block) for block in re.findall(r"```yaml\n(.*?)```", text, re.DOTALL)]
    assert [block.get("rl") for block in blocks] == [None, "grpo"]
    for block in blocks:
        cfg, plugin = axolotl_stub.validate(block)
        assert plugin.get_training_args(cfg) == block["sae_posttrain"]
