"""
Tells the register of a passage: pages that explain a command as it stands in a menu (reference) and pages that show
how something is done (guides). By a heading, and by words.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import regex

REFERENCE, GUIDE = "reference", "guide"
PASSAGE_CHARS = {"en": 280, "es": 300, "ru": 230, "ko": 130, "zh": 90}
"""What is looked at of a page, by language: about the 64 tokens that answers have."""

_PIECE = regex.compile(r"[\p{Han}]+|\p{Hangul}+|[^\W\d_\p{Han}\p{Hangul}]+")
_WITHOUT_SPACES = regex.compile(r"[\p{Han}\p{Hangul}]")
_MIN_PASSAGES = 3  # in which a word must stand to count
_DOTS = ".…:：。 \t"


def register_of(page_id: str) -> str | None:
    """
    Register of a page by its folder, or `None`: `swriter/guide/…` holds guides, `swriter/01/…` and `swriter/02/…` the
    commands of menus and toolbars. Pages of BASIC, and those that list or introduce others, are neither.
    """
    section, *folders = page_id.split("/")[:-1]
    if section == "sbasic" or not folders:
        return None
    return {"guide": GUIDE, "01": REFERENCE, "02": REFERENCE}.get(folders[0])


def headings(reference: Sequence[str], guides: Sequence[str]) -> tuple[str, ...]:
    """
    Lines of their own that stand in every fifth reference passage or more and in one of fifty guides at most, the
    commonest first; without the dots behind them.
    """
    counts = [
        Counter(line for passage in passages for line in dict.fromkeys(lines(passage)))
        for passages in (reference, guides)
    ]
    return tuple(
        line
        for line, count in counts[0].most_common()
        if line and count >= len(reference) / 5 and counts[1][line] <= len(guides) / 50
    )


def lines(passage: str) -> list[str]:
    """Lines without spaces and dots around them."""
    return [line.strip(_DOTS) for line in passage.splitlines()]


def words(text: str) -> set[str]:
    """What is counted: words in lower case; in Chinese and Korean all pairs of neighbouring characters of a word."""
    found: set[str] = set()
    for piece in _PIECE.findall(text.lower()):
        if _WITHOUT_SPACES.match(piece):
            found.update(piece[start : start + 2] for start in range(len(piece) - 1))
        else:
            found.add(piece)
    return found


@dataclass(frozen=True)
class RegisterJudge:
    """
    Judge of one language, fitted on pages.

    Attributes:
        headings (`tuple[str, ...]`):
            Lines that only reference pages have ([`headings`]).
        weights (`dict[str, float]`):
            Of each word outside the headings: logarithm of how many times more reference passages hold it than
            guides, a naive Bayes classifier.
    """

    headings: tuple[str, ...]
    weights: dict[str, float]

    @classmethod
    def fit(cls, reference: Iterable[str], guides: Iterable[str], *, smoothing: float = 1.0) -> "RegisterJudge":
        """The judge of these passages."""
        both = [list(reference), list(guides)]
        found = headings(*both)
        sets = [[words(without(passage, found)) for passage in passages] for passages in both]
        counts = [Counter(word for one in own for word in one) for own in sets]
        known = [word for word in counts[0] | counts[1] if counts[0][word] + counts[1][word] >= _MIN_PASSAGES]
        share = [
            {word: (count[word] + smoothing) / (len(own) + 2 * smoothing) for word in known}
            for count, own in zip(counts, sets)
        ]
        return cls(found, {word: float(np.log(share[0][word] / share[1][word])) for word in known})

    def has_heading(self, passage: str) -> bool:
        """Whether a heading stands in it, at the beginning of a line or not: a weak model forgets line breaks."""
        return any(heading in passage for heading in self.headings)

    def wording(self, passage: str) -> float:
        """Sum of the weights of its words, over the root of how many there are; 0 where none is known."""
        known = [self.weights[word] for word in words(without(passage, self.headings)) if word in self.weights]
        return sum(known) / len(known) ** 0.5 if known else 0.0


def without(passage: str, found: Sequence[str]) -> str:
    """The passage with the headings taken out."""
    for heading in found:
        passage = passage.replace(heading, "")
    return passage
