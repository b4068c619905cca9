"""Directions that come from no SAE: random ones and differences of means, the controls that a feature has to beat."""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from ...eval_mode import eval_mode
from ...hooks.sites import Place, describe_place, place_name
from ...precision import widest_float
from ..read.texts import Text, batches
from ..read.tokens import read_tokens
from ..set.feature_set import FeatureSet
from ..set.model_identity import found_on


def random_directions(feature_set: FeatureSet, seed: int) -> FeatureSet:
    """
    Isotropic random unit directions in place of a set's own, at the same places, with the same residual norms.

    Where a site has several features, the whole bundle is turned at random, so that the angles between them, and
    with these the length of the summed push at every strength, stay as they are.

    Args:
        feature_set ([`FeatureSet`]):
            The features to control for.
        seed (`int`):
            Draws the directions.

    Returns:
        [`FeatureSet`]: as many directions, in the same order.

    Raises:
        ValueError: If a direction of the set is zero.
    """
    generator = torch.Generator().manual_seed(seed)
    turned = torch.zeros(len(feature_set), feature_set.d_model, dtype=torch.float64)
    place_of_feature = list(zip(feature_set.blocks, feature_set.sites))
    for place in feature_set.places:
        rows = [i for i, other in enumerate(place_of_feature) if other == place]
        own_DF = feature_set.directions[rows].double().T
        lengths_F = own_DF.norm(dim=0)
        if bool((lengths_F == 0).any()):
            raise ValueError(f"A direction at {describe_place(place)} is zero; it has no random counterpart.")
        _, angles_FF = torch.linalg.qr(own_DF / lengths_F)
        drawn_DF = torch.randn(own_DF.shape, generator=generator, dtype=torch.float64)
        basis_DF, upper_FF = torch.linalg.qr(drawn_DF)
        basis_DF = basis_DF * upper_FF.diagonal().sign()  # without it QR prefers some orientations
        turned[rows] = (basis_DF @ angles_FF).T
    control = FeatureSet.from_directions(
        turned.float(),
        blocks=feature_set.blocks,
        sites=feature_set.sites,
        names=[f"random{seed}.{place_name(place)}.{i}" for i, place in enumerate(place_of_feature)],
        residual_norms=feature_set.residual_norms,
        base_model=feature_set.base_model,
    )
    return replace(control, fingerprint=feature_set.fingerprint)


def difference_of_means(
    model: nn.Module,
    positives: Sequence[Text],
    negatives: Sequence[Text],
    *,
    blocks: Sequence[int],
    site: str = "resid_post",
    batch_size: int = 16,
) -> FeatureSet:
    """
    One direction a block: the site's mean over the tokens of one kind minus its mean over those of another, with the
    median norm of the negatives there. Texts come with a mask each: the tokens that count.

    For loops against normal text: `collect_samples` gathers both, and `difference_of_means(model,
    samples.loop_texts(skip_first_round=True), samples.normal_texts(), blocks=[4])` compares the tokens of a loop from
    its second time round on with those of normal answers.
    """
    places = [(block, site) for block in blocks]
    means: list[dict[Place, Tensor]] = []
    norms: dict[Place, float] = {}
    with eval_mode(model):
        for texts, kind in ((positives, "positives"), (negatives, "negatives")):
            if not any(any(text.counted) for text in texts):
                raise ValueError(f"No token of the {kind} counts; there is no mean to compare.")
            mean, norms = _means(model, texts, places, batch_size)
            means.append(mean)
    difference = torch.stack([means[0][place] - means[1][place] for place in places]).float()
    for place, direction in zip(places, difference):
        if not bool(direction.any()):
            raise ValueError(
                f"The means at {describe_place(place)} are equal: positives and negatives are the same tokens."
            )
    found = FeatureSet.from_directions(
        difference,
        blocks=blocks,
        sites=[site] * len(places),
        names=[f"difference_of_means.{place_name(place)}" for place in places],
        residual_norms=[norms[place] for place in places],
    )
    return replace(found, **found_on(model))


def _means(
    model: nn.Module, texts: Sequence[Text], places: Sequence[Place], batch_size: int
) -> tuple[dict[Place, Tensor], dict[Place, float]]:
    """Mean `(D,)` over the counted tokens of what a site holds, and the median of its norms, by place."""
    sums: dict[Place, Tensor] = {}
    norms: dict[Place, list[Tensor]] = {place: [] for place in places}
    same_group = [Text("", text.ids, text.counted) for text in texts]
    for tokens in read_tokens(model, batches(same_group, [""], batch_size), places):
        for place, value_ND in tokens.values.items():
            sums[place] = sums.get(place, 0) + value_ND.sum(dim=0, dtype=widest_float(value_ND.device)).cpu().double()
            norms[place].append(value_ND.norm(dim=1).cpu())
    medians = {place: torch.cat(parts) for place, parts in norms.items()}
    return (
        {place: total / len(medians[place]) for place, total in sums.items()},
        {place: float(values.median()) for place, values in medians.items()},
    )
