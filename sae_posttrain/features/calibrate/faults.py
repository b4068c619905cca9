"""Faults that steering can be calibrated to: what makes an answer a bad one."""

from collections.abc import Callable, Sequence
from typing import Any

from ...measure.faults.fault import Fault, is_endless
from ...measure.faults.loops import MIN_TOKENS
from ...measure.faults.scripts import can_measure
from ...measure.faults.switching import find_switches
from ..find.answers import Answer, Question

FAULTS = ("repetition", "language")
"""Faults that are known by name."""

Judge = Callable[[Answer], bool]
"""Whether an answer to a known question is faulty."""


def judge_of(fault: str | Fault, target_lang: str | None, tokenizer: Any, max_new_tokens: int) -> tuple[Judge, str]:
    """
    What tells the fault, and its name for the records.

    Args:
        fault (`str` or `Callable[[Sequence[int], bool], bool]`):
            `"repetition"`: an endless loop. `"language"`: a switch into `target_lang` that nothing excuses. Or what
            tells another one, from an answer's token ids and whether it ended by itself.
        target_lang (`str`, *optional*):
            For `"language"` only: the language that answers switch into.
        tokenizer (`PreTrainedTokenizerBase`):
            The model's.
        max_new_tokens (`int`):
            Longest answer.

    Raises:
        ValueError: If there is no such fault, `target_lang` is missing or without use, or no answer is long enough.
    """
    if fault == "language":
        if target_lang is None:
            raise ValueError(
                "The fault 'language' needs the language that answers switch into: `target_lang`, e.g. 'zh'."
            )
        return lambda answer: _switches(answer, target_lang, tokenizer), f"switch into {target_lang}"
    if target_lang is not None:
        raise ValueError(f"`target_lang` belongs to the fault 'language', the fault asked for is {fault!r}.")
    if fault == "repetition":
        if max_new_tokens < MIN_TOKENS:
            raise ValueError(
                f"A loop is {MIN_TOKENS} tokens or longer, `max_new_tokens` is {max_new_tokens}: no answer could show "
                "one. Raise it, or give another `fault`."
            )
        return lambda answer: is_endless(answer.ids, answer.finished), "endless loop"
    if isinstance(fault, str):
        raise ValueError(f"Unknown fault {fault!r}. Known: {', '.join(FAULTS)}, or a function of your own.")
    name = getattr(fault, "__name__", type(fault).__name__)
    return lambda answer: bool(fault(answer.ids, answer.finished)), name


def questions_that_show(questions: Sequence[Question], target_lang: str) -> list[Question]:
    """
    The questions whose answers can show a switch into a language: those of languages with another script.

    Raises:
        ValueError: If there is none.
    """
    chosen = [each for each in questions if each.source is not None and can_measure(each.source.lang, target_lang)]
    if not chosen:
        langs = sorted({each.source.lang for each in questions if each.source is not None})
        raise ValueError(
            f"No prompt can show a switch into {target_lang!r}: their answers are in {', '.join(langs)}, which is the "
            "same language or shares its script. Give prompts in other languages."
        )
    return chosen


def _switches(answer: Answer, target_lang: str, tokenizer: Any) -> bool:
    source = answer.question.source
    assert source is not None
    text = tokenizer.decode(list(answer.ids), skip_special_tokens=True)
    found = find_switches(
        text, lang=source.lang, prompt=source.text, reference=source.reference, target_lang=target_lang
    )
    return bool(found.unexpected)
