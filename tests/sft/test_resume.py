"""A resumed SASFT run ends in the same weights, bit for bit, as one that was not interrupted."""

import logging
import shutil
from pathlib import Path

import pytest
from datasets import Dataset
from peft import LoraConfig

from sae_posttrain import SASFTConfig, SASFTTrainer

TEXTS = [("en", "A file.", "open it now"), ("ko", "파일", "파일을 여세요"), ("zh", "文件", "打开"), ("en", "x", "yes")]
LAYOUTS = {
    "padded": {},
    "packed, and a weight that adapts itself": {"packing": True, "max_length": 24, "penalty_target": 0.2},
}


@pytest.fixture(autouse=True)
def offline(monkeypatch):
    """The card that each checkpoint comes with asks for no licence."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


@pytest.fixture
def make_trainer(make_model, make_features, tokenizer, tmp_path):
    """A trainer with Adam, a schedule and accumulation, whose data is shuffled in each epoch."""

    def make(peft_config=None, **kwargs) -> SASFTTrainer:
        settings = {
            "penalty_weight": 3.0,
            "per_device_train_batch_size": 2,
            "gradient_accumulation_steps": 2,
            "max_steps": 5,
            "learning_rate": 0.01,
            "lr_scheduler_type": "cosine",
            "save_strategy": "steps",
            "save_steps": 1,
            "logging_steps": 2,
            "use_cpu": True,
            "bf16": False,
            "gradient_checkpointing": False,
            "report_to": "none",
            "disable_tqdm": True,
        }
        rows = [{"lang": lang, "prompt": p, "completion": f"{c} {i}"} for i in range(2) for lang, p, c in TEXTS]
        return SASFTTrainer(
            make_model(),
            SASFTConfig(str(tmp_path / "run"), **settings | kwargs),
            feature_set=make_features(),
            train_dataset=Dataset.from_list(rows),
            processing_class=tokenizer,
            peft_config=peft_config,
        )

    return make


def weights(folder: Path, name: str = "model") -> bytes:
    return (folder / f"{name}.safetensors").read_bytes()


@pytest.mark.parametrize("layout", LAYOUTS)
def test_weights_after_resuming_at_any_step_are_those_of_an_uninterrupted_run(make_trainer, tmp_path, layout):
    make_trainer(**LAYOUTS[layout]).train()
    whole = {step: weights(tmp_path / "run" / f"checkpoint-{step}") for step in range(1, 6)}
    assert len(set(whole.values())) == 5
    for step in (4, 1):  # at the end of an epoch of two steps, and in the middle
        resumed = make_trainer(**LAYOUTS[layout])
        for later in range(step + 1, 6):
            shutil.rmtree(tmp_path / "run" / f"checkpoint-{later}")
        resumed.train(resume_from_checkpoint=True)
        assert {after: weights(tmp_path / "run" / f"checkpoint-{after}") for after in range(1, 6)} == whole


def test_an_adapter_with_dropout_goes_on_where_it_stopped(make_trainer, tmp_path):
    def train(resume: str | None) -> bytes:
        lora = LoraConfig(r=2, lora_dropout=0.3, target_modules=["q_proj", "v_proj"])
        make_trainer(peft_config=lora, max_steps=4).train(resume_from_checkpoint=resume)
        return weights(tmp_path / "run" / "checkpoint-4", "adapter_model")

    whole = train(None)
    assert train(str(tmp_path / "run" / "checkpoint-3")) == whole
    assert train(str(tmp_path / "run" / "checkpoint-2")) == whole


def test_a_checkpoint_whose_writing_was_killed_is_passed_over(make_trainer, tmp_path, caplog):
    make_trainer(max_steps=3).train()
    newest = tmp_path / "run" / "checkpoint-3"
    whole = weights(newest)
    (newest / "trainer_state.json").unlink()
    (newest / "optimizer.pt").write_bytes((newest / "optimizer.pt").read_bytes()[:1000])
    with caplog.at_level(logging.WARNING):
        make_trainer(max_steps=3).train(resume_from_checkpoint=True)
    assert f"Skipping the checkpoint {newest}" in caplog.text
    assert weights(newest) == whole
