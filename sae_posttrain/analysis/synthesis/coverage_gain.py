"""What made rows add to the features that a data set fires, in the targets' SAE and in others that took no part."""

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from ...hooks.sites import Place, describe_place
from ..covered import coverage_curve
from ..text_activations import TextActivations
from .targets import MIN_TEXTS


@dataclass(frozen=True)
class CoverageGain:
    """
    Features before and after, in one SAE.

    Attributes:
        place (`str`):
            Block and site.
        took_part (`bool`):
            Whether rows were accepted by this SAE: then a gain is no surprise.
        features_before, features_after (`int`):
            Features that fire on the seeds, and on seeds and made rows.
        missing (`int`, *optional*):
            Features that fire on two or more reference rows and on no seed.
        missing_covered (`int`, *optional*):
            Those of them that fire on a made row.
        by_reference_rows (`float`, *optional*):
            Those of them that as many random reference rows are expected to fire: what real rows would do. Missing
            features are chosen by the same rows, so that this flatters the reference.
        num_made, num_reference (`int`):
            Rows compared: the made ones, and the reference rows in the expectation.
    """

    place: str
    took_part: bool
    features_before: int
    features_after: int
    missing: int | None
    missing_covered: int | None
    by_reference_rows: float | None
    num_made: int
    num_reference: int

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)


def coverage_gain(
    seeds: TextActivations,
    made: TextActivations,
    reference: TextActivations | None,
    place: Place,
    *,
    took_part: bool,
    min_texts: int = MIN_TEXTS,
) -> CoverageGain:
    """
    Compare what seeds, made rows and reference rows fire at one place.

    The expectation for reference rows is exact: a feature that fires on `m` of `N` rows is missed by `n` random ones
    with probability `C(N − m, n) / C(N, n)` ([`coverage_curve`]).
    """
    before_F, added_F = (_counts(each, place) > 0 for each in (seeds, made))
    missing = covered = by_reference = None
    num_reference = 0
    if reference is not None:
        count_F = _counts(reference, place)
        missing_F = (count_F >= min_texts) & ~before_F
        missing, covered = int(missing_F.sum()), int((missing_F & added_F).sum())
        num_reference = min(len(made), len(reference))
        by_reference = 0.0
        if missing:
            share = coverage_curve(count_F[missing_F], len(reference), [num_reference])[0]
            by_reference = float(missing * share)
    return CoverageGain(
        place=describe_place(place),
        took_part=took_part,
        features_before=int(before_F.sum()),
        features_after=int((before_F | added_F).sum()),
        missing=missing,
        missing_covered=covered,
        by_reference_rows=by_reference,
        num_made=len(made),
        num_reference=num_reference,
    )


def _counts(read: TextActivations, place: Place) -> np.ndarray:
    return np.asarray(read.fires(place).sum(axis=0)).ravel().astype(np.int64)
