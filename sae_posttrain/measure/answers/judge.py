"""Judge one answer: does it switch, loop or leave its language, and where."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from ..faults.line_language import line_languages, suspects_of
from ..faults.loops import find_loop
from ..faults.scripts import can_measure
from ..faults.switching import find_switches, right_language
from .prompts import Prompt

_LOOP_RECORD = ("endless", "loop_any", "near_loop", "onset", "period", "span")
"""Fields of a [`Loop`] that are kept in a line of `answers.jsonl`."""


def judge(
    prompt: Prompt,
    sample: int,
    answer: str,
    ids: list[int],
    finished: bool,
    settings: Mapping[str, Any],
    think_opened: bool,
) -> dict[str, Any]:
    """
    The line of `answers.jsonl` of one answer. `settings` holds `target_lang` and `lid`, as [`evaluate`] records them;
    `think_opened` says whether the prompt has opened a passage of thought.
    """
    target_lang = settings["target_lang"]
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
    if settings["lid"] is not None:
        judged["lines"] = _judge_lines(prompt, answer, settings["lid"]["languages"], think_opened)
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
