"""The figures by which the features of an SAE can be sorted: those of [`find_features`], for every group in turn."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from ...features.find.by_group import group_scores
from ...features.read.auroc import auroc
from ...features.set.feature_set import FeatureSet
from ...saes.frozen import FrozenSAE
from .reading import Reading

MOST_GROUPS = 8
_FEATURES_AT_ONCE = 4096


@dataclass(frozen=True)
class Score:
    """A name, what it is a score of (a group, or a feature set), and a value for each feature, or NaN."""

    name: str
    of: str
    values: np.ndarray


def scores_of(reading: Reading, groups: Sequence[str]) -> list[Score]:
    """
    Scores of all features: how often each fires, and for each of `groups` the scores that [`find_features`] ranks by.

    AUROC is that of a text's mean pre-activation, as there, on all texts that were read.
    """
    sums = reading.sums
    total = sums.fired.sum(dim=0) / sums.num_tokens.sum().clamp(min=1)
    mean = sums.activation.sum(dim=0) / sums.fired.sum(dim=0).clamp(min=1)
    strongest = np.asarray(reading.strongest.max(axis=0).todense()).ravel()
    found = [
        Score("firing_rate", "", total.cpu().numpy()),
        Score("strongest_activation", "", strongest),
        Score("mean_activation_where_it_fires", "", mean.cpu().numpy()),
    ]
    if len(reading.groups) == 1:
        return found
    everything = torch.arange(sums.fired.shape[1])
    for group in groups:
        target = reading.groups.index(group)
        own = group_scores(sums, target, everything)
        found += [Score(name, group, values.numpy()) for name, values in own.items()]
        found.append(Score("auroc", group, _areas(reading, target)))
    return found


def _areas(reading: Reading, target: int) -> np.ndarray:
    positive = torch.from_numpy(reading.mean_groups == target)
    if positive.all() or not positive.any():
        return np.full(reading.means.shape[1], np.nan)
    parts = torch.from_numpy(reading.means).split(_FEATURES_AT_ONCE, dim=1)
    return np.concatenate([auroc(part, positive).numpy() for part in parts])


def scores_of_sets(sae: FrozenSAE, sets: Mapping[str, FeatureSet]) -> tuple[list[Score], dict[int, str]]:
    """
    Scores that searches have stored in feature sets, and the names that the sets give, by row of the SAE.

    Raises:
        ValueError: If a set has no feature of this SAE.
    """
    held = {feature: row for row, feature in enumerate(sae.features or range(sae.num_features))}
    scores, names = list[Score](), dict[int, str]()
    for title, feature_set in sets.items():
        here = [
            row
            for row, place in enumerate(zip(feature_set.blocks, feature_set.sites))
            if place == (sae.block, sae.site) and feature_set.feature_ids[row] in held
        ]
        others = {feature_set.sources[row].sha256 for row in here} - {"", None, sae.source.sha256()}
        if not here or others:
            where = f"{sae.site} of block {sae.block}"
            found = "features of another SAE" if others else "none"
            raise ValueError(f"{title}: of the features at {where} the set has {found}. Give a set found in this SAE.")
        for name, values in feature_set.scores.items():
            all_values = np.full(sae.num_features, np.nan)
            all_values[[held[feature_set.feature_ids[row]] for row in here]] = values[here].numpy()
            scores.append(Score(name, title, all_values))
        names |= {held[feature_set.feature_ids[row]]: feature_set.labels[row] for row in here}
    return scores, names
