"""A tiny model, and a feature along which it says one token for ever."""

import pytest
from datasets import Dataset

from sae_posttrain import FeatureSet, SteeredGRPOConfig, SteeredGRPOTrainer

from ..trained import ON_CPU

PROMPTS = ["a", "one file", "xyz", "keys and more"]
LOOPING = 50
"""Token that the steered rows say."""


@pytest.fixture
def data() -> Dataset:
    return Dataset.from_list([{"prompt": prompt} for prompt in PROMPTS])


@pytest.fixture
def make_loop_feature():
    """The direction of one row of the unembedding at the last block: a strong push makes that token the only one."""

    def make(model, base_model: str = "") -> FeatureSet:
        row = model.lm_head.weight[LOOPING].detach()
        return FeatureSet.from_directions(
            row[None], blocks=[1], names=["loop"], residual_norms=[10.0], base_model=base_model
        )

    return make


def is_looping(ids: list[int], finished: bool) -> bool:
    return not finished and len(ids) >= 4 and set(ids[-4:]) == {LOOPING}


class SeesLoops:
    """-1 for an answer that ends in the looping token, else a little that differs from row to row."""

    sees_repetition = True
    __name__ = "SeesLoops"

    def __call__(self, completion_ids, **kwargs):
        return [-1.0 if set(ids[-4:]) == {LOOPING} else (sum(ids) % 7) / 10 for ids in completion_ids]


@pytest.fixture
def sees_loops() -> SeesLoops:
    return SeesLoops()


@pytest.fixture
def keep_batches():
    """From a trainer, lists that will hold each batch it generates, and the inputs of each of its loss passes."""

    def keep(trainer) -> tuple[list[dict], list[dict]]:
        batches: list[dict] = []
        losses: list[dict] = []
        generate, compute_loss = trainer._generate_and_score_completions, trainer._compute_loss

        def keep_batch(inputs):
            batches.append(generate(inputs))
            return batches[-1]

        def keep_loss(model, inputs):
            losses.append(inputs)
            return compute_loss(model, inputs)

        trainer._generate_and_score_completions, trainer._compute_loss = keep_batch, keep_loss
        return batches, losses

    return keep


@pytest.fixture
def train(make_model, make_loop_feature, tokenizer, data, tmp_path):
    """Train the tiny model for a step or more with plain SGD, and return the trainer."""

    def run(
        trainer=SteeredGRPOTrainer,
        config=SteeredGRPOConfig,
        *,
        model=None,
        rewards=None,
        feature_set="default",
        fault=is_looping,
        fit=True,
        peft_config=None,
        dataset=data,
        eval_dataset=None,
        arguments=None,
        **kwargs,
    ):
        settings = {
            **ON_CPU,
            "per_device_train_batch_size": 8,
            "num_generations": 4,
            "max_completion_length": 12,
            "temperature": 0.5,  # sharp enough for the pushed token to be the only one
            "max_steps": 1,
            "learning_rate": 0.1,
            "optim": "sgd",
            "lr_scheduler_type": "constant",
        }
        if config is SteeredGRPOConfig:
            settings["steer_strength"] = 10.0
        args = config(str(tmp_path / "run"), **{**settings, **kwargs})
        model = make_model() if model is None else model
        extra = {}
        if trainer is not None and issubclass(trainer, SteeredGRPOTrainer):
            if feature_set is not None and config is SteeredGRPOConfig:
                extra["feature_set"] = make_loop_feature(model) if feature_set == "default" else feature_set
            extra["fault"] = fault
        built = trainer(
            model,
            SeesLoops() if rewards is None else rewards,
            args,
            train_dataset=dataset,
            eval_dataset=eval_dataset,
            processing_class=tokenizer,
            peft_config=peft_config,
            **extra,
            **(arguments or {}),
        )
        if fit:
            built.train()
        return built

    return run
