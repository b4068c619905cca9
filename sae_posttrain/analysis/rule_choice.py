"""Which block and how many features a [`FeatureRule`] uses: chosen on rows that took no part in ranking features."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression

from ..hooks.sites import Place, describe_place
from . import scikit_learn  # noqa: F401
from .feature_rule import FeatureRule, f1_score, firing_differences, largest, split_rows
from .text_activations import TextActivations

FEWEST_TO_CHOOSE_BY = 5
"""Rows of each label: with fewer to choose by, block and K are chosen on the rows that ranked the features."""


@dataclass(frozen=True)
class Candidate:
    """
    Features that a rule can use.

    Args:
        places (`tuple[Place, ...]`):
            One place, or the places that count the most: the best feature of each is taken then.
        num_features (`int`):
            Features of the one place; ignored with several.
    """

    places: tuple[Place, ...]
    num_features: int

    def __str__(self) -> str:
        if len(self.places) > 1:
            return f"the best feature of each of {len(self.places)} places"
        features = f"{self.num_features} feature{'s' * (self.num_features > 1)}"
        return f"{features} of {describe_place(self.places[0])}"


@dataclass(frozen=True)
class Choice:
    """
    A candidate, and what spoke for it.

    Attributes:
        candidate ([`Candidate`]):
            Places and number of features.
        f1 (`float` or `None`):
            F1 on the rows to choose by; `None` if nothing was evaluated.
        top1_difference (`float`):
            Largest firing difference of a single feature at these places (`top1-diff` in Qwen-Scope).
    """

    candidate: Candidate
    f1: float | None
    top1_difference: float


def choose_rule(
    read: TextActivations,
    positive: np.ndarray,
    *,
    rule: str,
    num_features: Sequence[int],
    num_blocks: Sequence[int],
    epsilon: float,
    dev_share: float,
    seed: int,
) -> tuple[FeatureRule, tuple[Choice, ...]]:
    """
    The rule, its features ranked on all rows, and the choices, the one that was taken first.

    Args:
        read ([`TextActivations`]), positive (`numpy.ndarray` of shape `(N,)`, bool):
            The texts.
        rule (`str`):
            `"any"`, `"logistic"` or `"top1_diff"`.
        num_features (`Sequence[int]`), num_blocks (`Sequence[int]`):
            Values of K, and of the number of places from which the best feature each is taken.
        epsilon, dev_share, seed:
            As in [`FeatureClassifier`].

    Raises:
        ValueError: If no feature fires more often on the positive texts.
    """
    if rule == "top1_diff":
        tables = _difference_tables(read, positive, epsilon)
        tops = {place: float(tables[place].max()) for place in read.places}
        best = max(read.places, key=lambda place: tops[place])
        choices = [
            Choice(Candidate((place,), num_features[0]), None, tops[place])
            for place in sorted(read.places, key=lambda place: place != best)
        ]
    else:
        choices = _by_dev(read, positive, rule, num_features, num_blocks, epsilon, dev_share, seed)
    return fit_rule(read, positive, choices[0].candidate, rule, epsilon), tuple(choices)


def _by_dev(
    read: TextActivations,
    positive: np.ndarray,
    rule: str,
    num_features: Sequence[int],
    num_blocks: Sequence[int],
    epsilon: float,
    dev_share: float,
    seed: int,
) -> list[Choice]:
    find, dev = rows_to_choose_by(read.keys, positive, dev_share, seed)
    found, chosen_by = read[find], read[dev]
    tables = _difference_tables(found, positive[find], epsilon)
    tops = {place: float(table.max()) for place, table in tables.items()}
    by_top = sorted(read.places, key=lambda place: -tops[place])
    candidates = [Candidate((place,), k) for place in read.places for k in num_features]
    candidates += [Candidate(tuple(by_top[:m]), m) for m in num_blocks if 1 < m <= len(by_top)]
    choices = []
    for candidate in candidates:
        top = max(tops[place] for place in candidate.places)
        if top <= 0:
            continue
        fitted = fit_rule(found, positive[find], candidate, rule, epsilon, tables)
        predicted = fitted.scores(fitted.activations(chosen_by)) > 0
        choices.append(Choice(candidate, f1_score(positive[dev], predicted), top))
    if not choices:
        raise ValueError(_NOTHING)
    return sorted(choices, key=lambda each: (-(each.f1 or 0.0), each.candidate.num_features, -each.top1_difference))


def rows_to_choose_by(
    keys: Sequence[str], positive: np.ndarray, dev_share: float, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """As [`split_rows`]; the same rows on both sides if too few of a label would be left to choose by."""
    find, dev = split_rows(keys, positive, dev_share, seed)
    for rows, fewest in ((dev, FEWEST_TO_CHOOSE_BY), (find, 1)):
        if min(int(positive[rows].sum()), int((~positive[rows]).sum())) < fewest:
            return np.arange(len(keys)), np.arange(len(keys))
    return find, dev


def fit_rule(
    read: TextActivations,
    positive: np.ndarray,
    candidate: Candidate,
    rule: str,
    epsilon: float,
    tables: dict[Place, np.ndarray] | None = None,
) -> FeatureRule:
    """
    The rule of a candidate's features, ranked (and weighted, if it is logistic) on these rows.

    `"any"` takes features that fire more often on the positive texts; `"logistic"` those whose firing differs most, in
    either direction.
    """
    if tables is None:
        tables = _difference_tables(read, positive, epsilon)
    signed = rule == "logistic"
    several = len(candidate.places) > 1
    places: list[Place] = []
    columns: list[int] = []
    for place in candidate.places:
        ranks = np.abs(tables[place]) if signed else tables[place]
        best = [i for i in largest(ranks, 1 if several else candidate.num_features) if ranks[i] > 0]
        places += [place] * len(best)
        columns += [int(i) for i in best]
    if not columns:
        raise ValueError(_NOTHING)
    fitted = FeatureRule(
        kind="logistic" if signed else "any",
        places=tuple(places),
        feature_ids=tuple(int(read.feature_ids[place][i]) for place, i in zip(places, columns)),
        differences=np.array([tables[place][i] for place, i in zip(places, columns)]),
        weights=np.ones(len(columns)),
        epsilon=epsilon,
    )
    return _weighted(fitted, fitted.activations(read), positive) if signed else fitted


def _weighted(rule: FeatureRule, activations_NK: np.ndarray, positive: np.ndarray) -> FeatureRule:
    scale_K = activations_NK.std(axis=0)
    scale_K[scale_K == 0] = 1.0
    regression = fit_logistic(activations_NK / scale_K, positive, 1.0)
    return FeatureRule(
        kind=rule.kind,
        places=rule.places,
        feature_ids=rule.feature_ids,
        differences=rule.differences,
        weights=regression.coef_[0] / scale_K,
        bias=float(regression.intercept_[0]),
        epsilon=rule.epsilon,
    )


def fit_logistic(x: "np.ndarray", positive: np.ndarray, C: float) -> LogisticRegression:
    """scikit-learn's logistic regression; a fit that stops early is taken as it is."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        return LogisticRegression(C=C, max_iter=500).fit(x, positive)


def _difference_tables(read: TextActivations, positive: np.ndarray, epsilon: float) -> dict[Place, np.ndarray]:
    return {place: firing_differences(read.values[place], positive, epsilon) for place in read.places}


_NOTHING = (
    "No feature fires more often on the positive texts than on the negative ones, so that there is nothing to tell "
    "them by. Give more texts, other blocks, or the other label as `pos_label`."
)
