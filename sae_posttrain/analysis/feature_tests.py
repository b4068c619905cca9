"""Tests of the features on one half of the answers, the choice of the best, and their figures on the other half."""

import logging
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from ..features.read.auroc import auroc
from ..hooks.sites import Place
from ..measure.statistics.intervals import paired_difference, unpaired_difference
from .answers import Answer
from .text_activations import TextActivations

logger = logging.getLogger(__name__)

_DENSE_ELEMENTS = 1 << 24  # answers × features of a dense part: 64 MB


@dataclass(frozen=True)
class FeatureTests:
    """
    Tests of the features of a place that fire on the half that chooses, one entry per feature: its column in the
    activations, p- and q-value, and AUROC.
    """

    place: Place
    columns: np.ndarray
    p: np.ndarray
    auroc: np.ndarray
    q: np.ndarray


@dataclass(frozen=True)
class Chosen:
    """A feature that was chosen: its q-value and AUROC on the half that chooses, its place, its column there."""

    q: float
    auroc: float
    place: Place
    column: int


def run_tests(activations: TextActivations, is_bad: Sequence[bool], held_out: Sequence[bool]) -> list[FeatureTests]:
    """
    Compare bad and good answers of the half that chooses, feature by feature, for each place.

    P-values are those of the two-sided Mann-Whitney test; q-values are adjusted after Benjamini and Hochberg over the
    features of all places.
    """
    from scipy.stats import false_discovery_control  # it takes a second to import

    choosing, bad = ~np.array(held_out), np.array(is_bad)
    tests = [_test(activations.values[place][choosing], place, bad[choosing]) for place in activations.places]
    adjusted = false_discovery_control(np.concatenate([test.p for test in tests]))
    q_values = np.split(adjusted, np.cumsum([len(test.p) for test in tests])[:-1])
    return [replace(test, q=q) for test, q in zip(tests, q_values)]


def _test(rows: Any, place: Place, bad: np.ndarray) -> FeatureTests:
    from scipy.stats import mannwhitneyu

    rows = rows.tocsc()
    columns = np.flatnonzero(np.diff(rows.indptr))
    p, areas = [np.zeros(0)], [np.zeros(0)]
    per_part = max(1, _DENSE_ELEMENTS // max(1, rows.shape[0]))
    for start in range(0, len(columns), per_part):
        dense = rows[:, columns[start : start + per_part]].toarray()
        areas.append(auroc(torch.from_numpy(dense), torch.from_numpy(bad)).numpy())
        p.append(mannwhitneyu(dense[bad], dense[~bad], axis=0, method="asymptotic").pvalue)
    p_F = np.nan_to_num(np.concatenate(p), nan=1.0).clip(0, 1)
    return FeatureTests(place, columns, p_F, np.concatenate(areas), p_F)


def choose_features(tests: Sequence[FeatureTests], num_features: int, alpha: float) -> list[Chosen]:
    """
    The best features of those that fire more in bad answers: first those with `q <= alpha`, then by AUROC.

    Raises:
        ValueError: If no feature fires more in bad answers.
    """
    found = [
        Chosen(float(q), float(area), test.place, int(column))
        for test in tests
        for q, area, column in zip(test.q, test.auroc, test.columns)
        if area > 0.5
    ]
    if not found:
        raise ValueError("No feature fires more in the bad answers than in the good ones. Try other blocks or SAEs.")
    best = sorted(found, key=lambda each: (each.q > alpha, -each.auroc))[:num_features]
    if all(each.q > alpha for each in best):
        logger.warning(
            "No feature differs at a false discovery rate of %g; the best have q = %.2g. Give more answers.",
            alpha,
            min(each.q for each in best),
        )
    return best


def held_out_figures(
    activations: TextActivations, chosen: Chosen, answers: Sequence[Answer], held_out: Sequence[bool]
) -> dict[str, Any]:
    """Rates, their difference, AUROC and means of a feature on the half that judges, by the names of [`Finding`]."""
    judges = np.flatnonzero(held_out).tolist()
    pooled = activations.values[chosen.place][judges][:, [chosen.column]].toarray()[:, 0]
    bad = np.array([answers[i].bad for i in judges])
    fires = pooled > 0
    tallies = [(int(fires[side].sum()), int(side.sum())) for side in (~bad, bad)]
    rates = [number / of for number, of in tallies]
    pairs = _pairs([answers[i] for i in judges])
    if pairs:
        paired = paired_difference([fires[g] for _, g in pairs], [fires[b] for b, _ in pairs], num_resamples=2000)
        difference, interval = paired.difference, (paired.low, paired.high)
    else:
        difference, interval = rates[1] - rates[0], unpaired_difference(tallies[0], tallies[1])
    area = auroc(torch.from_numpy(pooled)[:, None], torch.from_numpy(bad))
    return {
        "bad": rates[1],
        "good": rates[0],
        "difference": difference,
        "interval": interval,
        "auroc": float(area),
        "mean_bad": float(pooled[bad].mean()),
        "mean_good": float(pooled[~bad].mean()),
    }


def _pairs(answers: Sequence[Answer]) -> list[tuple[int, int]]:
    """Number of the bad and the good answer of each prompt, if every prompt has just one of each; else nothing."""
    of_prompt: dict[str, dict[bool, list[int]]] = defaultdict(lambda: {True: [], False: []})
    for i, answer in enumerate(answers):
        of_prompt[answer.pair][answer.bad].append(i)
    if "" in of_prompt or any(len(kinds[True]) != 1 or len(kinds[False]) != 1 for kinds in of_prompt.values()):
        return []
    return [(kinds[True][0], kinds[False][0]) for kinds in of_prompt.values()]
