"""
How far the features of some sets of examples are the same.

Qwen-Scope, section 4 (https://huggingface.co/papers/2605.11887). Shape suffixes: S sets, F features, R resamples.
"""

from dataclasses import dataclass

import numpy as np

from ..hooks.sites import Place
from ..measure.statistics.intervals import require_confidence
from ..tables import align
from .covered import incidences
from .text_activations import TextActivations


@dataclass(frozen=True, eq=False)
class Overlap:
    """
    What [`overlap`] measured. `str(overlap)` lists the pairs that share most.

    Attributes:
        names (`tuple[str, ...]` of length S), num_features (`tuple[int, ...]`):
            The sets, and `|F(D)|` of each.
        directed (`numpy.ndarray` of shape `(S, S)`):
            `|F1 ∩ F2| / |F1|`: row set 1, column set 2. How much of a row's features the column has.
        minimum (`numpy.ndarray` of shape `(S, S)`):
            `|F1 ∩ F2| / min(|F1|, |F2|)`, as published.
        jaccard (`numpy.ndarray` of shape `(S, S)`):
            `|F1 ∩ F2| / |F1 ∪ F2|`, which a set that is contained in a much larger one does not raise to 1.
        similarity (`numpy.ndarray` of shape `(S, S)`):
            Cosine of the sets' firing rates above the mean rate of all sets: what sets have in common beyond what all
            have. Neighbours and order are told by it.
        directed_low, directed_high, minimum_low, minimum_high (`numpy.ndarray` of shape `(S, S)`):
            Bounds of the intervals.
        order (`tuple[int, ...]`):
            Sets in the order of the leaves of the clustering.
        tree (`numpy.ndarray` of shape `(S − 1, 4)`):
            The clustering by average linkage of 1 − `similarity`, as scipy has it.
    """

    names: tuple[str, ...]
    num_features: tuple[int, ...]
    directed: np.ndarray
    minimum: np.ndarray
    jaccard: np.ndarray
    similarity: np.ndarray
    directed_low: np.ndarray
    directed_high: np.ndarray
    minimum_low: np.ndarray
    minimum_high: np.ndarray
    order: tuple[int, ...]
    tree: np.ndarray

    def nearest(self, name: str, by: str = "similarity") -> list[tuple[str, float]]:
        """
        The other sets, the nearest first.

        Args:
            name (`str`):
                A set.
            by (`str`, *optional*, defaults to `"similarity"`):
                The table to tell it by: `"similarity"`, `"jaccard"`, `"minimum"` or `"directed"`.
        """
        if name not in self.names:
            raise ValueError(f"There is no set {name!r}. Known: {', '.join(self.names)}.")
        row = getattr(self, by)[self.names.index(name)]
        return [(self.names[i], float(row[i])) for i in np.argsort(-row, kind="stable") if self.names[i] != name]

    def pairs(self, number: int | None = None) -> list[tuple[str, str]]:
        """Pairs of sets, those that repeat each other most first."""
        first, second = np.triu_indices(len(self.names), 1)
        ranked = np.argsort(-self.similarity[first, second], kind="stable")[:number]
        return [(self.names[first[i]], self.names[second[i]]) for i in ranked]

    def __str__(self) -> str:
        rows = [["set 1", "set 2", "similarity", "1 in 2", "2 in 1", "of the smaller", "95 %"]]
        for one, two in self.pairs(10):
            i, j = self.names.index(one), self.names.index(two)
            rows.append(
                [
                    one,
                    two,
                    f"{self.similarity[i, j]:.3f}",
                    f"{self.directed[i, j]:.3f}",
                    f"{self.directed[j, i]:.3f}",
                    f"{self.minimum[i, j]:.3f}",
                    f"[{self.minimum_low[i, j]:.3f}, {self.minimum_high[i, j]:.3f}]",
                ]
            )
        return "\n".join(align(rows, 2))


def overlap(
    activations: TextActivations | dict[str, TextActivations],
    place: Place | int | None = None,
    *,
    confidence: float = 0.95,
    num_resamples: int = 200,
    seed: int = 0,
) -> Overlap:
    """
    Overlap of the features of any number of sets, in both directions, with intervals by bootstrap over examples.

    A resample holds about 63 % of the different examples, and so fewer features than the set: its overlap is biased.
    The intervals are those of the deviations from the mean of the resamples, laid around the estimate.

    Args:
        activations, place:
            As in [`coverage`]; two sets or more.
        confidence (`float`, *optional*, defaults to `0.95`):
            Coverage of the intervals.
        num_resamples (`int`, *optional*, defaults to `200`), seed (`int`, *optional*, defaults to `0`):
            Number of samples of the bootstrap, and its seed.

    Returns:
        [`Overlap`].

    Raises:
        ValueError: If there are fewer than two sets, or a set fires no feature.
    """
    from scipy.cluster.hierarchy import leaves_list, linkage
    from scipy.spatial.distance import squareform

    require_confidence(confidence)
    if num_resamples < 100:
        raise ValueError(f"`num_resamples` is 100 or more, got {num_resamples}.")
    incidence = incidences(activations, place)
    names = tuple(incidence)
    if len(names) < 2:
        raise ValueError(f"An overlap is that of two sets or more; there is {names[0]!r} only.")
    rates_SF = np.stack([np.asarray(fired.mean(axis=0)).ravel() for fired in incidence.values()])
    for name, rates in zip(names, rates_SF):
        if not rates.any():
            raise ValueError(f"No feature fires on the set {name!r}. Leave it out, or read other tokens.")
    directed, minimum, jaccard = _overlaps(rates_SF > 0)
    above = rates_SF - rates_SF.mean(axis=0)
    lengths = np.linalg.norm(above, axis=1, keepdims=True)
    unit = above / np.where(lengths > 0, lengths, 1)
    similarity = np.clip(unit @ unit.T, -1, 1)
    distance = np.clip(1 - (similarity + similarity.T) / 2, 0, None)
    np.fill_diagonal(distance, 0)
    tree = linkage(squareform(distance, checks=False), "average", optimal_ordering=len(names) <= 500)
    drawn = _resamples(list(incidence.values()), num_resamples, seed)
    resampled = [_overlaps(fired_SF)[:2] for fired_SF in drawn]
    bounds = [
        _around(estimate, np.stack([each[which] for each in resampled]), confidence)
        for which, estimate in enumerate((directed, minimum))
    ]
    return Overlap(
        names=names,
        num_features=tuple((rates_SF > 0).sum(axis=1).tolist()),
        directed=directed,
        minimum=minimum,
        jaccard=jaccard,
        similarity=similarity,
        directed_low=bounds[0][0],
        directed_high=bounds[0][1],
        minimum_low=bounds[1][0],
        minimum_high=bounds[1][1],
        order=tuple(leaves_list(tree).tolist()),
        tree=tree,
    )


def _overlaps(fired_SF: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    fired = fired_SF.astype(np.float32)
    both, size = (fired @ fired.T).astype(np.float64), fired_SF.sum(axis=1)
    size = np.maximum(size, 1)
    smaller = np.minimum(size[:, None], size[None])
    return both / size[:, None], both / smaller, both / (size[:, None] + size[None] - both)


def _resamples(sets: list, num_resamples: int, seed: int) -> np.ndarray:
    """Whether each feature fires in each resample of each set, `(R, S, F)`, bool."""
    rng = np.random.default_rng(seed)
    fired = np.zeros((num_resamples, len(sets), sets[0].shape[1]), dtype=bool)
    for s, incidence in enumerate(sets):
        num = incidence.shape[0]
        drawn_RN = np.zeros((num_resamples, num), dtype=np.int32)
        np.put_along_axis(drawn_RN, rng.integers(num, size=(num_resamples, num)), 1, axis=1)
        fired[:, s] = (drawn_RN @ incidence) > 0
    return fired


def _around(estimate: np.ndarray, samples: np.ndarray, confidence: float) -> tuple[np.ndarray, np.ndarray]:
    """Quantiles of the deviations from the samples' mean, around the estimate."""
    deviations = samples - samples.mean(axis=0)
    low, high = np.quantile(deviations, [(1 - confidence) / 2, (1 + confidence) / 2], axis=0)
    return np.clip(estimate + low, 0, 1), np.clip(estimate + high, 0, 1)
