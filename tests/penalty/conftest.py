"""Seven trainers that hold features down, as a user writes them, on tiny models and rows of three languages."""

from dataclasses import dataclass

import pytest
import torch
from datasets import Dataset
from transformers import (
    DataCollatorForSeq2Seq,
    Qwen3ForSequenceClassification,
    Trainer,
    TrainingArguments,
)
from trl import (
    DistillationConfig,
    DistillationTrainer,
    DPOConfig,
    DPOTrainer,
    GRPOConfig,
    GRPOTrainer,
    KTOConfig,
    KTOTrainer,
    RewardConfig,
    RewardTrainer,
    RLOOConfig,
    RLOOTrainer,
)

from sae_posttrain import FeaturePenaltyArguments, FeaturePenaltyMixin

from ..trained import ONE_STEP_OF_SGD


@dataclass
class HeldDPOConfig(FeaturePenaltyArguments, DPOConfig):
    pass


@dataclass
class HeldKTOConfig(FeaturePenaltyArguments, KTOConfig):
    pass


@dataclass
class HeldRewardConfig(FeaturePenaltyArguments, RewardConfig):
    pass


@dataclass
class HeldGRPOConfig(FeaturePenaltyArguments, GRPOConfig):
    pass


@dataclass
class HeldRLOOConfig(FeaturePenaltyArguments, RLOOConfig):
    pass


@dataclass
class HeldDistillationConfig(FeaturePenaltyArguments, DistillationConfig):
    pass


@dataclass
class HeldTrainingArguments(FeaturePenaltyArguments, TrainingArguments):
    pass


class HeldDPOTrainer(FeaturePenaltyMixin, DPOTrainer):
    pass


class HeldKTOTrainer(FeaturePenaltyMixin, KTOTrainer):
    pass


class HeldRewardTrainer(FeaturePenaltyMixin, RewardTrainer):
    pass


class HeldGRPOTrainer(FeaturePenaltyMixin, GRPOTrainer):
    pass


class HeldRLOOTrainer(FeaturePenaltyMixin, RLOOTrainer):
    pass


class HeldDistillationTrainer(FeaturePenaltyMixin, DistillationTrainer):
    pass


class HeldTrainer(FeaturePenaltyMixin, Trainer):
    pass


CLASSES = {
    "dpo": (HeldDPOTrainer, HeldDPOConfig, DPOTrainer, DPOConfig),
    "kto": (HeldKTOTrainer, HeldKTOConfig, KTOTrainer, KTOConfig),
    "reward": (HeldRewardTrainer, HeldRewardConfig, RewardTrainer, RewardConfig),
    "grpo": (HeldGRPOTrainer, HeldGRPOConfig, GRPOTrainer, GRPOConfig),
    "rloo": (HeldRLOOTrainer, HeldRLOOConfig, RLOOTrainer, RLOOConfig),
    "distillation": (HeldDistillationTrainer, HeldDistillationConfig, DistillationTrainer, DistillationConfig),
    "trainer": (HeldTrainer, HeldTrainingArguments, Trainer, TrainingArguments),
}
"""For each kind the trainer and config that hold, and those of TRL or transformers behind them."""

GENERATING = ("grpo", "rloo", "distillation")

ROWS = [  # group, prompt, a good answer, a bad one: in bytes all answers are nine tokens long, and the prompts three
    ("en", "one", "open them", "shut them"),
    ("ko", "둘", "여세요", "닫아요"),
    ("zh", "三", "打开它", "关上它"),
    ("en", "fou", "press key", "break key"),
]


def rows_of(kind: str, tokenizer) -> Dataset:
    if kind in GENERATING:
        return Dataset.from_list([{"lang": lang, "prompt": prompt} for lang, prompt, _, _ in ROWS])
    if kind == "kto":
        rows = [
            {"lang": lang, "prompt": prompt, "completion": answer, "label": answer == good}
            for lang, prompt, good, bad in ROWS
            for answer in (good, bad)
        ]
        return Dataset.from_list(rows)
    if kind == "trainer":
        rows = []
        for lang, prompt, good, _ in ROWS:
            asked, answered = tokenizer(prompt)["input_ids"], tokenizer(good)["input_ids"]
            ids = asked + answered
            labels = [-100] * len(asked) + answered
            rows.append({"lang": lang, "input_ids": ids, "attention_mask": [1] * len(ids), "labels": labels})
        return Dataset.from_list(rows)
    rows = [{"lang": lang, "prompt": prompt, "chosen": good, "rejected": bad} for lang, prompt, good, bad in ROWS]
    return Dataset.from_list(rows)


def some_reward(completion_ids, **kwargs) -> list[float]:
    return [(sum(ids) % 7) / 10 for ids in completion_ids]


@pytest.fixture
def make_any_model(make_model):
    """The tiny model of a kind of trainer: reward models have a head of their own."""

    def make(kind: str, seed: int = 0):
        model = make_model(seed)
        if kind != "reward":
            return model
        model.config.num_labels = 1
        torch.manual_seed(seed)
        scoring = Qwen3ForSequenceClassification(model.config)
        scoring.model.load_state_dict(model.model.state_dict())
        return scoring

    return make


@pytest.fixture
def train(make_any_model, make_model, make_features, tokenizer, tmp_path):
    """Train a tiny model with a kind of trainer, for a step of plain SGD or more, and return the trainer."""

    def run(
        kind: str,
        *,
        plain=False,
        classes=None,
        dataset=None,
        eval_dataset=None,
        features="default",
        model=None,
        fit=True,
        arguments=None,
        **kwargs,
    ):
        held, held_config, parent, parent_config = CLASSES[kind]
        trainer, config = classes or ((parent, parent_config) if plain else (held, held_config))
        settings = {
            **ONE_STEP_OF_SGD,
            "per_device_train_batch_size": 4,
            "learning_rate": 0.05,
        }
        extra = {"processing_class": tokenizer}
        if issubclass(trainer, FeaturePenaltyMixin) and issubclass(config, FeaturePenaltyArguments):
            settings["penalty_weight"] = 3.0
            if features is not None:
                extra["feature_set"] = make_features() if features == "default" else features
        if kind in ("dpo", "kto"):
            extra["ref_model"] = make_model()
        if kind in GENERATING:
            settings |= {"max_completion_length": 6, "temperature": 1.0}
        if kind in ("grpo", "rloo"):
            settings["num_generations"] = 2
            settings["beta"] = 0.0
            extra["reward_funcs"] = some_reward
        if kind == "distillation":
            extra["teacher_model"] = make_model(seed=1)
        if kind == "trainer":
            extra["data_collator"] = DataCollatorForSeq2Seq(tokenizer)
        args = config(str(tmp_path / "run"), **{**settings, **kwargs})
        built = trainer(
            **{
                "model": make_any_model(kind) if model is None else model,
                "args": args,
                "train_dataset": rows_of(kind, tokenizer) if dataset is None else dataset,
                "eval_dataset": eval_dataset,
                **extra,
                **(arguments or {}),
            },
        )
        if fit:
            built.train()
        return built

    return run
