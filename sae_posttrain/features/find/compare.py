"""Has a behaviour moved to other features? The features found on a tuned model, against those found before."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from ...hooks.sites import Place, describe_place
from ...tables import align
from ..set.feature_set import FeatureSet

_SAME_ROW = 1e-5  # relative: rows of one SAE, read from another file format


@dataclass(frozen=True)
class OldFeature:
    """
    A feature of the set that was found before.

    Attributes:
        place, feature_id: Where it is, and its index in the SAE.
        rank_before, rank: Its rank at its place, from 1, in each search; `None` if the later one did not list it.
        scores_before, scores: Its scores in each search; empty where it was not listed, NaN where a score was not
            measured.
        still_found: Whether it is now among the best at its place, as many as were found before.
    """

    name: str
    place: Place
    feature_id: int
    rank_before: int
    rank: int | None
    scores_before: dict[str, float]
    scores: dict[str, float]
    still_found: bool


@dataclass(frozen=True)
class NewFeature:
    """A feature that was not in the set before, and now ranks among the best at its place; fields as of the old."""

    name: str
    place: Place
    feature_id: int
    rank: int
    scores: dict[str, float]


@dataclass(frozen=True)
class FeatureComparison:
    """
    What [`compare_features`] found.

    Attributes:
        moved_to: Features that have taken the places of old ones among the best.
        num_listed: Features that the later search listed, by place.
    """

    old: tuple[OldFeature, ...]
    moved_to: tuple[NewFeature, ...]
    num_listed: dict[Place, int]

    @property
    def lost(self) -> tuple[OldFeature, ...]:
        """Old features that are no longer among the best at their place."""
        return tuple(feature for feature in self.old if not feature.still_found)

    @property
    def verdict(self) -> str:
        """One or two sentences."""
        num, num_lost = len(self.old), len(self.lost)
        if not num_lost:
            return (
                f"Not moved: the {num} features found before are still the best that this search finds on the tuned "
                "model."
            )
        if not self.moved_to:
            return (
                f"Gone: {num_lost} of {num} features found before are no longer among those that this search finds, "
                "and no others have taken their places."
            )
        how = "Moved" if num_lost == num else "Moved in part"
        names = ", ".join(feature.name for feature in self.moved_to)
        came = "has come" if len(self.moved_to) == 1 else "have come"
        return (
            f"{how}: {num_lost} of {num} features found before {'is' if num_lost == 1 else 'are'} no longer among "
            f"the best on the tuned model; {names} {came} in their place. "
            "To hold these down as well, train with both sets merged."
        )

    def __str__(self) -> str:
        listed = [each.scores_before for each in self.old] + [each.scores for each in self.old]
        names = list(
            dict.fromkeys(name for scores in listed + [each.scores for each in self.moved_to] for name in scores)
        )
        rows = [["feature", "rank before", "rank now", *(f"{name} before/now" for name in names)]]
        for old in self.old:
            now = str(old.rank) if old.rank is not None else f"not among {self.num_listed.get(old.place, 0)}"
            scores = [f"{_shown(old.scores_before, name)}/{_shown(old.scores, name)}" for name in names]
            rows.append([old.name, str(old.rank_before), now, *scores])
        for new in self.moved_to:
            rows.append([new.name, "new", str(new.rank), *(f"-/{_shown(new.scores, name)}" for name in names)])
        return "\n".join([*align(rows), self.verdict])


def _shown(scores: dict[str, float], name: str) -> str:
    value = scores.get(name, math.nan)
    return "-" if math.isnan(value) else f"{value:.3f}"


def compare_features(before: FeatureSet, after: FeatureSet) -> FeatureComparison:
    """
    Say whether a behaviour moved to other features: the same search, on a model before its training and after it.

    At each place as many of the later search's best features are looked at as were found there before. An old
    feature among them is still found; others have taken the places of the rest. A search on another sample of texts
    changes ranks that lie close together too: compare the scores before concluding from a single swap.

    Args:
        before ([`FeatureSet`]):
            Found on the model before training, and perhaps held down in it.
        after ([`FeatureSet`]):
            Found on the tuned model, with the same SAEs, texts and `rank_by`. Search for more features than before
            (four times as many, say), so that those that fell in rank are still listed with their scores.

    Returns:
        [`FeatureComparison`]: prints as a table with a verdict.

    Raises:
        ValueError: If the sets are of other places, target groups, rankings or SAEs, or `after` lists fewer features
            at a place than were found there before and could not list more.
    """
    _require_one_search(before, after)
    old, moved_to = [], []
    for place in before.places:
        rank_before, rank_after = _ranks(before, place), _ranks(after, place)
        for number, row in rank_before.items():
            if number in rank_after:
                _require_one_sae(before, row, after, rank_after[number], place)
        listed = list(rank_after)
        best = set(listed[: len(rank_before)])
        for rank, (number, row) in enumerate(rank_before.items(), 1):
            found = number in rank_after
            old.append(
                OldFeature(
                    before.names[row],
                    place,
                    number,
                    rank,
                    listed.index(number) + 1 if found else None,
                    _scores(before, row),
                    _scores(after, rank_after[number]) if found else {},
                    number in best,
                )
            )
        for rank, (number, row) in enumerate(rank_after.items(), 1):
            if number in best and number not in rank_before:
                moved_to.append(NewFeature(after.names[row], place, number, rank, _scores(after, row)))
    return FeatureComparison(
        tuple(old), tuple(moved_to), {place: len(_ranks(after, place)) for place in before.places}
    )


def best_of_each_place(feature_set: FeatureSet, num_features: int) -> FeatureSet:
    """The first features at each place, in the order of the search."""
    kept = [row for place in feature_set.places for row in list(_ranks(feature_set, place).values())[:num_features]]
    return feature_set[sorted(kept)]


def most_at_a_place(feature_set: FeatureSet) -> int:
    """Features at the place that has the most."""
    return max(len(_ranks(feature_set, place)) for place in feature_set.places)


def _ranks(feature_set: FeatureSet, place: Place) -> dict[int, int]:
    """Index in the SAE to row of the set, best first: the order in which a search puts them."""
    rows = enumerate(zip(feature_set.blocks, feature_set.sites, feature_set.feature_ids))
    return {number: row for row, (block, site, number) in rows if (block, site) == place}


def _scores(feature_set: FeatureSet, row: int) -> dict[str, float]:
    return {name: float(score[row]) for name, score in feature_set.scores.items()}


def _require_one_search(before: FeatureSet, after: FeatureSet) -> None:
    missing = [place for place in before.places if place not in after.places]
    if missing:
        raise ValueError(
            f"The features before are of {_places(before.places)}, those found on the tuned model of "
            f"{_places(after.places)}. Search {describe_place(missing[0])} again too."
        )
    if before.d_model != after.d_model:
        raise ValueError(
            f"The features before read width {before.d_model}, those found now {after.d_model}: another model."
        )
    for what, old, new in (
        ("for", ", ".join(before.target_groups), ", ".join(after.target_groups)),
        ("ranked by", before.notes.get("rank_by"), after.notes.get("rank_by")),
    ):
        if old and new and old != new:
            raise ValueError(f"The features before were found {what} {old!r}, those now {what} {new!r}. Search alike.")


def _places(places: Sequence[Place]) -> str:
    return ", ".join(map(describe_place, places))


def _require_one_sae(before: FeatureSet, row: int, after: FeatureSet, other: int, place: Place) -> None:
    a, b = before.encoder_rows[row], after.encoder_rows[other]
    if float((a - b).norm()) > _SAME_ROW * float(torch.maximum(a.norm(), b.norm())):
        raise ValueError(
            f"Feature {before.feature_ids[row]} of {describe_place(place)} has another encoder row in the two sets: "
            "they come from different SAEs. Search the tuned model with the SAE that was used before."
        )
