"""Where the fault begins in an answer, in tokens, and how features fire before it, in it and elsewhere."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..features.read.texts import Text
from .answers import Answer
from .token_readings import first_counted, token_pieces


@dataclass(frozen=True)
class Onset:
    """
    When a feature fires first in bad answers, relative to the fault. A cause comes before.

    Attributes:
        distance (`float`):
            Median distance in tokens from the first token of the fault to the first on which the feature fires:
            negative before it. NaN if it never fires.
        num_answers (`int`):
            Bad answers of which it is known where the fault begins, and in which the feature fires.
        before (`float`), inside (`float`), good (`float`):
            Share of tokens on which the feature fires: before the fault begins, in the fault, in good answers. A
            feature that fires everywhere begins early without being a cause: then the three agree.
        distances (`tuple[int, ...]`):
            The distances themselves.
    """

    distance: float
    num_answers: int
    before: float
    inside: float
    good: float
    distances: tuple[int, ...]


def fault_tokens(answer: Answer, text: Text, tokenizer: Any) -> np.ndarray | None:
    """
    Which tokens of an answer are in the fault, `(T,)` bool; `None` where that is not known or lies beyond the tokens.
    """
    start = first_counted(text)
    inside = np.zeros(len(text.ids), dtype=bool)
    for first, end in answer.token_spans:
        inside[start + first : start + end] = True
    if answer.spans:
        pieces = token_pieces(text.ids[start:], tokenizer)
        shift = _shift("".join(pieces), answer.text)
        begins = np.cumsum([0, *map(len, pieces)]) - shift
        for first, end in answer.spans:
            inside[start:] |= (begins[:-1] < end) & (begins[1:] > first)
        for i in reversed(range(len(pieces) - 1)):  # a token inside a character belongs to the one that completes it
            if not pieces[i]:
                inside[start + i] = inside[start + i + 1]
    return inside if inside.any() else None


def _shift(decoded: str, answer: str) -> int:
    """How many characters precede the answer in the decoded tokens; below 0 if some of its own are missing."""
    opening = answer.lstrip()[:40]
    if not opening:
        return 0
    at = decoded.find(opening)
    if at < 0:  # the tokens end within the opening, or the first of it are not counted
        at = decoded.find(opening[5:15])
        return at - 5 - (len(answer) - len(answer.lstrip())) if at >= 0 else 0
    return at - (len(answer) - len(answer.lstrip()))


def onsets(
    texts: Sequence[Text], bad: Sequence[bool], faults: Sequence[np.ndarray | None], values: Sequence[np.ndarray]
) -> list[Onset] | None:
    """
    [`Onset`] of each feature.

    Args:
        texts (`Sequence[Text]`), bad (`Sequence[bool]`):
            All answers.
        faults (`Sequence[numpy.ndarray]`):
            What [`fault_tokens`] says of each.
        values (`Sequence[numpy.ndarray]`, each of shape `(T, F)`):
            Activations along each answer.

    Returns:
        `list[Onset]`, or `None` if it is not known of any answer where the fault begins.
    """
    located = [i for i, fault in enumerate(faults) if fault is not None and bad[i]]
    if not located:
        return None
    counted = [np.array(text.counted) for text in texts]
    found = []
    good_tokens = [values[i][counted[i]] for i in range(len(texts)) if not bad[i]]
    for feature in range(values[0].shape[1]):
        distances, before, inside = [], [0, 0], [0, 0]
        for i in located:
            fault = faults[i]
            assert fault is not None
            begins = int(fault.argmax())
            fires = values[i][:, feature] > 0
            if fires.any():
                distances.append(int(fires.argmax()) - begins)
            earlier = counted[i] & (np.arange(len(fires)) < begins)
            for tally, where in ((before, earlier), (inside, counted[i] & fault)):
                tally[0] += int(fires[where].sum())
                tally[1] += int(where.sum())
        fired = sum(int((rows[:, feature] > 0).sum()) for rows in good_tokens)
        found.append(
            Onset(
                distance=statistics.median(distances) if distances else float("nan"),
                num_answers=len(distances),
                before=before[0] / max(1, before[1]),
                inside=inside[0] / max(1, inside[1]),
                good=fired / max(1, sum(map(len, good_tokens))),
                distances=tuple(distances),
            )
        )
    return found
