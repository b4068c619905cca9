"""
Random features of the same SAE, matched to those that were found: the control that says whether it is the feature.

Shape suffixes: D width, F features of the SAE, G groups.
"""

import logging
import os
import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from ...eval_mode import eval_mode
from ...hooks.sites import Place, describe_place
from ...saes.frozen import FrozenSAE
from ..read.grouped_texts import GroupedTexts, read_group_rows, share_of_process
from ..read.loading import load_model_and_tokenizer, load_saes, place_of, require_fit, require_order
from ..read.statistics import GroupSums, collect_statistics
from ..read.text_options import ALL_TEXTS, TextOptions
from ..set.feature_set import FeatureSet

logger = logging.getLogger(__name__)

SPECIFIC = 2.0
"""A feature that fires this many times as often on a target group as on any other is one of the target's."""

_CLOSE = 2.0  # a match whose rate differs by a larger factor is worth a warning


def matched_random_features(
    model: nn.Module | str,
    feature_set: FeatureSet,
    sae: str | os.PathLike | FrozenSAE | Sequence[str | os.PathLike | FrozenSAE],
    texts: str | os.PathLike | Iterable[Mapping[str, Any]],
    *,
    seed: int = 0,
    num_neighbours: int = 16,
    tokenizer: Any = None,
    text_options: TextOptions = ALL_TEXTS,
    held_out: float = 0.2,
    texts_seed: int = 0,
    k: int | None = None,
    format: str | None = None,
    revision: str | None = None,
    allow_base_model: str | None = None,
) -> FeatureSet:
    """
    Draw other features of the same SAEs in place of those of a set, as many at each place, none of them the target's.

    For each feature in turn, its nearest neighbours that are still free are looked up, and one of them is drawn. Near
    is Euclidean in the logarithms of firing rate (mean over groups), norm of the encoder row and norm of the
    direction: a factor of two counts the same in each. Left out are the set's own features, those that never fire,
    and those that fire on a target group [`SPECIFIC`] times as often as on any other.

    Args:
        model (`torch.nn.Module` or `str`):
            A causal language model, or its path or Hub id.
        feature_set ([`FeatureSet`]):
            The features to control for, with their target groups.
        sae (`str`, `os.PathLike`, [`FrozenSAE`] or a sequence of them):
            The SAEs that they were found in, as [`find_features`] takes them; of paths, one for all blocks of the set
            or one for each, in ascending order.
        texts (`str`, `os.PathLike` or iterable of rows):
            As in [`find_features`]: the texts that the features were found with.
        seed (`int`, *optional*, defaults to `0`):
            Draws the features. Several draws say how much one control differs from the next.
        num_neighbours (`int`, *optional*, defaults to `16`):
            Free features among which one is drawn.
        tokenizer, text_options, k, format, revision (*optional*):
            As in [`find_features`].
        held_out (`float`, *optional*, defaults to `0.2`), texts_seed (`int`, *optional*, defaults to `0`):
            Share of the texts that is left out, and what shuffles them, so that the same tokens count as in the
            search; 0 takes all.
        allow_base_model (`str`, *optional*):
            Name of another model on which these features may be measured, a fine-tuned copy for example.

    Returns:
        [`FeatureSet`]: the drawn features, in the order of those they stand for, with the statistics of the same
        texts and the same target groups. Scores are the rates and norms that were matched, beside those of the
        feature each stands for (`…_wanted`); `notes["stands_for"]` names it.

    Raises:
        ValueError: If the set has no target group, one of its features is not in the SAEs or never fires on these
            texts, or too few features are left to draw from.
    """
    require_order(sae, texts)
    if not feature_set.target_groups:
        raise ValueError(
            "The feature set names no target group, so its like cannot be left out. Say what it stands for: "
            "`dataclasses.replace(feature_set, target_groups=('zh',))`."
        )
    if num_neighbours < 1:
        raise ValueError(f"`num_neighbours` must be 1 or more, got {num_neighbours}.")
    targets = feature_set.target_groups
    rows = read_group_rows(texts, targets, text_options)
    saes = _saes_of(feature_set, sae, k=k, format=format, revision=revision)
    network, tokenizer = load_model_and_tokenizer(model, tokenizer)
    feature_set.check_model(network, allow_base_model=allow_base_model, tokenizer=tokenizer)
    for each in saes:
        require_fit(each, network)
        _require_own(feature_set.at(place_of(each)), each)
    divided = GroupedTexts.divide(rows, tokenizer, text_options, held_out=held_out, seed=texts_seed)
    mine = share_of_process(divided.kept)
    with eval_mode(network):
        sums = collect_statistics(
            network,
            divided.batches(mine),
            saes,
            len(divided.groups),
            num_tokens=sum(len(text.ids) for text in mine),
        )
    drawn = random.Random(seed)
    found = []
    for each in saes:
        own = feature_set.at(place_of(each))
        found.append(_control(each, own, sums[place_of(each)], divided.groups, num_neighbours, drawn, seed))
    control = found[0].merge(*found[1:])
    control = control[_order(feature_set.places, list(zip(feature_set.blocks, feature_set.sites)))]
    _warn_of_poor_matches(control)
    return replace(
        control,
        base_model=feature_set.base_model,
        fingerprint=feature_set.fingerprint,
        target_groups=targets,
        notes={
            "method": "matched_random",
            "seed": seed,
            "num_neighbours": num_neighbours,
            "stands_for": dict(zip(control.names, feature_set.names)),
            **divided.counts,
        },
    )


def eligible_features(firing_rate: Tensor, targets: Sequence[int], own: Sequence[int]) -> Tensor:
    """
    Features `(F,)` that may stand in: they fire (`firing_rate` is `(G, F)`), are none of the target's, and are not
    among the set's own.
    """
    others = [group for group in range(len(firing_rate)) if group not in targets]
    on_target_F = firing_rate[list(targets)].amax(dim=0)
    eligible_F = (firing_rate.sum(dim=0) > 0) & (on_target_F < SPECIFIC * firing_rate[others].amax(dim=0))
    eligible_F[list(own)] = False
    return eligible_F


def draw_matches(
    properties: Tensor, own: Sequence[int], eligible: Tensor, num_neighbours: int, drawn: random.Random
) -> list[int]:
    """
    Draw one of the nearest eligible neighbours of each own feature, without replacement. Distances are taken between
    logarithms of `properties` `(F, P)`.
    """
    if int(eligible.sum()) < len(own):
        raise ValueError(
            f"Only {int(eligible.sum())} features fire and are not the target's, {len(own)} are wanted. Use fewer "
            "features, or more texts."
        )
    log_FP = properties.double().log()
    free_F = eligible.clone()
    matches = []
    for feature in own:
        distance_F = (log_FP - log_FP[feature]).norm(dim=1).masked_fill(~free_F, torch.inf)
        nearest = distance_F.topk(min(num_neighbours, int(free_F.sum())), largest=False).indices.tolist()
        matches.append(drawn.choice(nearest))
        free_F[matches[-1]] = False
    return matches


def _saes_of(feature_set: FeatureSet, sae: Any, **options: Any) -> list[FrozenSAE]:
    """One SAE for each place of the set, in the order of its places."""
    saes = []
    for site in sorted(set(feature_set.sites)):
        blocks = sorted(block for block, other in feature_set.places if other == site)
        saes += load_saes(sae, blocks, site, **options)
    return sorted(saes, key=place_of)


def _require_own(own: FeatureSet, sae: FrozenSAE) -> None:
    held = range(sae.num_features) if sae.features is None else sae.features
    for number, name, row_D in zip(own.feature_ids, own.names, own.encoder_rows):
        column = list(held).index(number) if number in held else None
        if column is None or not torch.allclose(sae.W_enc[:, column].cpu(), row_D, rtol=1e-4, atol=1e-6):
            raise ValueError(
                f"{name!r} is not feature {number} of the SAE {sae.source.file} at {describe_place(place_of(sae))}. "
                "Give the SAE that the set was found in."
            )


def _control(
    sae: FrozenSAE,
    own: FeatureSet,
    sums: GroupSums,
    groups: Sequence[str],
    num_neighbours: int,
    drawn: random.Random,
    seed: int,
) -> FeatureSet:
    """The stand-ins for the features of one place, in their order."""
    numbers = list(range(sae.num_features)) if sae.features is None else list(sae.features)
    own_columns = [numbers.index(number) for number in own.feature_ids]
    rate_GF = sums.firing_rate.cpu()
    properties = {
        "firing_rate": rate_GF.mean(dim=0),
        "encoder_norm": sae.W_enc.norm(dim=0).cpu(),
        "direction_norm": sae.directions.norm(dim=1).cpu(),
    }
    silent = [name for name, column in zip(own.names, own_columns) if not properties["firing_rate"][column] > 0]
    if silent:
        raise ValueError(f"{silent[0]!r} never fires on these texts, so nothing matches it. Leave it out.")
    targets = [groups.index(group) for group in own.target_groups]
    eligible_F = eligible_features(rate_GF, targets, own_columns)
    eligible_F &= (properties["encoder_norm"] > 0) & (properties["direction_norm"] > 0)
    table_FP = torch.stack([column.double() for column in properties.values()], dim=1)
    try:
        matches = draw_matches(table_FP, own_columns, eligible_F, num_neighbours, drawn)
    except ValueError as error:
        raise ValueError(f"{describe_place(place_of(sae))}: {error}") from error
    picked = [numbers[column] for column in matches]
    control = FeatureSet.from_sae(sae, picked)
    scores = {name: column[matches].float() for name, column in properties.items()}
    scores |= {f"{name}_wanted": column[own_columns].float() for name, column in properties.items()}
    return replace(
        control,
        names=tuple(f"matched{seed}.{name}" for name in control.names),
        groups=tuple(groups),
        mean=sums.mean_pre[:, matches].T.float().cpu(),
        std=sums.std_pre[:, matches].T.float().cpu(),
        scores=scores,
        residual_norms=torch.full((len(matches),), float(sums.norms.median())),
    )


def _order(places: Sequence[Place], place_of_feature: Sequence[Place]) -> list[int]:
    """Positions that bring features sorted by place back into the order of the set."""
    by_place = [row for place in places for row, other in enumerate(place_of_feature) if other == place]
    return [by_place.index(row) for row in range(len(by_place))]


def _warn_of_poor_matches(control: FeatureSet) -> None:
    ratio_F = control.scores["firing_rate"] / control.scores["firing_rate_wanted"]
    poor = ((ratio_F > _CLOSE) | (ratio_F < 1 / _CLOSE)).tolist()
    if any(poor):
        logger.warning(
            "%d of %d drawn features fire more than %g times as often as the one they stand for, or as seldom: the "
            "SAEs have none nearer that is left. See the scores `firing_rate` and `firing_rate_wanted`.",
            sum(poor),
            len(poor),
            _CLOSE,
        )
