"""
What features of any origin read on each group: the statistics that the penalty needs, and scores on held-out texts.

Shape suffixes: N tokens, T texts, F features, G groups.
"""

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ...eval_mode import eval_mode
from ...hooks.sites import Place
from ...saes.frozen import FrozenSAE
from ...saes.stored.source import SAESource
from ..set.feature_set import FeatureSet
from ..set.model_identity import found_on
from .auroc import auroc
from .grouped_texts import GroupedTexts, read_group_rows, share_of_process
from .loading import load_model_and_tokenizer
from .statistics import collect_statistics
from .text_options import ALL_TEXTS, TextOptions
from .tokens import read_tokens


def measure_groups(
    model: nn.Module | str,
    feature_set: FeatureSet,
    texts: str | os.PathLike | Iterable[Mapping[str, Any]],
    *,
    target_group: str | Sequence[str] | None = None,
    tokenizer: Any = None,
    text_options: TextOptions = ALL_TEXTS,
    held_out: float = 0.2,
    seed: int = 0,
    allow_base_model: str | None = None,
) -> FeatureSet:
    """
    Fill in what a set reads on each group, so that SASFT can hold its features down whatever they come from.

    The same tokens of the same texts count as in [`find_features`] with the same settings: for the features that it
    found, mean, standard deviation and norm come out as they were.

    ```python
    control = measure_groups(model, random_directions(features, seed=0), "texts.jsonl", target_group="zh")
    ```

    Args:
        model (`torch.nn.Module` or `str`):
            A causal language model, or its path or Hub id.
        feature_set ([`FeatureSet`]):
            Features or directions of any origin; statistics that it has are replaced.
        texts (`str`, `os.PathLike` or iterable of rows):
            As in [`find_features`].
        target_group (`str` or `Sequence[str]`, *optional*):
            Groups that the features stand for; left as they are by default.
        tokenizer, text_options, seed (*optional*):
            As in [`find_features`].
        held_out (`float`, *optional*, defaults to `0.2`):
            Share of each group's texts that is left out, as [`find_features`] leaves it out; 0 takes all.
        allow_base_model (`str`, *optional*):
            Name of another model on which these features may be measured, a fine-tuned copy for example.

    Returns:
        [`FeatureSet`]: the same features with `groups`, `mean`, `std`, `residual_norms` and `target_groups`.

    Raises:
        ValueError: If a target group is absent, the features do not fit the model, or a group has too few texts.
    """
    targets = (target_group,) if isinstance(target_group, str) else tuple(target_group or feature_set.target_groups)
    rows = read_group_rows(texts, targets, text_options, needs_others=False)
    network, tokenizer = load_model_and_tokenizer(model, tokenizer)
    feature_set.check_model(network, allow_base_model=allow_base_model, tokenizer=tokenizer)
    divided = GroupedTexts.divide(rows, tokenizer, text_options, held_out=held_out, seed=seed)
    with eval_mode(network):
        measured = with_statistics(network, feature_set, divided)
    origin = {} if feature_set.base_model else found_on(network, tokenizer)
    return replace(measured, target_groups=targets, **origin)


def with_statistics(model: nn.Module, feature_set: FeatureSet, texts: GroupedTexts) -> FeatureSet:
    """
    The set with mean and standard deviation of its pre-activations over each group's kept texts, and the norms there.
    """
    mine = share_of_process(texts.kept)
    rows_of = _rows_by_place(feature_set)
    sums = collect_statistics(
        model,
        texts.batches(mine),
        [_as_sae(feature_set.at(place)) for place in rows_of],
        len(texts.groups),
        num_tokens=sum(len(text.ids) for text in mine),
    )
    mean_FG = torch.zeros(len(feature_set), len(texts.groups))
    std_FG = torch.zeros(len(feature_set), len(texts.groups))
    norm_F = torch.zeros(len(feature_set))
    for place, rows in rows_of.items():
        mean_FG[rows] = sums[place].mean_pre.T.float().cpu()
        std_FG[rows] = sums[place].std_pre.T.float().cpu()
        norm_F[rows] = float(sums[place].norms.median())
    return replace(feature_set, groups=texts.groups, mean=mean_FG, std=std_FG, residual_norms=norm_F)


def _rows_by_place(feature_set: FeatureSet) -> dict[Place, list[int]]:
    rows: dict[Place, list[int]] = {}
    for row, place in enumerate(zip(feature_set.blocks, feature_set.sites)):
        rows.setdefault(place, []).append(row)
    return rows


def _as_sae(feature_set: FeatureSet) -> FrozenSAE:
    """The features of one place as an encoder of their own, for whoever reads SAEs."""
    return FrozenSAE(
        W_enc=feature_set.encoder_rows.T,
        b_enc=feature_set.encoder_bias,
        W_dec=None,
        b_dec=torch.zeros(feature_set.d_model),
        activation="relu",
        block=feature_set.blocks[0],
        site=feature_set.sites[0],
        source=SAESource("", None, "", "feature set", Path()),
    )


def held_out_scores(
    model: nn.Module, feature_set: FeatureSet, texts: GroupedTexts, target_group: str
) -> dict[str, Tensor]:
    """
    How well each pre-activation tells the target group from the others on the held-out texts, `(F,)`: `auroc` of a
    text's mean, as in [`find_features`], and `auroc_tokens` of single tokens.
    """
    rows_of = _rows_by_place(feature_set)
    parts, groups, members = [], [], []
    for tokens in read_tokens(model, texts.batches(texts.held_out), list(rows_of)):
        pre_NF = torch.zeros(len(tokens.groups), len(feature_set))
        for place, rows in rows_of.items():
            pre_NF[:, rows] = feature_set.at(place).pre_activations(tokens.values[place]).cpu()
        parts.append(pre_NF)
        groups.append(tokens.groups.cpu())
        members.append(tokens.texts.cpu())
    if not parts:
        raise ValueError("No texts are held out to judge by.")
    pre_NF, group_N, text_N = torch.cat(parts), torch.cat(groups), torch.cat(members)
    _, text_N, size_T = text_N.unique(return_inverse=True, return_counts=True)
    mean_TF = torch.zeros(len(size_T), len(feature_set)).index_add_(0, text_N, pre_NF) / size_T[:, None]
    group_T = torch.zeros(len(size_T), dtype=torch.long).index_put_((text_N,), group_N)
    target = texts.groups.index(target_group)
    return {
        "auroc": auroc(mean_TF, group_T == target),
        "auroc_tokens": auroc(pre_NF, group_N == target),
    }
