"""How hard to push: the smallest strength at which steered answers show the fault as often as wanted."""

import logging
import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from typing import Any

import torch
from torch import nn

from ...eval_mode import eval_mode
from ...measure.answers.positions import check_length
from ...measure.faults.fault import Fault
from ...measure.statistics.intervals import wilson
from ...tables import align
from ..find.answers import (
    Prompts,
    Question,
    Sampling,
    answer_all,
    describe_questions,
    mean_answer_loss,
    name_unused_settings,
    read_questions,
)
from ..find.engine_answers import EngineAnswers, answering, require_engine
from ..read.loading import load_model_and_tokenizer
from ..read.texts import check_prompts
from ..set.calibrated_for import calibrated_features
from ..set.feature_set import FeatureSet
from .faults import Judge, judge_of, questions_that_show

logger = logging.getLogger(__name__)

STRENGTHS = tuple(step / 4 for step in range(13))
"""Strengths of the sweep, 0 to 3 median residual norms."""

FAR = 3.0
"""
Nats per token above the unsteered answers from which on steered ones are called unlike the model's own. Each token is
then on average e³ ≈ 20 times less probable than what the model samples, which leaves it outside a nucleus of 0.95: the
model would hardly ever write it, and training on it teaches nothing about answers that occur.
"""

MAX_HALVINGS = 4
"""How often the step below a strength is halved while its answers are far from the model's own."""


@dataclass(frozen=True)
class CalibrationRow:
    """
    What one strength does.

    Attributes:
        strength (`float`):
            In median residual norms.
        num_answers, num_hits (`int`):
            Answers, and those that show the fault.
        hit_rate, low, high (`float`):
            Their share, with its 95 % Wilson interval.
        mean_length (`float`):
            Tokens of an answer.
        loss (`float`):
            Mean loss per token (nats) of the steered answers under the model as it is, not steered and without
            temperature; NaN if all answers are empty.
    """

    strength: float
    num_answers: int
    num_hits: int
    hit_rate: float
    low: float
    high: float
    mean_length: float
    loss: float


@dataclass(frozen=True)
class Calibration:
    """
    A sweep over the strength.

    Attributes:
        strength (`float` or `None`):
            The smallest that reaches the target; `None` if none does.
        target (`float`):
            Share of steered answers wanted to show the fault.
        rows (`tuple[CalibrationRow, ...]`):
            What was measured, by rising strength, from 0.
        settings (`dict`):
            How the answers were sampled.
        feature_set ([`FeatureSet`]):
            The features, with all this in `notes["calibration"]`.
    """

    strength: float | None
    target: float
    rows: tuple[CalibrationRow, ...]
    settings: dict[str, Any]
    feature_set: FeatureSet

    @property
    def best(self) -> CalibrationRow:
        """The row of the highest rate; of equal ones that of the smallest strength."""
        return max(self.rows, key=lambda row: (row.hit_rate, -row.strength))

    @property
    def chosen(self) -> CalibrationRow | None:
        """The row of the strength; `None` if there is none."""
        return next((row for row in self.rows if row.strength == self.strength), None)

    @property
    def remark(self) -> str:
        """What is to be known of the chosen strength if its answers are far from the model's own; else empty."""
        row = self.chosen
        if row is None or not _is_far(row, self.rows[0]):
            return ""
        missed = [other for other in self.rows if other.strength < row.strength]
        below = missed[-1]
        text = (
            f"At strength {row.strength:g} the answers have {row.loss:.2f} nats a token under the model as it is, "
            f"{self.rows[0].loss:.2f} without steering: text that it would hardly write, and little to learn from."
        )
        steps = [below.strength + (row.strength - below.strength) * step / 4 for step in (1, 2, 3)]
        near = [other for other in missed if not _is_far(other, self.rows[0]) and other.num_hits > 0]
        if row.strength - below.strength > STRENGTHS[1] / 2:
            text += (
                f" The smallest strength that reaches {100 * self.target:g} % lies above {below.strength:g} "
                f"({100 * below.hit_rate:.0f} %): try {', '.join(f'{step:g}' for step in steps)}."
            )
        if near:
            best = max(near, key=lambda other: (other.hit_rate, -other.strength))
            text += f" At {best.strength:g}, {100 * best.hit_rate:.0f} % are faulty with {best.loss:.2f} nats a token."
        elif row.strength - below.strength <= STRENGTHS[1] / 2:
            text += " It is the smallest that reaches the target; another feature may do it with likelier text."
        return text

    def as_dict(self) -> dict[str, Any]:
        """Everything but the feature set, for JSON; a loss that was not measured is `None`."""
        rows = [
            {
                key: None if isinstance(value, float) and math.isnan(value) else value
                for key, value in asdict(row).items()
            }
            for row in self.rows
        ]
        return {
            "strength": self.strength,
            "target": self.target,
            "settings": self.settings,
            "features": calibrated_features(self.feature_set),
            "rows": rows,
            "remark": self.remark,
        }

    def __str__(self) -> str:
        header = ["strength", "answers", "faulty %", "tokens", "loss per token"]
        table = [header] + [
            [
                f"{row.strength:.3f}",
                str(row.num_answers),
                f"{100 * row.hit_rate:.1f} [{100 * row.low:.1f}, {100 * row.high:.1f}]",
                f"{row.mean_length:.0f}",
                f"{row.loss:.2f}",
            ]
            for row in self.rows
        ]
        lines = align(table)
        verdict = (
            f"Strength {self.strength:g} is the smallest measured at which {100 * self.target:g} % are faulty."
            if self.strength is not None
            else f"No strength reaches {100 * self.target:g} %. {_nearest(self.best)}"
        )
        names = ", ".join(self.feature_set.names)
        return "\n".join(
            [
                f"Pushing along {names}, in median residual norms:",
                "",
                *lines,
                "",
                "loss per token: of the steered answers, under the model as it is.",
                verdict,
                *([self.remark] if self.remark else []),
            ]
        )


def _is_far(row: CalibrationRow, unsteered: CalibrationRow) -> bool:
    return row.loss - unsteered.loss > FAR  # not where one of them was not measured: NaN compares as false


def _nearest(best: CalibrationRow) -> str:
    if best.num_hits == 0:
        return "No answer was faulty at any strength."
    return f"The best is {100 * best.hit_rate:.1f} %, at {best.strength:g}."


class FaultyWithoutSteering(ValueError):
    """Without steering the answers show the fault as often as wanted already."""


def calibrate(
    model: nn.Module | str,
    feature_set: FeatureSet,
    prompts: Prompts,
    *,
    strengths: Sequence[float] | None = None,
    target: float = 0.8,
    fault: str | Fault = "repetition",
    target_lang: str | None = None,
    group_column: str = "lang",
    temperature: float = 1.0,
    top_p: float = 1.0,
    max_new_tokens: int = 256,
    num_prompts: int = 64,
    tokenizer: Any = None,
    chat_template_kwargs: Mapping[str, Any] | None = None,
    batch_size: int = 32,
    seed: int = 0,
    allow_base_model: str | None = None,
    engine: str | EngineAnswers = "transformers",
    engine_kwargs: Mapping[str, Any] | None = None,
) -> Calibration:
    """
    Sweep the steering strength, and find the smallest at which the steered answers show the fault.

    The same prompts are answered at each strength, all features of the set pushed at once, from the last position of
    the prompt on. The sweep ends one step behind the first strength that reaches the target. Without `strengths`, the
    step below that one is halved once and its middle measured too; further, as long as the answers are far from what
    the model itself would write ([`FAR`] nats a token above the unsteered ones), which is remarked.

    Sample as the later training does: a strength that works at a low temperature may do nothing at a high one. TRL's
    GRPO samples at temperature 1.0 and top-p 1.0 unless told otherwise, with up to `max_completion_length` new tokens.

    Args:
        model (`torch.nn.Module` or `str`):
            A causal language model, or its path or Hub id.
        feature_set ([`FeatureSet`]):
            Directions with residual norms: features that were found, or controls.
        prompts (`str`, `os.PathLike` or iterable):
            JSON or JSONL file, rows with `prompt` or `messages`, texts, or lists of token ids. Text goes to the model
            as it is, messages through the chat template, as in the later training. For the fault `"language"` each
            row names the language of its answer.
        strengths (`Sequence[float]`, *optional*):
            Strengths to try, in median residual norms, rising. By default 0 to 3 in steps of 0.25. 0 is always
            measured.
        target (`float`, *optional*, defaults to `0.8`):
            Share of steered answers that shall show the fault.
        fault (`str` or `Callable[[Sequence[int], bool], bool]`, *optional*, defaults to `"repetition"`):
            `"repetition"`: the answer loops endlessly, `find_loop(...).endless`. `"language"`: it switches into
            `target_lang` and nothing excuses it, `find_switches(...).unexpected`. Or a function of your own: whether
            an answer is faulty, from its token ids and whether it ended by itself.
        target_lang (`str`, *optional*):
            For the fault `"language"`: the language that answers shall switch into. Prompts whose answers cannot show
            it are left out.
        group_column (`str`, *optional*, defaults to `"lang"`):
            For the fault `"language"`: column with the language of the answer.
        temperature, top_p (`float`, *optional*, defaults to `1.0`):
            How the answers are sampled; temperature 0 is greedy.
        max_new_tokens (`int`, *optional*, defaults to `256`):
            Longest answer.
        num_prompts (`int`, *optional*, defaults to `64`):
            Prompts that are used, drawn by the seed; each is answered once at each strength.
        tokenizer (`PreTrainedTokenizerBase`, *optional*):
            The model's, loaded from its folder if left out.
        chat_template_kwargs (`Mapping[str, Any]`, *optional*):
            Further variables of the chat template, as the later training has them.
        batch_size (`int`, *optional*, defaults to `32`):
            Answers generated at once.
        seed (`int`, *optional*, defaults to `0`):
            Seed of the draw of prompts and of the sampling, the same at each strength.
        allow_base_model (`str`, *optional*):
            Name of a model, other than the one the features were found on, that they may push.
        engine (`"transformers"` or `"vllm"`, *optional*, defaults to `"transformers"`):
            What samples the answers. With vLLM the model is given by its folder or id, and is loaded twice: the
            loss of the
            answers is read with transformers. A large `batch_size` then pays.
        engine_kwargs (`Mapping[str, Any]`, *optional*):
            Further arguments of `vllm.LLM`. On a GPU the engine takes 0.6 of the memory unless
            `{"gpu_memory_utilization": …}` says otherwise.

    Returns:
        [`Calibration`]: the strength, the sweep, and the feature set that carries the strength to training.

    Raises:
        ImportError: If vLLM is asked for and not installed.
        ValueError: If a setting is out of range, the features do not belong to the model, or the fault is as frequent
            as wanted without steering; if a prompt's language is needed and not known.
    """
    if not 0 < target <= 1:
        raise ValueError(f"`target` is a share of the answers, above 0 and up to 1; got {target}.")
    if num_prompts < 1:
        raise ValueError(f"`num_prompts` must be 1 or more, got {num_prompts}.")
    grid = _grid(strengths)
    sampling = Sampling(max_new_tokens, temperature, top_p, seed, batch_size)
    judge_of(fault, target_lang, None, max_new_tokens)  # what is wrong with these is said before a model is loaded
    check_prompts(prompts)
    require_engine(engine, model, engine_kwargs)
    network, tokenizer = load_model_and_tokenizer(model, tokenizer)
    feature_set.check_model(network, allow_base_model=allow_base_model, tokenizer=tokenizer)
    judge, fault_name = judge_of(fault, target_lang, tokenizer, max_new_tokens)
    questions = read_questions(
        prompts,
        tokenizer,
        chat_template_kwargs=chat_template_kwargs,
        group_column=None if target_lang is None else group_column,
    )
    if target_lang is not None:
        questions = questions_that_show(questions, target_lang)
    questions = random.Random(seed).sample(questions, min(num_prompts, len(questions)))
    check_length(network, max(len(question.prompt) for question in questions), max_new_tokens)

    rows: list[CalibrationRow] = []

    def measure(strength: float) -> CalibrationRow:
        row = _measure(answerer, network, tokenizer, questions, sampling, feature_set, strength, judge)
        rows.append(row)
        return row

    reached: float | None = None
    of_engine: dict[str, Any] = {"batch_size": batch_size, "engine_kwargs": engine_kwargs}
    with eval_mode(network), answering(engine, model, network, tokenizer, [feature_set], **of_engine) as answerer:
        if measure(0.0).hit_rate >= target:
            raise FaultyWithoutSteering(
                f"Without steering {100 * rows[0].hit_rate:.0f} % of the answers are faulty already, "
                f"{100 * target:g} % were wanted: there is nothing to provoke. Sample as the training does; greedy "
                "answers loop most."
            )
        for strength in grid:
            hit = measure(strength).hit_rate >= target
            if reached is not None:
                break
            reached = strength if hit else None
        if reached is not None and strengths is None:
            below = max([0.0, *(strength for strength in grid if strength < reached)])
            for halving in range(MAX_HALVINGS):
                at_reached = next(row for row in rows if row.strength == reached)
                if halving > 0 and not _is_far(at_reached, rows[0]):
                    break
                middle = (below + reached) / 2
                below, reached = (below, middle) if measure(middle).hit_rate >= target else (middle, reached)
    rows.sort(key=lambda row: row.strength)
    settings = {
        "temperature": temperature,
        "top_p": top_p,
        "max_new_tokens": max_new_tokens,
        "num_prompts": len(questions),
        "seed": seed,
        "fault": fault_name,
        "engine": engine if isinstance(engine, str) else "vllm",
        **describe_questions(tokenizer, questions, chat_template_kwargs),
        "unused_generation_settings": name_unused_settings(network),
    }
    calibration = Calibration(reached, target, tuple(rows), settings, feature_set)
    notes = feature_set.notes | {"calibration": calibration.as_dict()}
    if reached is None:
        names = ", ".join(feature_set.names)
        nearest = _nearest(calibration.best)
        logger.warning(
            "Pushing along %s, no strength up to %g reaches %g %%. %s", names, grid[-1], 100 * target, nearest
        )
    return replace(calibration, feature_set=replace(feature_set, notes=notes))


def _grid(strengths: Sequence[float] | None) -> list[float]:
    """The strengths to try, without 0."""
    given = list(STRENGTHS if strengths is None else strengths)
    rising = all(one < other for one, other in pairwise(given))
    if not given or not rising or not all(math.isfinite(each) and each >= 0 for each in given):
        raise ValueError(f"`strengths` must be numbers of 0 or more, rising; got {given}.")
    grid = [float(each) for each in given if each > 0]
    if not grid:
        raise ValueError("`strengths` holds only 0, at which nothing is pushed.")
    return grid


def _measure(
    answerer: nn.Module | EngineAnswers,
    model: nn.Module,
    tokenizer: Any,
    questions: Sequence[Question],
    sampling: Sampling,
    feature_set: FeatureSet,
    strength: float,
    judge: Judge,
) -> CalibrationRow:
    answers = answer_all(
        answerer,
        tokenizer,
        questions,
        sampling,
        feature_set=feature_set,
        strength=torch.full((len(questions), len(feature_set)), strength),
        description=f"Strength {strength:g}",
    )
    hits = sum(judge(answer) for answer in answers)
    low, high = wilson(hits, len(answers))
    return CalibrationRow(
        strength=strength,
        num_answers=len(answers),
        num_hits=hits,
        hit_rate=hits / len(answers),
        low=low,
        high=high,
        mean_length=sum(len(answer.ids) for answer in answers) / len(answers),
        loss=mean_answer_loss(model, answers),
    )
