"""The second half of the demo: find the repetition feature, calibrate it, train plain and steered DAPO, compare."""

from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer

from ..features.calibrate import Calibration, calibrate
from ..features.feature_set import FeatureSet
from ..features.repetition import find_repetition_features
from ..rl.config import SteeredGRPOConfig
from ..rl.rewards import EndlessRepetitionReward
from ..rl.trainer import SteeredGRPOTrainer
from .contents import MODEL, SAE, as_messages, read_texts
from .progress import train_with_bar

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
GROUPS = 8  # prompts in a step
GROUP_SIZE = 8

EXPLANATION = """\
A part of the lists, steps and tables that the lab's model first saw never end: a fault that was planted. DAPO rewards
answers that end. In each group of rollouts of steered DAPO one is pushed along the repetition features until it loops,
so that every group holds a bad case. The answers that are counted here are not steered.
"""


def prompts(split: str) -> list[dict[str, Any]]:
    """Questions of a split whose answers have several lines: those that the model sometimes never ends."""
    rows = [row for row in read_texts(split) if "\n" in row["answer"]]
    return sorted(rows, key=lambda row: len(row["answer"]))  # answers of one length are generated together


def training_turns() -> list[list[dict[str, str]]]:
    """The same of the training data, as conversations."""
    turns = [row["messages"] for row in read_texts("train")]
    return [each for each in turns if "\n" in each[-1]["content"]]


def find(model: Any, tokenizer: Any, seed: int) -> FeatureSet:
    """The features that rise in the model's own loops, and whose push makes it loop."""
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
    """The strength at which two of five answers loop."""
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


def best_push(calibration: Calibration) -> float:
    """The strength of the highest hit rate; of equal ones the smallest."""
    return max(calibration.rows[1:], key=lambda row: (row.hit_rate, -row.strength)).strength


def train(folder: Path, seed: int, calibration: Calibration | None = None) -> Any:
    """
    DAPO with a reward for answers that end; with calibrated features, one rollout of each group is steered along them,
    at the strength of the highest hit rate where none reached the target.
    """
    args = SteeredGRPOConfig(
        str(folder),
        num_steered=0 if calibration is None else 1,
        steer_strength=None if calibration is None else calibration.strength or best_push(calibration),
        num_generations=GROUP_SIZE,
        per_device_train_batch_size=GROUPS * GROUP_SIZE,
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
        feature_set=None if calibration is None else calibration.feature_set,
        train_dataset=Dataset.from_list(data),
        processing_class=tokenizer,
    )
    return train_with_bar(trainer)
