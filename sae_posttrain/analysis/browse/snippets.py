"""
For each feature the texts in which it fires most, kept while the texts are read, a batch at a time.

Memory does not grow with the number of texts. Shape suffixes: E entries (a token and a feature that fires on it),
P pairs (a feature and a text in which it fires), F features.
"""

from dataclasses import dataclass

import numpy as np

from ..feature_page import TOKENS_AFTER, TOKENS_BEFORE


@dataclass(frozen=True)
class Entries:
    """What fires on the tokens of some texts: feature, text, position and activation, each `(E,)`."""

    features: np.ndarray
    texts: np.ndarray
    positions: np.ndarray
    values: np.ndarray


@dataclass(frozen=True)
class Pairs:
    """
    Features and texts, `(P,)` each, with the strongest activation of the one in the other and its position.

    The activations around it are `values[starts[p] : starts[p] + lengths[p]]` at `positions` of the text.
    """

    features: np.ndarray
    texts: np.ndarray
    strongest: np.ndarray
    peaks: np.ndarray
    starts: np.ndarray
    lengths: np.ndarray
    positions: np.ndarray
    values: np.ndarray

    def __len__(self) -> int:
        return len(self.features)

    def take(self, rows: np.ndarray) -> "Pairs":
        """Some of the pairs, in that order, with their activations."""
        lengths = self.lengths[rows]
        entries = ranges(self.starts[rows], lengths)
        return Pairs(
            self.features[rows],
            self.texts[rows],
            self.strongest[rows],
            self.peaks[rows],
            np.cumsum(lengths) - lengths,
            lengths,
            self.positions[entries],
            self.values[entries],
        )


def ranges(starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """`starts[0], starts[0] + 1, …` of each length, one after the other."""
    ends = np.cumsum(lengths)
    return np.repeat(starts - (ends - lengths), lengths) + np.arange(ends[-1] if len(ends) else 0)


def pairs_of(entries: Entries, num_texts: int) -> Pairs:
    """The pairs of a batch, with all activations of each. Entries of a text stand in order of their positions."""
    keys = entries.features.astype(np.int64) * num_texts + entries.texts
    order = np.argsort(keys, kind="stable")
    keys = keys[order]
    starts = np.flatnonzero(np.r_[True, keys[1:] != keys[:-1]]) if len(keys) else np.zeros(0, dtype=np.int64)
    lengths = np.diff(np.r_[starts, len(keys)])
    values = entries.values[order]
    strongest = np.maximum.reduceat(values, starts) if len(starts) else values
    at_peak = np.where(values == np.repeat(strongest, lengths), np.arange(len(values)), len(values))
    first = np.minimum.reduceat(at_peak, starts) if len(starts) else at_peak
    positions = entries.positions[order]
    return Pairs(
        entries.features[order][starts],
        entries.texts[order][starts],
        strongest,
        positions[first],
        starts,
        lengths,
        positions,
        values,
    )


def around_peaks(pairs: Pairs) -> Pairs:
    """The same pairs without the activations that lie outside the snippet around the peak."""
    offsets = pairs.positions - np.repeat(pairs.peaks, pairs.lengths)
    inside = (offsets >= -TOKENS_BEFORE) & (offsets < TOKENS_AFTER)
    lengths = np.add.reduceat(inside.astype(np.int64), pairs.starts) if len(pairs) else pairs.lengths
    return Pairs(
        pairs.features,
        pairs.texts,
        pairs.strongest,
        pairs.peaks,
        np.cumsum(lengths) - lengths,
        lengths,
        pairs.positions[inside],
        pairs.values[inside],
    )


class Strongest:
    """Keeps the `most` strongest texts of each feature."""

    def __init__(self, num_features: int, most: int):
        self._most = most
        self._floor = np.zeros(num_features, dtype=np.float32)
        self._parts: list[Pairs] = []
        self._num_waiting = 0

    def add(self, pairs: Pairs) -> None:
        """Add the pairs of a batch; `pairs_of` made them."""
        better = pairs.take(np.flatnonzero(pairs.strongest > self._floor[pairs.features]))
        self._parts.append(around_peaks(better))
        self._num_waiting += len(better)
        if self._num_waiting > 2 * self._most * len(self._floor):
            self._prune()

    def kept(self) -> Pairs:
        """The pairs, by feature, the strongest first."""
        self._prune()
        return self._parts[0]

    def _prune(self) -> None:
        pairs = _joined(self._parts)
        order = np.lexsort((pairs.texts, -pairs.strongest, pairs.features))
        features = pairs.features[order]
        begin = np.searchsorted(features, features)  # of the feature, in the order
        rank = np.arange(len(order)) - begin
        pairs = pairs.take(order[rank < self._most])
        full = rank == self._most - 1
        self._floor[features[full]] = pairs.strongest[np.cumsum(rank < self._most)[full] - 1]
        self._parts, self._num_waiting = [pairs], 0


def _joined(parts: list[Pairs]) -> Pairs:
    if not parts:
        none = np.zeros(0, dtype=np.int64)
        return Pairs(none, none, np.zeros(0, np.float32), none, none, none, none, np.zeros(0, np.float32))
    shift = np.cumsum([0, *(len(part.values) for part in parts)])
    starts = np.concatenate([part.starts + by for part, by in zip(parts, shift)])
    names = ("features", "texts", "strongest", "peaks", "lengths", "positions", "values")
    return Pairs(starts=starts, **{name: np.concatenate([getattr(part, name) for part in parts]) for name in names})
