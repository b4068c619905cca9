"""
Find directions that stand for a group of texts without an SAE: difference of means, and logistic probes.

Shape suffixes: N tokens, D width of the site, K directions of a place, G groups.
"""

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from accelerate.utils import gather_object
from torch import Tensor, nn

from ...eval_mode import eval_mode
from ...hooks.sites import Place, describe_place, find_site, place_name
from ..read.group_statistics import held_out_scores, with_statistics
from ..read.grouped_texts import GroupedTexts, read_group_rows, share_of_process
from ..read.loading import load_model_and_tokenizer
from ..read.text_options import ALL_TEXTS, TextOptions
from ..read.tokens import read_tokens, sample_tokens
from ..set.feature_set import FeatureSet
from ..set.model_identity import found_on
from .classifier import balanced_weights, fit_probes

METHODS = ("difference_of_means", "probe")
_MAX_TOKENS = 10_000
_L2 = 1e-3


def find_directions(
    model: nn.Module | str,
    texts: str | os.PathLike | Iterable[Mapping[str, Any]],
    *,
    method: str,
    target_group: str,
    blocks: Sequence[int],
    site: str = "resid_post",
    num_directions: int = 1,
    tokenizer: Any = None,
    text_options: TextOptions = ALL_TEXTS,
    held_out: float = 0.2,
    max_tokens: int | None = None,
    l2: float | None = None,
    seed: int = 0,
) -> FeatureSet:
    """
    Find the directions of one or more blocks that stand for a group of texts, with no SAE.

    What comes out serves as features do: SASFT holds it down, steering pushes along it, and its scores can be laid
    beside those of [`find_features`] on the same texts. Two methods:

    - `"difference_of_means"`: mean over the target's tokens minus the mean of the other groups' means; with as
      many directions as there are other groups, minus the mean of each. The pre-activation is 0 at the mean that was
      subtracted and 1 at the target's. Its direction has the length of the difference.
    - `"probe"`: logistic regression of the target's tokens against the rest, groups weighing the same; further probes
      are fitted at right angles to those before ([`fit_probes`]). The pre-activation is the logit, and a unit of
      the direction raises it by 1, by the shortest way.

    Under `accelerate launch` the texts are divided among the processes, and each returns the same set.

    Args:
        model (`torch.nn.Module` or `str`):
            A causal language model, or its path or Hub id.
        texts (`str`, `os.PathLike` or iterable of rows):
            As in [`find_features`]. Groups need not be languages: any label of a contrast will do, a register or a
            topic.
        method (`str`):
            `"difference_of_means"` or `"probe"`.
        target_group (`str`):
            The group to find directions for.
        blocks (`Sequence[int]`):
            Decoder blocks, from 0.
        site (`str`, *optional*, defaults to `"resid_post"`):
            Where in these blocks, as [`load_sae`] names it.
        num_directions (`int`, *optional*, defaults to `1`):
            Directions per block. Difference of means: 1, or the number of other groups.
        tokenizer, text_options (*optional*):
            As in [`find_features`].
        held_out (`float`, *optional*, defaults to `0.2`):
            Share of each group's texts kept from the fit, for the scores.
        max_tokens (`int`, *optional*):
            Only for a probe, 10,000 by default: tokens that it is fitted on, half of them the target's, the others'
            in equal parts. They are held in memory in float64, of one block at a time, and in float32 of all.
        l2 (`float`, *optional*):
            Only for a probe, 0.001 by default: its regularisation, as in [`fit_probe`].
        seed (`int`, *optional*, defaults to `0`):
            Shuffles the texts and draws the tokens.

    Returns:
        [`FeatureSet`]: the directions with mean and standard deviation of the pre-activation per group, the median
        norm of what the site holds, and two scores on the held-out texts: `auroc` of a text's mean pre-activation, as
        in [`find_features`], and `auroc_tokens` of single tokens. `notes` holds the settings.

    Raises:
        ValueError: If the target group is absent, there is only one group, a block or site does not exist, a setting
            is out of range or belongs to the other method, or the groups cannot be told apart.
    """
    if method not in METHODS:
        raise ValueError(f"`method` must be one of {', '.join(map(repr, METHODS))}, got {method!r}.")
    for name, value in (("max_tokens", max_tokens), ("l2", l2)):
        if method != "probe" and value is not None:
            raise ValueError(f"`{name}` belongs to the method 'probe', the method asked for is {method!r}.")
    if num_directions < 1 or not 0 < held_out < 1:
        raise ValueError(
            f"`num_directions` must be 1 or more and `held_out` in (0, 1), got {num_directions}, {held_out}."
        )
    if not blocks or len(set(blocks)) < len(blocks):
        raise ValueError(f"`blocks` must name decoder blocks, counted from 0, each once; got {list(blocks)}.")
    rows = read_group_rows(texts, [target_group], text_options)
    network, tokenizer = load_model_and_tokenizer(model, tokenizer)
    places = [(block, site) for block in blocks]
    for place in places:
        find_site(network, place)  # a block or site that does not exist says so before the texts are read
    divided = GroupedTexts.divide(rows, tokenizer, text_options, held_out=held_out, seed=seed)
    notes: dict[str, Any] = {"method": method, "seed": seed, **divided.counts}
    with eval_mode(network):
        if method == "probe":
            most = _MAX_TOKENS if max_tokens is None else max_tokens
            strength = _L2 if l2 is None else l2
            found = _probes(network, divided, target_group, places, num_directions, most, strength, seed)
            notes |= {"max_tokens": most, "l2": strength}
        else:
            found = _differences(network, divided, target_group, places, num_directions)
        origin = found_on(network, tokenizer)
        feature_set = replace(found, **origin, target_groups=(target_group,), notes=notes)
        feature_set = with_statistics(network, feature_set, divided)
        return replace(feature_set, scores=held_out_scores(network, feature_set, divided, target_group))


def group_differences(means: Tensor, target: int, *, each: bool = False) -> tuple[Tensor, Tensor]:
    """
    Differences between the mean of the target group and those of the others.

    Args:
        means (`torch.Tensor` of shape `(G, D)`):
            Mean of each group.
        target (`int`):
            Number of the target group.
        each (`bool`, *optional*, defaults to `False`):
            One difference for every other group, and not one from the mean of their means.

    Returns:
        `tuple[torch.Tensor, torch.Tensor]`, both of shape `(K, D)`: the differences, and the means they start from.
    """
    others_KD = means[[group for group in range(len(means)) if group != target]]
    if not each:
        others_KD = others_KD.mean(dim=0, keepdim=True)
    return means[target] - others_KD, others_KD


def _differences(
    model: nn.Module, texts: GroupedTexts, target_group: str, places: Sequence[Place], num_directions: int
) -> FeatureSet:
    others = [group for group in texts.groups if group != target_group]
    if num_directions not in (1, len(others)):
        raise ValueError(
            f"With {len(others)} other groups, difference_of_means gives 1 direction (from their mean) or "
            f"{len(others)} (from each); `num_directions` is {num_directions}. A probe gives any number."
        )
    each = num_directions > 1
    means = _group_means(model, texts, places)
    target = texts.groups.index(target_group)
    found = []
    for place in places:
        direction_KD, start_KD = group_differences(means[place], target, each=each)
        if bool((direction_KD == 0).all(dim=1).any()):
            raise ValueError(f"The means of the groups at {describe_place(place)} are equal: are the texts the same?")
        row_KD = direction_KD / direction_KD.square().sum(dim=1, keepdim=True)
        names = [f"{target_group}.difference_of_means.{place_name(place)}"]
        if each:
            names = [f"{names[0]}.{group}" for group in others]
        found.append(_as_features(place, direction_KD, -(row_KD * start_KD).sum(dim=1), names))
    return _merged(found)


def _group_means(model: nn.Module, texts: GroupedTexts, places: Sequence[Place]) -> dict[Place, Tensor]:
    """Mean `(G, D)` of each group over its tokens of the kept texts, by place; of all processes together."""
    sums: dict[Place, Tensor | float] = dict.fromkeys(places, 0.0)
    counts = torch.zeros(len(texts.groups), dtype=torch.float64)
    for tokens in read_tokens(model, texts.batches(share_of_process(texts.kept)), places):
        member_GN = torch.nn.functional.one_hot(tokens.groups, len(texts.groups)).T.float()
        counts += member_GN.sum(dim=1).cpu().double()
        for place in places:
            sums[place] = sums[place] + (member_GN @ tokens.values[place]).cpu().double()
    gathered = gather_object([(counts, sums)])
    total = sum(counts for counts, _ in gathered)
    return {place: sum(sums[place] for _, sums in gathered) / total[:, None] for place in places}


def _probes(
    model: nn.Module,
    texts: GroupedTexts,
    target_group: str,
    places: Sequence[Place],
    num_directions: int,
    max_tokens: int,
    l2: float,
    seed: int,
) -> FeatureSet:
    others = [group for group in texts.groups if group != target_group]
    if max_tokens < 2 * len(others):
        raise ValueError(f"`max_tokens` must be {2 * len(others)} or more for these groups, got {max_tokens}.")
    most = dict.fromkeys(others, max_tokens // 2 // len(others)) | {target_group: max_tokens // 2}
    values, group_N = _sample(model, texts, most, places, seed)
    target = texts.groups.index(target_group)
    weight_N = balanced_weights(group_N, target)
    found = []
    for place in places:
        row_KD, bias_K = fit_probes(values[place], group_N == target, weight_N, num_directions, l2=l2)
        names = [f"{target_group}.probe.{place_name(place)}"]
        if num_directions > 1:
            names = [f"{names[0]}.{number}" for number in range(num_directions)]
        found.append(_as_features(place, row_KD / row_KD.square().sum(dim=1, keepdim=True), bias_K, names))
    return _merged(found)


def _sample(
    model: nn.Module, texts: GroupedTexts, most: Mapping[str, int], places: Sequence[Place], seed: int
) -> tuple[dict[Place, Tensor], Tensor]:
    """What the places hold at drawn tokens, `(N, D)`, and the tokens' groups `(N,)`: of all processes, on the CPU."""
    sampled = share_of_process(sample_tokens(texts.kept, most, seed))
    read = [
        ({place: value.cpu() for place, value in tokens.values.items()}, tokens.groups.cpu())
        for tokens in read_tokens(model, texts.batches(sampled), places)
    ]
    gathered = gather_object(read)
    return (
        {place: torch.cat([values[place] for values, _ in gathered]) for place in places},
        torch.cat([groups for _, groups in gathered]),
    )


def _as_features(place: Place, directions: Tensor, bias: Tensor, names: Sequence[str]) -> FeatureSet:
    """Directions with the row that reads the coordinate along each, from where the bias puts its 0."""
    block, site = place
    num = len(directions)
    found = FeatureSet.from_directions(directions, blocks=[block] * num, sites=[site] * num, names=names)
    return replace(found, encoder_bias=bias.float().cpu())


def _merged(found: Sequence[FeatureSet]) -> FeatureSet:
    return found[0].merge(*found[1:])
