"""
The features that made rows should fire, and what is known of each: passages where it fires, and its words.

Shape suffixes: T tokens of a text, F features.
"""

import logging
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import nn

from ...features.read.text_options import TextOptions
from ...features.read.texts import Text, tokenize
from ...features.set.feature_set import FeatureSet
from ...hooks.sites import Place
from ...saes.frozen import FrozenSAE
from ..logit_lens import logit_lens
from ..text_activations import TextActivations
from ..token_readings import first_counted, read_along_texts, token_pieces

logger = logging.getLogger(__name__)

MIN_TEXTS = 2
"""Reference texts on which a missing feature fires: one text may be chance."""

_NUM_SNIPPETS = 6
_TOKENS_AROUND = 20
_NUM_PROMOTED = 20
_TEXTS_AT_ONCE = 64
_LONGEST_WORD = 24


@dataclass(frozen=True)
class Snippet:
    """
    A passage where a feature fires.

    Attributes:
        id (`str`):
            Where it is from: `reference:17`, the row of that number, from 1.
        text (`str`):
            The passage.
        word (`str`):
            The word on which the feature fires the most.
        label (`str`):
            Label of the row; empty where there is none.
        activation (`float`):
            The activation there.
    """

    id: str
    text: str
    word: str
    label: str
    activation: float


@dataclass(frozen=True)
class Target:
    """
    A feature that made rows should fire.

    Attributes:
        feature (`int`), name (`str`):
            Number in the SAE, and the name in reports.
        seed_rate, reference_rate (`float`):
            Share of seeds, and of reference rows, on which it fires; the latter is `None` without a reference.
        snippets (`tuple[Snippet, ...]`):
            Passages where it fires, the strongest first.
        promoted (`tuple[str, ...]`):
            Words that its direction promotes (logit lens).
    """

    feature: int
    name: str
    seed_rate: float
    reference_rate: float | None
    snippets: tuple[Snippet, ...]
    promoted: tuple[str, ...]

    @property
    def words(self) -> tuple[str, ...]:
        """The words on which it fires, the most frequent first; those that it promotes if none are known."""
        counts = Counter(snippet.word.casefold() for snippet in self.snippets if snippet.word)
        return tuple(word for word, _ in counts.most_common()) or self.promoted

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, held: Mapping[str, Any]) -> "Target":
        """The inverse of `as_dict`."""
        snippets = tuple(Snippet(**each) for each in held["snippets"])
        return cls(**{**held, "snippets": snippets, "promoted": tuple(held["promoted"])})


def missing_features(
    seeds: TextActivations,
    reference: TextActivations,
    place: Place | int | None = None,
    *,
    labels: Sequence[str] | None = None,
    max_seed_rate: float = 0.0,
    min_texts: int = MIN_TEXTS,
) -> np.ndarray:
    """
    Features that fire on reference texts and not on the seeds, the most relevant first.

    The published targets (Qwen-Scope, section 6, https://huggingface.co/papers/2605.11887) are features that a judge
    finds relevant and that never fire on the seeds. Here relevance is measured: with labels by how much more often a
    feature fires on the texts of one label than on the others, else by how often it fires.

    Args:
        seeds, reference ([`TextActivations`]):
            Both read with the same SAE.
        place (`Place` or `int`, *optional*):
            Which block, where several were read.
        labels (`Sequence[str]`, *optional*):
            Label of each reference text.
        max_seed_rate (`float`, *optional*, defaults to `0.0`):
            Share of the seeds on which a feature may fire and still count as missing.
        min_texts (`int`, *optional*, defaults to `2`):
            Reference texts on which it must fire.

    Returns:
        `numpy.ndarray` of int: numbers of the features in the SAE.

    Raises:
        ValueError: If no feature is left.
    """
    fired = reference.fires(place)
    seed_rate_F = np.asarray(seeds.fires(place).mean(axis=0)).ravel()
    count_F = np.asarray(fired.sum(axis=0)).ravel()
    missing = (seed_rate_F <= max_seed_rate) & (count_F >= min_texts)
    if not missing.any():
        raise ValueError(
            f"There are no targets left: each of the {int((count_F >= min_texts).sum()):,} features that fire on "
            f"{min_texts} or more reference texts fires on the seeds too. Give other reference texts, raise "
            "`max_seed_rate` (0.01 counts features that fire on 1 % of the seeds), or name the targets."
        )
    relevance_F = count_F / fired.shape[0]
    if labels is not None and len(set(labels)) > 1:
        held = np.array(labels)
        differences = []
        for label in sorted(set(labels)):
            own, rest = fired[np.flatnonzero(held == label)], fired[np.flatnonzero(held != label)]
            differences.append(np.abs(np.asarray(own.mean(axis=0) - rest.mean(axis=0)).ravel()))
        relevance_F = np.max(differences, axis=0)
    candidates = np.flatnonzero(missing)
    order = np.lexsort((candidates, -count_F[candidates], -relevance_F[candidates]))
    return reference.feature_ids[reference.find_place(place)][candidates[order]]


def describe_targets(
    model: nn.Module,
    tokenizer: Any,
    features: FeatureSet,
    sae: FrozenSAE,
    rows: Sequence[Mapping[str, Any]],
    read: TextActivations,
    *,
    source: str,
    labels: Sequence[str],
    positions: str,
    options: TextOptions,
    rates: Mapping[str, np.ndarray],
) -> tuple[list[Target], float]:
    """
    Passages and words of each feature, and the median norm at its site, over the tokens of these passages' rows.

    Args:
        model, tokenizer, features ([`FeatureSet`]), sae ([`FrozenSAE`]):
            The features, of one place, and where they are from.
        rows (`Sequence[Mapping]`), read ([`TextActivations`]), labels (`Sequence[str]`):
            The rows that passages are taken from, with activations and label of each.
        source (`str`):
            What the rows are called in the ids of snippets.
        positions (`str`), options ([`TextOptions`]):
            Which tokens count, and how rows are read.
        rates (`Mapping[str, numpy.ndarray]`, each of shape `(F,)`):
            Firing rates on the `seeds`, and on the `reference` if there is one.
    """
    column_of = {int(feature): column for column, feature in enumerate(read.feature_ids[read.places[0]])}
    by_feature = read.at(read.places[0]).tocsc()
    chosen: list[list[int]] = []
    for feature in features.feature_ids:
        column = by_feature[:, [column_of[feature]]].tocoo()
        order = np.lexsort((column.row, -column.data))
        different = {read.keys[i]: int(i) for i in column.row[order][::-1]}  # copies of a text once
        kept = set(different.values())
        chosen.append([int(i) for i in column.row[order] if int(i) in kept][:_NUM_SNIPPETS])
    needed = sorted({i for members in chosen for i in members}) or list(range(min(32, len(rows))))
    snippets: dict[tuple[int, int], Snippet] = {}
    norms: list[np.ndarray] = []
    for start in range(0, len(needed), _TEXTS_AT_ONCE):
        members = needed[start : start + _TEXTS_AT_ONCE]
        grouped = [{**rows[i], options.group_column: ""} for i in members]
        texts = tokenize(grouped, tokenizer, options, positions=positions)
        along = read_along_texts(model, features, texts, [sae], batch_size=options.batch_size)
        norms += [each[:, 0] for each in along.norms]
        for i, text, values_TF in zip(members, texts, along.activations):
            for row in (row for row in range(len(features)) if i in chosen[row] and values_TF[:, row].any()):
                snippets[row, i] = _snippet(text, values_TF[:, row], tokenizer, f"{source}:{i + 1}", labels[i])
    lenses = logit_lens(model, features, tokenizer, num_tokens=_NUM_PROMOTED)
    targets = [
        Target(
            feature=feature,
            name=features.labels[row],
            seed_rate=float(rates["seeds"][row]),
            reference_rate=float(rates["reference"][row]) if "reference" in rates else None,
            snippets=tuple(snippets[row, i] for i in chosen[row] if (row, i) in snippets),
            promoted=_whole_words([piece for piece, _ in lenses[row].promoted]),
        )
        for row, feature in enumerate(features.feature_ids)
    ]
    return targets, float(np.median(np.concatenate(norms)))


def as_feature_set(sae: FrozenSAE, features: Sequence[int], origin: Mapping[str, Any]) -> FeatureSet:
    """Features of an SAE as a set of the model that activations were read with."""
    made = FeatureSet.from_sae(sae, list(features), base_model=str(origin.get("base_model") or ""))
    return replace(made, fingerprint=dict(origin.get("fingerprint") or {}))


def with_norm(features: FeatureSet, norm: float) -> FeatureSet:
    """The set with this median norm at its site."""
    return replace(features, residual_norms=torch.full((len(features),), norm))


def _snippet(text: Text, values_T: np.ndarray, tokenizer: Any, where: str, label: str) -> Snippet:
    peak = int(values_T.argmax())
    first, end = max(0, peak - _TOKENS_AROUND), min(len(text.ids), peak + _TOKENS_AROUND + 1)
    begins = first_counted(text)
    first = max(first, begins)
    pieces = token_pieces(text.ids[first:end], tokenizer)
    specials = set(tokenizer.all_special_ids)
    pieces = ["" if token in specials else piece for token, piece in zip(text.ids[first:end], pieces)]
    before = len("".join(pieces[: peak - first]))
    said = "".join(pieces)
    word = _word_at(said, before, pieces[peak - first])
    if end < len(text.ids) and " " in said:
        said = said[: max(said.rfind(" "), before + len(pieces[peak - first]))]  # no half of a word
    if first > begins and " " in said[1:before]:
        said = said[said.index(" ", 1) :]
    return Snippet(where, " ".join(said.split()), word, label, float(values_T[peak]))


def _word_at(text: str, start: int, piece: str) -> str:
    """The word of a text that the piece at a place is in; the piece alone where words are not divided by spaces."""
    start += len(piece) - len(piece.lstrip())
    first, end = start, start + len(piece.strip())
    while first > 0 and (text[first - 1].isalnum() or text[first - 1] in "'’-"):
        first -= 1
    while end < len(text) and (text[end].isalnum() or text[end] in "'’-"):
        end += 1
    word = text[first:end] if end - first <= _LONGEST_WORD else piece
    return re.sub(r"^\W+|\W+$", "", word)


def _whole_words(pieces: Sequence[str]) -> tuple[str, ...]:
    """The promoted tokens that look like words of three letters or more; five at most."""
    words = [piece.strip().casefold() for piece in pieces if re.fullmatch(r"\s?[^\W\d_]{3,}", piece)]
    return tuple(dict.fromkeys(words))[:5]
