"""The first half of the demo: find the Chinese features, fine-tune without and with them held down, compare."""

import json
from functools import partial
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import SFTConfig, SFTTrainer

from ..features.find.by_group import find_features
from ..features.read.text_options import TextOptions
from ..features.set.feature_set import FeatureSet
from ..measure.report.data import Section
from ..sft.config import SASFTConfig
from ..sft.trainer import SASFTTrainer
from .arms import keep, load, measure, model_folder, read_arm
from .contents import MODEL, SAE, as_messages, read_texts
from .progress import train_with_bar
from .record import Record, Stage

BLOCKS = (2, 3)
NUM_FEATURES = 8
STEPS = 80
QUICK_STEPS = 60
LEARNING_RATE = 5e-4
BATCH_SIZE = 32
SAMPLING: dict[str, Any] = {"max_new_tokens": 96, "temperature": 1.0, "top_p": 0.8, "batch_size": 200}
PENALTY: dict[str, Any] = {"penalty_weight": 10.0, "margin": 1.0, "penalty_positions": "predicting"}


TITLE = "Language switching, planted"
EXPLANATION = """\
The lab's model is fine-tuned on questions and answers in four languages. Some of the English, Korean and Russian
answers contain a stray Chinese word: a fault that was planted in the data. SFT learns the fault. SASFT holds down the
features of Chinese while it learns from the same data.
"""
LABELS = {"before": "before", "sft": "SFT", "sasft": "SASFT (ours)"}
FEATURES_FILE = "features.safetensors"
QUESTIONS_FILE = "questions.jsonl"


def stages(folder: Path, seed: int, quick: bool) -> list[Stage]:
    """The stages: find the features, and for each arm train it and sample its answers."""
    features, test = folder / FEATURES_FILE, questions(quick)

    def search() -> None:
        lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in as_messages(test))
        (folder / QUESTIONS_FILE).write_text(lines, encoding="utf-8")  # for `sae-posttrain evaluate --prompts`
        find(*load()).save(features, overwrite=True)

    def train(arm: str) -> None:
        found = FeatureSet.from_pretrained(features) if arm == "sasft" else None
        keep(fine_tune(model_folder(folder / arm), seed, found, quick))

    def answer(arm: str, model: Path) -> None:
        measure(folder / arm, model, test, SAMPLING, seed, features)

    planned = [
        Stage(features, "Finding the features of Chinese", search),
        Stage(folder / "before", "Answers before training", lambda: answer("before", MODEL), measures=True),
    ]
    for arm in ("sft", "sasft"):
        model, label = model_folder(folder / arm), LABELS[arm]
        text = f"{label}: fine-tuning on answers with stray Chinese words"
        planned.append(Stage(model, text, partial(train, arm)))
        planned.append(Stage(folder / arm, f"{label}: answers", partial(answer, arm, model), measures=True))
    return planned


def section(folder: Path, record: Record, quick: bool) -> Section | None:
    """The finished arms, with SASFT against SFT; `None` if there are none."""
    arms = [
        read_arm(folder / arm, label, questions(quick))
        for arm, label in LABELS.items()
        if record.is_finished(folder / arm)
    ]
    if not arms:
        return None
    baseline = "sft" if record.is_finished(folder / "sft") else None
    return Section(TITLE, arms, "switching", baseline, EXPLANATION)


def questions(quick: bool) -> list[dict[str, Any]]:
    """The test questions without those that ask for a Chinese word (half of them if `quick`), short answers first."""
    ids = sorted({row["id"] for row in read_texts("test") if row["kind"] != "translate"})
    kept = {id for number, id in enumerate(ids) if number % 2 or not quick}
    return sorted((row for row in read_texts("test") if row["id"] in kept), key=by_length)


def by_length(row: dict[str, Any]) -> int:
    """Answers of one length are generated together, which saves time."""
    return len(row["answer"])


def find(model: Any, tokenizer: Any) -> FeatureSet:
    """Find the features of Chinese in clean answers."""
    texts = [{"text": row["answer"], "lang": row["lang"]} for row in read_texts("dev")]
    return find_features(
        model,
        str(SAE),
        texts,
        target_group="zh",
        blocks=BLOCKS,
        num_features=NUM_FEATURES,
        rank_by="output",
        tokenizer=tokenizer,
        text_options=TextOptions(batch_size=64),
    )


def fine_tune(folder: Path, seed: int, feature_set: FeatureSet | None, quick: bool) -> Any:
    """Fine-tune the lab's model on the contaminated answers: TRL's own trainer, or ours with features."""
    settings: dict[str, Any] = {
        "max_steps": QUICK_STEPS if quick else STEPS,
        "per_device_train_batch_size": BATCH_SIZE,
        "learning_rate": LEARNING_RATE,
        "warmup_steps": 10,
        "max_length": 160,
        "train_sampling_strategy": "group_by_length",  # less padding to compute
        "assistant_only_loss": True,
        "gradient_checkpointing": False,
        "bf16": False,
        "use_cpu": True,
        "seed": seed,
        "logging_steps": 5,
        "save_strategy": "no",
        "report_to": "none",
    }
    model = AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32)
    data = Dataset.from_list(read_texts("train"))
    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    if feature_set is None:
        trainer: Any = SFTTrainer(
            model, SFTConfig(str(folder), **settings), train_dataset=data, processing_class=tokenizer
        )
    else:
        trainer = SASFTTrainer(
            model,
            SASFTConfig(str(folder), **settings, **PENALTY),
            feature_set=feature_set,
            train_dataset=data,
            processing_class=tokenizer,
        )
    return train_with_bar(trainer)
