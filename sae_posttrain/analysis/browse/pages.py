"""
What the pages show, as plain lists for their data files: small, since there are thousands of features.

A snippet is a part of a *segment*; segments are parts of texts, and snippets that overlap share one.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ...features.read.texts import Text
from ..feature_page import TOKENS_AFTER, TOKENS_BEFORE
from ..logit_lens import LensTokens
from ..token_readings import token_pieces
from .reading import Reading
from .scores import Score
from .snippets import Pairs

NUM_BINS = 11  # of the histogram, beside that of the texts in which a feature never fires
LEVELS = 99  # an activation is stored as a whole number from 1 to this, which is the strongest of its feature
_SHOWN_FIRST = 5  # tokens of a feature in the list
_HALF = 50  # a token that fires this strongly is one that the feature stands for


class TokenTable:
    """Texts of tokens, each once; features name them by their number in the table."""

    def __init__(self, tokenizer: Any):
        self._tokenizer = tokenizer
        self._number: dict[int, int] = {}
        self.texts: list[str] = []

    def number(self, token: int) -> int:
        """Number of a token in the table; it is entered if it is new."""
        if token not in self._number:
            self._number[token] = len(self.texts)
            self.texts.append(self._tokenizer.decode([token]))
        return self._number[token]


@dataclass(frozen=True)
class Segments:
    """
    Parts of texts, each the number of the text, its first token and the one behind its last; for each snippet, `(P,)`,
    the number of its segment, and where it begins and ends in the text.
    """

    places: list[tuple[int, int, int]]
    of_snippet: np.ndarray
    begins: np.ndarray
    ends: np.ndarray


def segments_of(pairs: Pairs, texts: Sequence[Text]) -> Segments:
    """The segments that hold the snippets around the peaks of the pairs."""
    sizes = np.array([len(text.ids) for text in texts], dtype=np.int64)
    begins = np.maximum(0, pairs.peaks - TOKENS_BEFORE)
    ends = np.minimum(sizes[pairs.texts], pairs.peaks + TOKENS_AFTER) if len(pairs) else begins
    places: list[tuple[int, int, int]] = []
    of_snippet = np.zeros(len(pairs), dtype=np.int64)
    for row in np.lexsort((begins, pairs.texts)).tolist():
        text, begin, end = int(pairs.texts[row]), int(begins[row]), int(ends[row])
        if places and places[-1][0] == text and begin <= places[-1][2]:
            places[-1] = (text, places[-1][1], max(end, places[-1][2]))
        else:
            places.append((text, begin, end))
        of_snippet[row] = len(places) - 1
    return Segments(places, of_snippet, begins, ends)


def segment_records(
    segments: Segments, texts: Sequence[Text], group_numbers: Mapping[str, int], tokenizer: Any
) -> Iterator[list[Any]]:
    """A record for each segment: number of its group (−1 if that is not shown), text, lengths of its tokens, cuts."""
    decoded: dict[tuple[int, ...], str] = {}
    for number, begin, end in segments.places:
        text = texts[number]
        joined, lengths = joined_pieces(text.ids[begin:end], tokenizer, decoded)
        yield [group_numbers.get(text.group, -1), joined, lengths, int(begin > 0), int(end < len(text.ids))]


def joined_pieces(
    ids: Sequence[int], tokenizer: Any, decoded: dict[tuple[int, ...], str] | None = None
) -> tuple[str, str | list[int]]:
    """
    The text of tokens, and how long that of each is in JavaScript's units: a digit of base 36 each, or a list of
    numbers where one is longer.
    """
    specials = set(tokenizer.all_special_ids)
    pieces = token_pieces(ids, tokenizer, decoded)
    pieces = [f" {piece.strip()} " if token in specials else piece for token, piece in zip(ids, pieces)]
    pieces = [piece.encode("utf-8", "replace").decode() for piece in pieces]
    lengths = [len(piece) if piece.isascii() else len(piece.encode("utf-16-le")) // 2 for piece in pieces]
    if max(lengths, default=0) < 36:
        return "".join(pieces), "".join("0123456789abcdefghijklmnopqrstuvwxyz"[length] for length in lengths)
    return "".join(pieces), lengths


def feature_records(
    reading: Reading,
    segments: Segments,
    lens: LensTokens | None,
    nearest: tuple[np.ndarray, np.ndarray],
    groups: Sequence[str],
    table: TokenTable,
) -> tuple[list[list[Any]], list[list[int]]]:
    """
    A record for each feature: promoted and suppressed tokens with scores, neighbours with cosines, histogram by group,
    snippets; and the tokens on which each feature fires most.
    """
    pairs = reading.snippets
    num_features = reading.strongest.shape[1]
    top_F = np.asarray(reading.strongest.max(axis=0).todense()).ravel()
    levels = _levels(pairs.values, np.repeat(top_F[pairs.features], pairs.lengths))
    first = np.searchsorted(pairs.features, np.arange(num_features + 1))
    segment_begins = np.array([begin for _, begin, _ in segments.places], dtype=np.int64)
    histograms = _histograms(reading, groups, top_F)
    records, fires_on = [], []
    for feature in range(num_features):
        snippets, weights = [], dict[int, int]()
        for row in range(first[feature], first[feature + 1]):
            own = slice(pairs.starts[row], pairs.starts[row] + pairs.lengths[row])
            positions, own_levels = pairs.positions[own].tolist(), levels[own].tolist()
            begin = int(segments.begins[row])
            ids = reading.texts[pairs.texts[row]].ids
            for position, level in zip(positions, own_levels):
                if level >= _HALF:
                    weights[ids[position]] = weights.get(ids[position], 0) + level
            segment = int(segments.of_snippet[row])
            offsets = [number for each in zip([p - begin for p in positions], own_levels) for number in each]
            length = int(segments.ends[row]) - begin
            snippets.append([segment, begin - int(segment_begins[segment]), length, offsets])
        best = sorted(weights, key=lambda token: -weights[token])[:_SHOWN_FIRST]
        fires_on.append([table.number(token) for token in best])
        kinds = (
            [] if lens is None else [_flat(ids[feature], scores[feature], table) for ids, scores in lens.of_each_kind]
        )
        cosines, rows = nearest
        near = [
            number for row, cos in zip(rows[feature], cosines[feature]) for number in (int(row), round(float(cos), 2))
        ]
        records.append([kinds, near, histograms[:, feature].tolist(), snippets])
    return records, fires_on


def _flat(ids: Any, scores: Any, table: TokenTable) -> list[float]:
    return [
        number
        for token, score in zip(ids.tolist(), scores.tolist())
        for number in (table.number(token), round(score, 1))
    ]


def _levels(values: np.ndarray, tops: np.ndarray) -> np.ndarray:
    return np.clip(np.rint(LEVELS * values / np.maximum(tops, 1e-30)), 1, LEVELS).astype(np.int64)


def levels_of(values: np.ndarray, top: float) -> list[int]:
    """Activations of one feature as whole numbers from 1 to [`LEVELS`], which stands for `top` and more."""
    return _levels(values, np.array(top, dtype=np.float32)).tolist()


def _histograms(reading: Reading, groups: Sequence[str], top_F: np.ndarray) -> np.ndarray:
    """Texts of each group by their strongest activation, `(G, F, NUM_BINS)`, without those where it never fires."""
    number = {group: i for i, group in enumerate(groups)}
    group_T = np.array([number.get(text.group, len(groups)) for text in reading.texts])
    rows = np.repeat(np.arange(len(reading.texts)), np.diff(reading.strongest.indptr))
    features, values = reading.strongest.indices.astype(np.int64), reading.strongest.data
    bins = np.clip(np.ceil(NUM_BINS * values / top_F[features]).astype(np.int64) - 1, 0, NUM_BINS - 1)
    shape = (len(groups) + 1, reading.strongest.shape[1], NUM_BINS)
    flat = (group_T[rows] * shape[1] + features) * shape[2] + bins
    return np.bincount(flat, minlength=np.prod(shape)).reshape(shape)[: len(groups)]


def score_records(scores: Sequence[Score]) -> list[dict[str, Any]]:
    """The scores with three digits, and `None` where there is none."""
    return [{"name": each.name, "of": each.of, "values": list(map(_short, each.values.tolist()))} for each in scores]


def _short(value: float) -> float | int | None:
    if not np.isfinite(value):
        return None
    rounded = float(f"{value:.3g}")
    return int(rounded) if rounded.is_integer() else rounded
