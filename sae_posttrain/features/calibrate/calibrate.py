"""How hard to push: the smallest strength at which steered answers show the fault as often as wanted."""

import logging
import math
import random
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

import torch
from torch import nn

from ...eval_mode import eval_mode
from ...measure.answers.positions import check_length
from ...measure.faults.fault import Fault
from ...measure.faults.loops import find_loop
from ...measure.statistics.intervals import wilson
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
from ..set.feature_set import FeatureSet
from .calibration import Calibration, CalibrationRow, is_far, nearest
from .faults import Judge, judge_of, questions_that_show

logger = logging.getLogger(__name__)

STRENGTHS = tuple(step / 4 for step in range(13))
"""Strengths of the sweep, 0 to 3 median residual norms."""

MAX_HALVINGS = 4
"""How often the step below a strength is halved while its answers are far from the model's own."""


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
    the model itself would write (3 nats a token above the unsteered ones), which is remarked.

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
    are_loops = fault == "repetition"

    def measure(strength: float) -> CalibrationRow:
        row = _measure(answerer, network, tokenizer, questions, sampling, feature_set, strength, judge, are_loops)
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
                if halving > 0 and not is_far(at_reached, rows[0]):
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
        best = nearest(calibration.best)
        logger.warning("Pushing along %s, no strength up to %g reaches %g %%. %s", names, grid[-1], 100 * target, best)
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
    are_loops: bool,
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
    hits = [answer for answer in answers if judge(answer)]
    loops = [find_loop(answer.ids, finished=answer.finished) for answer in hits] if are_loops else []
    periods = [loop.period for loop in loops if loop.period is not None]
    low, high = wilson(len(hits), len(answers))
    return CalibrationRow(
        strength=strength,
        num_answers=len(answers),
        num_hits=len(hits),
        hit_rate=len(hits) / len(answers),
        low=low,
        high=high,
        mean_length=sum(len(answer.ids) for answer in answers) / len(answers),
        loss=mean_answer_loss(model, answers),
        period=statistics.median(periods) if periods else None,
    )
