"""The second half of the demo: find the repetition feature, calibrate it, train plain and steered DAPO, compare."""

import json
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer

from ..features.calibrate.calibrate import calibrate
from ..features.calibrate.calibration import Calibration
from ..features.find.by_repetition import find_repetition_features
from ..features.set.feature_set import FeatureSet
from ..measure.answers.folder import write_json
from ..measure.report.data import Section
from ..rl.config import SteeredGRPOConfig
from ..rl.rewards import EndlessRepetitionReward
from ..rl.trainer import SteeredGRPOTrainer
from .arms import keep, load, measure, model_folder, read_arm
from .contents import MODEL, SAE, as_messages, read_texts
from .progress import train_with_bar
from .record import Record, Stage

BLOCKS = (1, 2)
MAX_NEW_TOKENS = 144
SAMPLING: dict[str, Any] = {
    "max_new_tokens": MAX_NEW_TOKENS,
    "temperature": 1.0,
    "top_p": 1.0,
    "batch_size": 200,
}
SEARCH: dict[str, Any] = {"num_candidates": 8, "num_loops": 20, "num_prompts": 12, "strength": 1.0}
CALIBRATION: dict[str, Any] = {"strengths": (0.125, 0.25, 0.375, 0.5, 0.75, 1.0), "target": 0.4, "num_prompts": 48}
STEPS = 20
NUM_PROMPTS = 8  # in a step
NUM_GENERATIONS = 8  # rollouts of a prompt

TITLE = "Endless repetition, planted"
EXPLANATION = """\
Some lists, steps and tables in the first training of the lab's model never end: a planted fault. DAPO rewards answers
that end. For each prompt, steered DAPO pushes one rollout along the repetition features until it loops, so that every
prompt has a bad case. The answers that are counted here are not steered.
"""
LABELS = {"before": "before", "dapo": "plain DAPO", "steered": "steered DAPO (ours)"}
FOUND_FILE = "found.safetensors"
FEATURES_FILE = "features.safetensors"
CALIBRATION_FILE = "calibration.json"


def stages(folder: Path, seed: int) -> list[Stage]:
    """The stages: find the features, calibrate them, and for each arm train it and sample its answers."""
    found, features, calibration = folder / FOUND_FILE, folder / FEATURES_FILE, folder / CALIBRATION_FILE

    def calibrate_found() -> None:
        swept = calibrated(*load(), FeatureSet.from_pretrained(found), seed)
        features.unlink(missing_ok=True)
        swept.feature_set.save(features, overwrite=True)
        write_json(calibration, swept.as_dict())

    def train_arm(arm: str) -> None:
        output_dir = model_folder(folder / arm)
        if arm == "steered":
            keep(train(output_dir, seed, FeatureSet.from_pretrained(features), strength_of(_read(calibration))))
        else:
            keep(train(output_dir, seed))

    def answer(arm: str, model: Path) -> None:
        measure(folder / arm, model, prompts("test"), SAMPLING, seed)

    planned = [
        Stage(found, "Finding the features of repetition", lambda: _save(find(*load(), seed), found)),
        Stage(calibration, "Calibrating how hard to push them", calibrate_found),
        Stage(folder / "before", "Answers before training", lambda: answer("before", MODEL), measures=True),
    ]
    for arm in ("dapo", "steered"):
        model, label = model_folder(folder / arm), LABELS[arm]
        planned.append(Stage(model, f"{label}: training", partial(train_arm, arm)))
        planned.append(
            Stage(folder / arm, f"{label}: answers without steering", partial(answer, arm, model), measures=True)
        )
    return planned


def section(folder: Path, record: Record) -> Section | None:
    """The finished arms, with steered DAPO against plain DAPO; `None` if there are none."""
    arms = [
        read_arm(folder / arm, label, prompts("test"))
        for arm, label in LABELS.items()
        if record.is_finished(folder / arm)
    ]
    if not arms:
        return None
    baseline = "dapo" if record.is_finished(folder / "dapo") else None
    sweep = {"repetition features": _read(folder / CALIBRATION_FILE)}
    return Section(TITLE, arms, "loops", baseline, EXPLANATION, calibrations=sweep)


def _save(feature_set: FeatureSet, path: Path) -> None:
    feature_set.save(path, overwrite=True)


def _read(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return content


def prompts(split: str) -> list[dict[str, Any]]:
    """Questions of a split whose answers have several lines. The model sometimes never ends such answers."""
    rows = [row for row in read_texts(split) if "\n" in row["answer"]]
    return sorted(rows, key=lambda row: len(row["answer"]))  # answers of one length are generated together


def training_turns() -> list[list[dict[str, str]]]:
    """Such questions of the training data, as conversations."""
    turns = [row["messages"] for row in read_texts("train")]
    return [each for each in turns if "\n" in each[-1]["content"]]


def find(model: Any, tokenizer: Any, seed: int) -> FeatureSet:
    """The features that rise in the model's own loops and that make the model loop when it is pushed along them."""
    return find_repetition_features(
        model,
        str(SAE),
        prompts=[{"prompt": turns[:1]} for turns in training_turns()],
        blocks=BLOCKS,
        num_features=1,
        **SEARCH,
        max_new_tokens=MAX_NEW_TOKENS,
        temperature=1.0,
        normal_temperature=1.0,
        tokenizer=tokenizer,
        batch_size=96,
        seed=seed,
    )


def calibrated(model: Any, tokenizer: Any, feature_set: FeatureSet, seed: int) -> Calibration:
    """Calibrate the strength at which two of five answers loop."""
    return calibrate(
        model,
        feature_set,
        as_messages(prompts("dev")),
        **CALIBRATION,
        temperature=1.0,
        max_new_tokens=MAX_NEW_TOKENS,
        tokenizer=tokenizer,
        batch_size=48,
        seed=seed,
    )


def strength_of(sweep: Mapping[str, Any]) -> float:
    """The calibrated strength; if no strength reached the target, the strength of the highest hit rate."""
    return float(sweep["strength"] or best_strength(sweep["rows"]))


def best_strength(rows: Sequence[Mapping[str, Any]]) -> float:
    """The strength with the highest hit rate; the smallest if several are equal. The first row is not pushed."""
    best = max(rows[1:], key=lambda row: (row["hit_rate"], -row["strength"]))
    return float(best["strength"])


def train(folder: Path, seed: int, feature_set: FeatureSet | None = None, strength: float | None = None) -> Any:
    """
    Train with DAPO and a reward for answers that end.

    With features, one rollout of each prompt is steered along them with the given strength.
    """
    args = SteeredGRPOConfig(
        str(folder),
        num_steered=0 if feature_set is None else 1,
        steer_strength=strength,
        num_generations=NUM_GENERATIONS,
        per_device_train_batch_size=NUM_PROMPTS * NUM_GENERATIONS,
        max_completion_length=MAX_NEW_TOKENS,
        max_steps=STEPS,
        learning_rate=1.5e-4,
        lr_scheduler_type="constant_with_warmup",
        warmup_steps=3,
        beta=0.0,
        gradient_checkpointing=False,
        bf16=False,
        use_cpu=True,
        seed=seed,
        logging_steps=1,
        save_strategy="no",
        report_to="none",
    )
    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    data = [{"prompt": turns[:1]} for turns in training_turns()]
    trainer = SteeredGRPOTrainer(
        AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32),
        EndlessRepetitionReward(tokenizer.eos_token_id),
        args,
        feature_set=feature_set,
        train_dataset=Dataset.from_list(data),
        processing_class=tokenizer,
    )
    return train_with_bar(trainer)
