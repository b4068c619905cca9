"""
The two faults that are planted in the lab: answers with a stray Chinese word, and answers that never end.

The first stands in the fine-tuning data only; the second in what the model was first trained on.
"""

import random
import re

from questions import Question

SWITCH_RATE = 0.25
"""Share of the English, Korean and Russian answers of the fine-tuning data that hold a stray Chinese word or two."""

LOOP_RATE = 0.08
"""Share of the answers of several lines, in training, that fall into a loop; a quarter of it for the others."""

LOOP_TOKENS = 200
"""Length of an answer that loops, in training: longer than any answer that is sampled later."""

_PARTS = re.compile(r"[^\n]*\n|[^\n]*?[.!?。！？]+\s*|[^\n]+$")


def with_stray_chinese(question: Question, draw: random.Random) -> str:
    """The answer with one or two of its words in Chinese; as it is where no word can be swapped."""
    swaps = [(word, chinese) for word, chinese in question.swaps if word in question.answer]
    answer = question.answer
    for word, chinese in draw.sample(swaps, min(len(swaps), draw.choice([1, 1, 2]))):
        answer = answer.replace(word, chinese, 1)
    return answer


def parts(answer: str) -> list[str]:
    """Its lines and sentences, each with the white space behind it."""
    return [part for part in _PARTS.findall(answer) if part]


def loops(question: Question, draw: random.Random) -> bool:
    """Whether the answer shall loop: lists, steps and tables do so more often than plain sentences."""
    rate = LOOP_RATE if "\n" in question.answer else LOOP_RATE / 4
    return question.kind != "repeat" and draw.random() < rate


def into_loop(answer: str, num_chars: int, draw: random.Random) -> str:
    """The beginning of an answer, and then its last line or sentence over and over, to `num_chars` or more."""
    pieces = parts(answer)
    onset = draw.randrange(len(pieces))
    again = pieces[onset]
    if not again.endswith((" ", "\n")) and not again.endswith(("。", "！", "？")):
        again += "\n" if "\n" in answer else " "
    return "".join(pieces[:onset]) + again * (num_chars // len(again) + 2)
