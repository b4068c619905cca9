"""The penalty reads the rows that are scored, and leaves out where documents begin, whatever the trainer."""

from itertools import groupby

import pytest
import torch
from transformers import DataCollatorForSeq2Seq

from sae_posttrain import SteeredGRPOConfig, SteeredGRPOTrainer
from sae_posttrain.penalty.feature_penalty import FeaturePenalty

from ..trained import logged, weights
from .conftest import ROWS, rows_of
from .test_any_trainer import HeldSteeredConfig, HeldSteeredTrainer, one_batch

pytestmark = pytest.mark.filterwarnings("ignore")  # TRL's notes on tiny batches, greedy settings, deprecations

SIZE = 2
GROUP_OF = {prompt: lang for lang, prompt, _, _ in ROWS}


class SpreadAtTheSecondAttempt:
    """Some prompts' groups have spread from the start, those of the others when they are asked again, if ever."""

    __name__ = "second_attempt"

    def __init__(self, at_once, never=()):
        self.at_once, self.never = set(at_once), set(never)
        self.asked: dict[str, None] = {}  # in order

    def __call__(self, prompts, **kwargs):
        values: list[float] = []
        for prompt, rows in groupby(prompts):
            num_rows = len(list(rows))
            has_spread = prompt not in self.never and (prompt in self.at_once or prompt in self.asked)
            self.asked[prompt] = None
            values += [float(row % SIZE) * has_spread for row in range(num_rows)]
        return values


def sampled(train, mode, reward, **kwargs):
    return train(
        "grpo",
        classes=(HeldSteeredTrainer, HeldSteeredConfig),
        per_device_train_batch_size=kwargs.pop("per_device_train_batch_size", 8),
        num_steered=0,
        dynamic_sampling=mode,
        arguments={"fault": lambda ids, finished: False, "reward_funcs": reward},
        **kwargs,
    )


@pytest.mark.parametrize(
    ("mode", "reward"),
    [
        ("same", SpreadAtTheSecondAttempt({"fou", "둘"})),  # the others come behind them
        ("fresh", SpreadAtTheSecondAttempt({"one"}, never={"三", "둘"})),  # Chinese prompts are replaced
        ("fresh", SpreadAtTheSecondAttempt({"三"}, never={"one", "fou", "둘"})),  # by Chinese ones
    ],
    ids=["reordered", "replaced", "replaced by the target"],
)
def test_groups_are_those_of_the_rows_that_are_scored(train, tokenizer, mode, reward):
    trainer = sampled(train, mode, reward, fit=False)
    trainer.model.train()
    batch = one_batch(trainer)
    prompts = [tokenizer.decode(ids[kept.bool()]) for ids, kept in zip(batch["prompt_ids"], batch["prompt_mask"])]
    expected = [trainer._groups.number(GROUP_OF[prompt]) for prompt in prompts]
    assert batch["group_ids"].tolist() == expected
    first_asked = [GROUP_OF[prompt] for prompt in list(reward.asked)[: len(ROWS)] for _ in range(SIZE)]
    assert [GROUP_OF[prompt] for prompt in prompts] != first_asked  # what the batch was asked for in the beginning


def test_zero_weight_with_dynamic_sampling_trains_exactly_like_without_a_penalty(train):
    runs = []
    for classes in ((HeldSteeredTrainer, HeldSteeredConfig), (SteeredGRPOTrainer, SteeredGRPOConfig)):
        held = classes[0] is HeldSteeredTrainer
        runs.append(
            train(
                "grpo",
                classes=classes,
                per_device_train_batch_size=8,
                num_steered=0,
                dynamic_sampling="fresh",
                arguments={
                    "fault": lambda ids, finished: False,
                    "reward_funcs": SpreadAtTheSecondAttempt({"one"}, never={"둘"}),
                },
                **({"penalty_weight": 0.0} if held else {"features": None}),
                max_steps=2,
            )
        )
    assert torch.equal(weights(runs[0]), weights(runs[1]))
    assert len(logged(runs[0], "sae/penalty")) == 2


@pytest.mark.parametrize("positions", ["response", "predicting"])
@pytest.mark.parametrize("side", ["left", "right"])
def test_first_token_of_a_padded_row_is_never_read(train, tokenizer, monkeypatch, side, positions):
    """Rows without a prompt, labelled from their first token on."""
    monkeypatch.setattr(tokenizer, "padding_side", side)
    lengths = (2, 4, 5, 7)

    def cut(row, index):
        ids = row["input_ids"][: lengths[index]]
        return {"input_ids": ids, "labels": ids, "attention_mask": [1] * len(ids)}

    rows = rows_of("trainer", tokenizer).map(cut, with_indices=True)
    collator = DataCollatorForSeq2Seq(tokenizer)
    trainer = train(
        "trainer", dataset=rows, penalty_positions=positions, fit=False, arguments={"data_collator": collator}
    )
    masks = []
    own_call = FeaturePenalty.__call__

    def record(penalty, values, ids, mask):
        masks.append(mask)
        return own_call(penalty, values, ids, mask)

    monkeypatch.setattr(FeaturePenalty, "__call__", record)
    batch = one_batch(trainer)
    trainer.compute_loss(trainer.model, batch)
    real = batch["attention_mask"].bool()
    first = real & (real.cumsum(dim=1) == 1)
    assert not (masks[0] & (first | ~real)).any()
    left_out = 2 if positions == "predicting" else 1
    assert masks[0].sum() == sum(lengths) - left_out * len(lengths)


@pytest.mark.parametrize("kind", ["dpo", "kto", "reward", "trainer"])
def test_answer_without_letters_is_counted_and_never_penalised(train, tokenizer, caplog, kind):
    def number(row, index):
        if index:
            return row
        if kind == "trainer":
            ids = tokenizer("12 + 345 ")["input_ids"]
            return {"input_ids": ids, "labels": ids, "attention_mask": [1] * len(ids)}
        return {**row, "completion" if kind == "kto" else "chosen": "12 + 345 "}

    rows = rows_of(kind, tokenizer).map(number, with_indices=True).remove_columns("lang")
    with caplog.at_level("WARNING"):
        zero = train(kind, dataset=rows, penalty_weight=0.0)
    assert "'no letters': 1" in caplog.text
    plain = train(kind, plain=True, dataset=rows)
    assert torch.equal(weights(zero), weights(plain))
    assert logged(zero, "sae/without_group")[0] > 0
    assert not torch.equal(weights(train(kind, dataset=rows)), weights(plain))


class Environment:
    def reset(self, **kwargs):
        return "one"


def test_environment_without_rows_is_told_to_get_some(train):
    rows = {"train_dataset": None, "environment_factory": Environment}
    with pytest.raises(ValueError, match="no `train_dataset`.*Pass a `train_dataset` with a column `prompt`"):
        train("grpo", fit=False, arguments=rows)
