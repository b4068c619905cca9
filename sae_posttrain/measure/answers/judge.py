"""Judge one answer: foreign characters, its language, and its loop."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from ..faults.line_language import line_languages, suspects_of
from ..faults.loops import find_loop
from ..faults.scripts import can_measure
from ..faults.switching import find_switches, right_language
from .prompts import Prompt

_LOOP_RECORD = ("endless", "loop_any", "near_loop", "onset", "period", "span")
"""Fields of a [`Loop`] that are kept in a line of `answers.jsonl`."""


def judge_answer(
    prompt: Prompt,
    answer: str,
    ids: Sequence[int],
    finished: bool,
    *,
    sample: int = 0,
    target_lang: str | None = None,
    lid_languages: Sequence[str] | None = None,
    think_opened: bool = False,
) -> dict[str, Any]:
    """
    What is found in an answer, in the form of a line of `answers.jsonl`.

    Args:
        prompt ([`Prompt`]):
            The prompt, with the language that the answer should be in.
        answer (`str`):
            Text of the answer.
        ids (`Sequence[int]`):
            Its token ids, without the end token.
        finished (`bool`):
            Whether it ended by itself.
        sample (`int`, *optional*, defaults to `0`):
            Number of the answer among those to this prompt.
        target_lang (`str`, *optional*):
            Switches into this language count; `None` counts every script that the answer's language does not use.
        lid_languages (`Sequence[str]`, *optional*):
            Languages to identify in the lines of the answer.
        think_opened (`bool`, *optional*, defaults to `False`):
            Whether the prompt has opened the thinking part already.
    """
    loop = find_loop(ids, finished=finished)
    judged: dict[str, Any] = {
        "id": prompt.id,
        "sample": sample,
        "lang": prompt.lang,
        "prompt": prompt.text,
        "answer": answer,
        "num_tokens": len(ids),
        "finished": finished,
        "any": None,
        "unexpected": None,
        "num_any": None,
        "num_unexpected": None,
        "num_unexpected_in_think": None,
        "num_replacement_chars": answer.count("\ufffd"),
        "right_language": right_language(answer, lang=prompt.lang, think_opened=think_opened),
        "spans": [],
        "loop": {name: getattr(loop, name) for name in _LOOP_RECORD},
    }
    if can_measure(prompt.lang, target_lang):
        switches = find_switches(
            answer,
            lang=prompt.lang,
            prompt=prompt.text,
            reference=prompt.reference,
            target_lang=target_lang,
            think_opened=think_opened,
        )
        judged.update(
            any=switches.any,
            unexpected=switches.unexpected,
            num_any=switches.num_any,
            num_unexpected=switches.num_unexpected,
            num_unexpected_in_think=switches.num_unexpected_in_think,
            spans=[asdict(span) for span in switches.spans],
        )
    if lid_languages is not None:
        judged["lines"] = _judge_lines(prompt, answer, lid_languages, think_opened)
    return judged


def _judge_lines(
    prompt: Prompt, answer: str, lid_languages: Sequence[str], think_opened: bool
) -> dict[str, Any] | None:
    suspects = suspects_of(prompt.lang, lid_languages)
    if not suspects:
        return None
    lines = line_languages(
        answer,
        lang=prompt.lang,
        suspects=suspects,
        prompt=prompt.text,
        reference=prompt.reference,
        think_opened=think_opened,
    )
    foreign = [asdict(line) for line in lines if line.is_foreign(prompt.lang)]
    return {
        "line_pass": not foreign if lines else None,
        "num_lines": len(lines),
        "num_unknown": sum(line.language is None for line in lines),
        "foreign": foreign,
    }
