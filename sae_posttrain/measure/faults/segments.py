"""Divide a response into thinking and answer: `<think>…</think>`, also if the chat template opened the thinking."""

from bisect import bisect_right
from typing import Any

import regex

_OPEN = "<think>"
_CLOSE = "</think>"
_THINK = regex.compile(r"<think>(.*?)(?:</think>|\Z)", regex.DOTALL)

_NUM_LAST_TOKENS = 16  # more than an opened `<think>` and its line break take in any vocabulary


def opens_thinking(rendered: str) -> bool:
    """
    Whether a prompt, as the model gets it, ends with an opened `<think>`, so that the answer begins inside it.

    The chat templates of R1 and QwQ end that way. A template that ends with `<think></think>` has closed it again.
    """
    return rendered.rstrip().endswith(_OPEN)


def prompt_opens_thinking(tokenizer: Any, prompt_ids: list[int]) -> bool:
    """As [`opens_thinking`], for a prompt's token ids."""
    return opens_thinking(tokenizer.decode(prompt_ids[-_NUM_LAST_TOKENS:], skip_special_tokens=False))


def template_opens_thinking(tokenizer: Any, **template_kwargs: Any) -> bool:
    """
    Whether the chat template, with such variables, opens the thinking of an answer to a plain question; `False`
    without a template.
    """
    if not (getattr(tokenizer, "chat_template", None) or template_kwargs.get("chat_template")):
        return False
    question = [{"role": "user", "content": "?"}]
    return opens_thinking(
        tokenizer.apply_chat_template(question, add_generation_prompt=True, tokenize=False, **template_kwargs)
    )


def segments_of(answer: str, *, think_opened: bool = False) -> list[tuple[int, int, str]]:
    """
    (start, end, name) of the thinking and the answer, in order, without gaps; tags belong to the thinking.

    An unclosed `<think>` runs to the end; a lone `</think>` closes what is before it. If the prompt opened the
    thinking, everything up to `</think>` is thinking, or everything if the answer was cut before it.
    """
    segments = []
    position = 0
    first_open, first_close = answer.find(_OPEN), answer.find(_CLOSE)
    if think_opened and first_close < 0:
        return [(0, len(answer), "think")]
    if first_close >= 0 and (think_opened or not 0 <= first_open < first_close):
        position = first_close + len(_CLOSE)
        segments.append((0, position, "think"))
    for found in _THINK.finditer(answer, position):
        segments.append((position, found.start(), "answer"))
        segments.append((found.start(), found.end(), "think"))
        position = found.end()
    segments.append((position, len(answer), "answer"))
    return segments


def segment_at(segments: list[tuple[int, int, str]], place: int) -> str:
    """Name of the segment that contains this offset."""
    return segments[bisect_right(segments, place, key=lambda segment: segment[0]) - 1][2]
