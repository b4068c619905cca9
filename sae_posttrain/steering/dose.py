"""A dose curve: what rising strength does to the faults, to the language, and to the loss on text."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from ..eval_mode import eval_mode
from ..features.find.answers import Answer, Question, Sampling, answer_all, mean_answer_loss
from ..features.set.feature_set import FeatureSet
from ..hooks.steer import steer
from ..measure.answers.positions import check_length
from ..measure.answers.summary import summarise
from ..tables import align
from .pushing import chosen_features
from .side_by_side import answer_settings, judge_all
from .strengths import describe_strengths

OWN_ANSWERS = "the plain answers"

RATES: dict[str, Callable[[Mapping[str, Any]], Mapping[str, Any] | None]] = {
    "endless": lambda overall: overall["endless"],
    "switched": lambda overall: overall["unexpected"] and overall["unexpected"]["1"],
    "right language": lambda overall: overall["right_language"],
}
"""The rates of a dose curve, from a summary of answers: endless loops, unexpected switches, right language."""


@dataclass(frozen=True)
class DoseRow:
    """
    What one strength does.

    Attributes:
        strength (`float`):
            The step of the sweep, by which the strengths are multiplied.
        rates (`dict[str, Mapping | None]`):
            By name in [`RATES`]: `count`, `n`, `rate`, and the 95 % interval from `low` to `high`; `None` if no
            answer can show it.
        mean_tokens (`float`):
            Tokens of an answer.
        loss (`float`):
            Mean loss per token (nats) of the steered model on the held-out text.
    """

    strength: float
    rates: dict[str, Mapping[str, Any] | None]
    mean_tokens: float
    loss: float


@dataclass(frozen=True)
class DoseCurve:
    """
    A sweep over the strength.

    Attributes:
        weights (`dict[str, float]`):
            Strength of each named feature at a step of 1.
        rows (`tuple[DoseRow, ...]`):
            What was measured, by rising step.
        loss_of (`str`):
            What the loss was measured on.
        settings (`dict`):
            How the answers were sampled.
    """

    weights: dict[str, float]
    rows: tuple[DoseRow, ...]
    loss_of: str
    settings: dict[str, Any]

    def as_dict(self) -> dict[str, Any]:
        """Everything, for JSON; a loss that was not measured is `None`."""
        rows = [
            {
                "strength": row.strength,
                **{name.replace(" ", "_"): rate for name, rate in row.rates.items()},
                "mean_tokens": row.mean_tokens,
                "loss": None if math.isnan(row.loss) else row.loss,
            }
            for row in self.rows
        ]
        return {"weights": self.weights, "settings": self.settings, "loss_of": self.loss_of, "rows": rows}

    @property
    def head(self) -> list[str]:
        """Names of the columns."""
        return ["strength", *(f"{name} %" for name in RATES), "tokens", "loss"]

    def __str__(self) -> str:
        table = [self.head]
        for row in self.rows:
            cells = [_with_interval(row.rates[name]) for name in RATES]
            table.append([f"{row.strength:g}", *cells, f"{row.mean_tokens:.0f}", f"{row.loss:.3f}"])
        num, unit = self.settings["num_prompts"], self.settings["unit"]
        return "\n".join(
            [
                f"{num} answer{'s' * (num != 1)} at each strength, times {describe_strengths(self.weights)} "
                f"({'median residual norms' if unit == 'norm' else 'raw units'}):",
                "",
                *align(table),
                "",
                "endless: loops up to where they were cut; switched: another script, and nothing excuses it.",
                f"loss: nats per token of the steered model on {self.loss_of}.",
            ]
        )


def dose_curve(
    model: nn.Module,
    tokenizer: Any,
    feature_set: FeatureSet,
    steps: Sequence[float],
    questions: Sequence[Question],
    sampling: Sampling,
    *,
    weights: Mapping[str, float] | None = None,
    texts: Sequence[str] | None = None,
    max_length: int = 256,
    unit: str = "norm",
    positions: str = "generated",
    target_lang: str | None = None,
    allow_base_model: str | None = None,
) -> DoseCurve:
    """
    Answer the same questions at each strength, and measure the loss on a held-out text there.

    Args:
        model (`torch.nn.Module`), tokenizer (`PreTrainedTokenizerBase`):
            A causal language model and its tokenizer.
        feature_set ([`FeatureSet`]):
            The features.
        steps (`Sequence[float]`):
            Strengths to try. 0 is not steered.
        questions (`Sequence[Question]`):
            What to answer, each with a language ([`read_asked`]).
        sampling ([`Sampling`]):
            How the answers are sampled, the same at each strength.
        weights (`Mapping[str, float]`, *optional*):
            What each step is multiplied by, by name of the feature; by default 1 for every feature of the set.
        texts (`Sequence[str]`, *optional*):
            Held-out texts, whose loss is measured with every position pushed. By default it is measured on the plain
            answers to the questions.
        max_length (`int`, *optional*, defaults to `256`):
            Tokens kept of each text.
        unit, positions, allow_base_model:
            As in [`steer`].
        target_lang (`str`, *optional*):
            Switches into this language count; by default into any other script.

    Raises:
        ValueError: If the features do not belong to the model, a strength is not usable, a prompt and its answer do
            not fit the model, or no text has two tokens.
    """
    if not steps or not all(math.isfinite(step) for step in steps):
        raise ValueError(f"The strengths of a sweep must be finite numbers, at least one; got {list(steps)}.")
    weights = dict(weights or dict.fromkeys(feature_set.names, 1.0))
    chosen, weight = chosen_features(feature_set, weights, unit)
    feature_set.check_model(model, allow_base_model=allow_base_model, tokenizer=tokenizer)
    check_length(model, max(len(question.prompt) for question in questions), sampling.max_new_tokens)
    held_out = None if texts is None else _as_answers(texts, tokenizer, max_length)
    rows = []
    with eval_mode(model):
        if held_out is None:
            held_out = answer_all(model, tokenizer, questions, sampling, description="plain")
        for step in sorted(steps):
            pushed: dict[str, Any] = {}
            if step:
                strength = (step * weight).expand(len(questions), -1)
                pushed = {"feature_set": chosen, "strength": strength, "positions": positions}
            answers = answer_all(model, tokenizer, questions, sampling, description=f"strength {step:g}", **pushed)
            overall = summarise(judge_all(answers, tokenizer, target_lang))["overall"]
            rates = {name: rate(overall) for name, rate in RATES.items()}
            if step and any(answer.ids for answer in held_out):
                with steer(model, chosen, step * weight, positions="all"):
                    loss = mean_answer_loss(model, held_out)
            else:
                loss = mean_answer_loss(model, held_out)
            rows.append(DoseRow(float(step), rates, overall["mean_tokens"], loss))
    settings = answer_settings(questions, sampling, unit=unit, positions=positions, target_lang=target_lang)
    loss_of = OWN_ANSWERS if texts is None else f"{len(held_out)} held-out text{'s' * (len(held_out) != 1)}"
    return DoseCurve(weights, tuple(rows), loss_of, settings)


def _as_answers(texts: Sequence[str], tokenizer: Any, max_length: int) -> list[Answer]:
    """Texts as answers to their own first token, of which the loss is measured."""
    found = []
    for text in texts:
        ids = tokenizer(text)["input_ids"][:max_length]
        if len(ids) > 1:
            found.append(Answer(Question((ids[0],), ()), tuple(ids[1:]), False))
    if not found:
        raise ValueError("No held-out text has two tokens or more: there is no loss to measure.")
    return found


def _with_interval(rate: Mapping[str, Any] | None) -> str:
    if rate is None:
        return "-"
    return f"{100 * rate['rate']:.1f} [{100 * rate['low']:.1f}, {100 * rate['high']:.1f}]"


def steps_between(low: float, high: float, num: int) -> list[float]:
    """
    Equally spaced strengths from `low` to `high`.

    Raises:
        ValueError: If there are fewer than 2, or `low` is not below `high`.
    """
    if num < 2 or num != int(num) or not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise ValueError(
            f"`sweep` takes the lowest strength, the highest, and how many (2 or more), such as -2 2 9; got {low:g} "
            f"{high:g} {num:g}."
        )
    return [round(float(step), 6) + 0.0 for step in torch.linspace(low, high, int(num), dtype=torch.float64)]
