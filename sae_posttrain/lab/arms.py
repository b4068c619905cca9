"""An arm of the demo in its folder: a model, its answers to the test questions, and its data for the report."""

import json
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from ..features.read.readings import read_features
from ..features.read.text_options import TextOptions
from ..features.set.feature_set import FeatureSet
from ..measure.answers.evaluation import evaluate
from ..measure.answers.folder import write_json
from ..measure.answers.summary import answer_key
from ..measure.report.data import Arm
from ..measure.report.runs import read_run
from .contents import MODEL, as_messages, read_texts

READINGS_FILE = "readings.json"


def load(path: Path = MODEL) -> tuple[Any, Any]:
    """The lab's model (or a model that was trained from it) and the lab's tokenizer."""
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
    return model, AutoTokenizer.from_pretrained(MODEL)


def model_folder(arm: Path) -> Path:
    """Where the trained model of an arm is kept, beside the folder of its answers."""
    return arm.with_name(f"{arm.name}-model")


def keep(trainer: Any) -> None:
    """Write a trained model and its metrics to the trainer's folder."""
    trainer.save_model()
    trainer.save_state()


def measure(
    arm: Path,
    model_path: Path,
    questions: Sequence[Mapping[str, Any]],
    sampling: Mapping[str, Any],
    seed: int,
    features: Path | None = None,
) -> None:
    """Answer the questions with a model. If features are given, read them on the clean answers of "dev"."""
    model, tokenizer = load(model_path)
    evaluate(model, as_messages(questions), output_dir=arm, tokenizer=tokenizer, seed=seed, **sampling)
    if features is not None:
        texts = [{"text": row["answer"], "lang": row["lang"]} for row in read_texts("dev")]
        feature_set = FeatureSet.from_pretrained(features)
        write_json(
            arm / READINGS_FILE, read_features(model, feature_set, texts, tokenizer, TextOptions(batch_size=64))
        )


def read_arm(arm: Path, label: str, questions: Sequence[Mapping[str, Any]]) -> Arm:
    """Read an arm for the report. Right answers are counted among the questions that have a check."""
    read = read_run(arm, label=label)
    if read is None:
        raise ValueError(f"{arm} holds no evaluation any more. Start the demo again with --overwrite.")
    checks = {(row["id"], row["lang"]): row["check"] for row in questions if row["check"]}
    checked: dict[Hashable, bool] = {
        answer_key(answer): checks[answer["id"], answer["lang"]].casefold() in answer["answer"].casefold()
        for answer in read.answers
        if (answer["id"], answer["lang"]) in checks
    }
    trained = read_run(model_folder(arm)) if model_folder(arm).is_dir() else None
    readings = {}
    if (arm / READINGS_FILE).is_file():
        stored = json.loads((arm / READINGS_FILE).read_text(encoding="utf-8"))
        readings = {name: {group: tuple(each) for group, each in of.items()} for name, of in stored.items()}
    return replace(read, log=trained.log if trained is not None else (), readings=readings, checked=checked)
