"""What words alone tell: n-grams that bad answers use more than good ones. The baseline of every feature."""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import regex
import torch

from ..features.read.auroc import auroc

_WORD = regex.compile(
    r"[\p{Script=Han}\p{Script=Hiragana}\p{Script=Katakana}\p{Script=Thai}]|[\p{L}\p{N}\p{M}]+|[^\s\p{L}\p{N}\p{M}]"
)
"""A word, a sign, or a character of a script that writes no spaces."""


@dataclass(frozen=True)
class NGram:
    """
    An n-gram and how well it tells bad answers from good ones.

    Attributes:
        text (`str`):
            The words, joined by spaces.
        log_odds (`float`):
            Log of the ratio of its odds in bad answers to those in good ones, smoothed.
        z (`float`):
            The log-odds in units of its standard deviation.
        bad, good (`float`):
            Share of the answers that hold it.
        auroc (`float`):
            How well its frequency in an answer tells held-out bad answers from good ones.
    """

    text: str
    log_odds: float
    z: float
    bad: float
    good: float
    auroc: float


def telling_ngrams(
    texts: Sequence[str], bad: Sequence[bool], held_out: Sequence[bool], *, longest: int = 2, num: int = 10
) -> list[NGram]:
    """
    N-grams that bad answers use more, by weighted log-odds.

    Log-odds ratio with an informative Dirichlet prior (Monroe, Colaresi and Quinn 2008, *Political Analysis* 16,
    372-403): with counts `y` in n words of a group, and a prior of `a` for each n-gram, proportional to its frequency
    overall and summing to `a0`, `δ = log((y₁ + a) / (n₁ + a0 − y₁ − a)) − log((y₂ + a) / (n₂ + a0 − y₂ − a))` with
    variance about `1 / (y₁ + a) + 1 / (y₂ + a)`. They are ranked by `z = δ / σ` on the answers that are not held out.

    Args:
        texts (`Sequence[str]`), bad, held_out (`Sequence[bool]`):
            The answers, whether each is bad, and whether it is kept for the AUROC. Both parts need both kinds.
        longest (`int`, *optional*, defaults to `2`):
            Words of the longest n-gram.
        num (`int`, *optional*, defaults to `10`):
            N-grams to return.

    Returns:
        `list[NGram]`: best first.
    """
    counted = [_ngrams(text, longest) for text in texts]
    totals = [Counter[str](), Counter[str]()]
    for counts, is_bad, held in zip(counted, bad, held_out):
        if not held:
            totals[is_bad].update(counts)
    both = totals[0] + totals[1]
    sizes = [max(1, total.total()) for total in totals]
    prior = min(sizes)  # as many words as the smaller group has
    scored = []
    for ngram, number in both.items():
        if number < 3:
            continue
        a = prior * number / sum(sizes)
        odds = [(total[ngram] + a) / (size + prior - total[ngram] - a) for total, size in zip(totals, sizes)]
        delta = math.log(odds[1] / odds[0])
        z = delta / math.sqrt(1 / (totals[0][ngram] + a) + 1 / (totals[1][ngram] + a))
        scored.append((z, delta, ngram))
    best = sorted(scored, reverse=True)[:num]
    judges = [i for i, held in enumerate(held_out) if held]
    positive = torch.tensor([bad[i] for i in judges])
    shares = [[counted[i][ngram] / max(1, counted[i].total()) for _, _, ngram in best] for i in judges]
    areas = auroc(torch.tensor(shares).reshape(len(judges), len(best)), positive) if best else torch.zeros(0)
    return [
        NGram(ngram, delta, z, _share(counted, bad, ngram, True), _share(counted, bad, ngram, False), float(area))
        for (z, delta, ngram), area in zip(best, areas)
    ]


def _ngrams(text: str, longest: int) -> Counter[str]:
    words = _WORD.findall(text.lower())
    return Counter(" ".join(words[i : i + n]) for n in range(1, longest + 1) for i in range(len(words) - n + 1))


def _share(counted: Sequence[Counter[str]], bad: Sequence[bool], ngram: str, of: bool) -> float:
    members = [ngram in counts for counts, is_bad in zip(counted, bad) if is_bad == of]
    return sum(members) / len(members)
