"""Find the features that stand for a group of texts: a language, or any other contrast, found the same way."""

import logging
import math
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from ...eval_mode import eval_mode
from ...hooks.blocks import unwrap
from ...hooks.sites import Place, describe_place
from ...hooks.truncated import read_sites
from ...saes.frozen import FrozenSAE
from ..read.auroc import auroc
from ..read.grouped_texts import GroupedTexts, read_group_rows, share_of_process
from ..read.loading import load_model_and_tokenizer, load_saes, place_of, require_fit, require_one_width, require_order
from ..read.statistics import GroupSums, collect_statistics
from ..read.text_options import ALL_TEXTS, TextOptions
from ..read.texts import Text
from ..set.feature_set import FeatureSet
from ..set.model_identity import found_on
from .causal import check_by_ablation, output_scores, prompts_of_other_groups, target_tokens

logger = logging.getLogger(__name__)

RANKINGS = ("monolinguality", "auroc", "output")
_NUM_PROMPTS = 16


def find_features(
    model: nn.Module | str,
    sae: str | os.PathLike | FrozenSAE | Sequence[str | os.PathLike | FrozenSAE],
    texts: str | os.PathLike | Iterable[Mapping[str, Any]],
    *,
    target_group: str,
    blocks: Sequence[int] | None = None,
    site: str | None = None,
    num_features: int = 2,
    rank_by: str = "monolinguality",
    num_candidates: int | None = None,
    tokenizer: Any = None,
    text_options: TextOptions = ALL_TEXTS,
    held_out: float = 0.2,
    strength: float = 0.5,
    check: bool = False,
    on_found: Callable[[FeatureSet], Any] | None = None,
    seed: int = 0,
    k: int | None = None,
    format: str | None = None,
    revision: str | None = None,
) -> FeatureSet:
    """
    Find the features of one or more blocks that stand for a group of texts.

    One forward pass over the texts serves all blocks. Features are ranked by monolinguality, as in SASFT
    (https://huggingface.co/papers/2507.14894): `ν = mean activation on the target − mean over the other groups of
    their mean activations`. The best candidates are then measured on held-out texts (AUROC) and for what they write
    (output score). Groups need not be languages: answers marked `good` and `bad` will do.

    Under `accelerate launch` the texts are divided among the processes, and each returns the same set.

    Args:
        model (`torch.nn.Module` or `str`):
            A causal language model, or its path or Hub id.
        sae (`str`, `os.PathLike`, [`FrozenSAE`] or a sequence of them):
            Published SAE as [`load_sae`] takes it, one for all blocks or one for each, in their order; or loaded ones.
        texts (`str`, `os.PathLike` or iterable of rows):
            JSONL file (or `.jsonl.gz`, or a folder of them), `datasets` id, or rows. A row has its group and either a
            text, or `messages`, or `prompt` and `completion` (then only the answer counts). A hundred texts a group
            rank features; a few hundred more confirm them.
        target_group (`str`):
            The group to find features for.
        blocks (`Sequence[int]`, *optional*):
            Decoder blocks, from 0. Needed unless loaded SAEs are given.
        site (`str`, *optional*):
            What the SAEs read in these blocks, as [`load_sae`] names it; needed where a folder holds SAEs of several
            sites, or several were loaded and one site is wanted.
        num_features (`int`, *optional*, defaults to `2`):
            Features per SAE, as in the published settings.
        rank_by (`str`, *optional*, defaults to `"monolinguality"`):
            What decides among the candidates: `"monolinguality"`, `"auroc"`, or `"output"`, which takes monolinguality
            times the output score (features that read the group and write it).
        num_candidates (`int`, *optional*):
            Features per SAE, by monolinguality, that are measured further. Defaults to four times `num_features`,
            at least 32.
        tokenizer (`PreTrainedTokenizerBase`, *optional*):
            The model's, loaded from its folder if left out.
        text_options ([`TextOptions`], *optional*):
            How the texts are read: columns, split, how many, how long, chat template, batch size.
        held_out (`float`, *optional*, defaults to `0.2`):
            Share of each group's texts kept from the ranking, for AUROC, output score and check.
        strength (`float`, *optional*, defaults to `0.5`):
            How far a feature is amplified for its output score, in median residual norms.
        check (`bool`, *optional*, defaults to `False`):
            Remove the chosen features and measure the loss of each group on the held-out texts.
        on_found (`Callable[[FeatureSet], Any]`, *optional*):
            Called with the set when the search is done, before the check, in every process: to save it there means
            that nothing is lost if the check runs out of memory.
        seed (`int`, *optional*, defaults to `0`):
            Shuffles the texts.
        k, format, revision (*optional*):
            As in [`load_sae`].

    Returns:
        [`FeatureSet`]: the features, best first within each SAE, with mean and standard deviation of the
        pre-activation per group and their scores; `notes` holds the settings and the check.

    Raises:
        ValueError: If the target group is absent, there is only one group, a block, site or width does not fit, or no
            feature tells the groups apart.
    """
    require_order(sae, texts)
    if rank_by not in RANKINGS:
        raise ValueError(f"`rank_by` must be one of {', '.join(map(repr, RANKINGS))}, got {rank_by!r}.")
    if num_features < 1 or not 0 < held_out < 1:
        raise ValueError(f"`num_features` must be 1 or more and `held_out` in (0, 1), got {num_features}, {held_out}.")
    rows = read_group_rows(texts, [target_group], text_options)
    saes = load_saes(sae, blocks, site, k=k, format=format, revision=revision)
    require_one_width(saes)
    network, tokenizer = load_model_and_tokenizer(model, tokenizer)
    for each in saes:
        require_fit(each, network)
    divided = GroupedTexts.divide(rows, tokenizer, text_options, held_out=held_out, seed=seed)
    groups = divided.groups
    held_out_batches = list(divided.batches(divided.held_out))
    mine = share_of_process(divided.kept)

    with eval_mode(network):
        sums = collect_statistics(
            network,
            divided.batches(mine),
            saes,
            len(groups),
            num_tokens=sum(len(text.ids) for text in mine),
        )
        target = groups.index(target_group)
        wanted = num_candidates or max(4 * num_features, 32)
        candidates = {place: _candidates(place_sums, target, wanted) for place, place_sums in sums.items()}
        areas = _held_out_auroc(network, held_out_batches, saes, candidates, target)
        tokens = target_tokens(divided.kept, target_group, unwrap(network).get_output_embeddings().weight.shape[0])
        prompts = _output_prompts(divided.held_out + divided.kept, target_group, tokens)
        found = []
        for each in saes:
            place_sums, ids = sums[place_of(each)], candidates[place_of(each)]
            scores = group_scores(place_sums, target, ids) | {
                "auroc": areas[place_of(each)],
                "output": torch.full((len(ids),), math.nan)
                if prompts is None
                else output_scores(
                    network,
                    prompts,
                    each.directions[ids.to(each.directions.device)],
                    place_of(each),
                    tokens,
                    strength * float(place_sums.norms.median()),
                ),
            }
            best = _ranked(scores, rank_by)[:num_features]
            chosen = {name: score[best] for name, score in scores.items()}
            found.append(_as_feature_set(each, ids[best], chosen, place_sums, groups))
        notes: dict[str, Any] = {
            "rank_by": rank_by,
            "strength": strength,
            **divided.counts,
            "num_tokens": dict(zip(groups, map(int, sums[place_of(saes[0])].num_tokens.tolist()))),
            "num_target_tokens": int(tokens.sum()),
        }
        feature_set = found[0].merge(*found[1:])
        feature_set = replace(
            feature_set,
            **found_on(network, tokenizer),
            target_groups=(target_group,),
            names=tuple(f"{target_group}.{name}" for name in feature_set.names),
            notes=notes,
        )
        if on_found is not None:
            on_found(feature_set)
        if check:
            ablation = check_by_ablation(network, held_out_batches, groups, feature_set)
            notes["check"] = {"loss": ablation.loss, "loss_without": ablation.loss_without}
    _warn_of_a_short_set(feature_set, saes, num_features)
    _warn_of_features_that_fire_elsewhere(feature_set)
    return feature_set


def _output_prompts(texts: Sequence[Text], target_group: str, tokens: Tensor) -> Tensor | None:
    """Prompts for the output score; `None`, with a warning, where there can be none."""
    if not tokens.any():
        logger.warning(
            "No token is used almost only in %r, so there is no output score. Groups of one vocabulary need "
            "`rank_by='monolinguality'` or `'auroc'`.",
            target_group,
        )
        return None
    try:
        return prompts_of_other_groups(texts, target_group, _NUM_PROMPTS)
    except ValueError as error:
        logger.warning("There is no output score: %s", error)
        return None


def _candidates(sums: GroupSums, target: int, num_candidates: int) -> Tensor:
    """Features of highest monolinguality, of those that fire more often on the target than elsewhere."""
    nu = _monolinguality(sums, target)
    others = [group for group in range(len(sums.num_tokens)) if group != target]
    more_often = sums.firing_rate[target] > sums.firing_rate[others].amax(dim=0)
    eligible = ((nu > 0) & more_often).nonzero().flatten()
    if len(eligible) == 0:
        raise ValueError("No feature fires more on the target group than on every other. Try another block or SAE.")
    return eligible[nu[eligible].argsort(descending=True)][:num_candidates].cpu()


def _monolinguality(sums: GroupSums, target: int) -> Tensor:
    """ν of https://huggingface.co/papers/2505.05111: mean activation on the target minus the mean over others."""
    mean_GF = sums.mean_activation
    others = [group for group in range(len(mean_GF)) if group != target]
    return mean_GF[target] - mean_GF[others].mean(dim=0)


def group_scores(sums: GroupSums, target: int, ids: Tensor) -> dict[str, Tensor]:
    """Monolinguality and firing rates of some features, each `(F,)`; `target` is the number of a group."""
    others = [group for group in range(len(sums.num_tokens)) if group != target]
    rates = sums.firing_rate[:, ids.to(sums.fired.device)].cpu().float()
    return {
        "monolinguality": _monolinguality(sums, target)[ids.to(sums.fired.device)].cpu().float(),
        "firing_rate": rates[target],
        "firing_rate_elsewhere": rates[others].amax(dim=0),
    }


def _held_out_auroc(
    model: nn.Module,
    held_out_batches: Sequence[Any],
    saes: Sequence[FrozenSAE],
    candidates: dict[Place, Tensor],
    target: int,
) -> dict[Place, Tensor]:
    """How well each candidate's mean pre-activation tells a held-out text of the target from another."""
    device = next(model.parameters()).device
    means: dict[Place, list[Tensor]] = {place_of(sae): [] for sae in saes}
    groups = []
    with torch.inference_mode():
        for batch in held_out_batches:
            batch = batch.to(device)
            values = read_sites(model, list(means), input_ids=batch.input_ids, attention_mask=batch.attention_mask)
            counted = batch.counted.unsqueeze(-1).float()
            for sae in saes:
                ids = candidates[place_of(sae)]
                rows, bias = sae.W_enc.T[ids].to(device), sae.b_enc[ids].to(device)
                with torch.autocast(device.type, enabled=False):
                    pre = values[place_of(sae)].float() @ rows.T + bias
                means[place_of(sae)].append(((pre * counted).sum(dim=1) / counted.sum(dim=1).clamp(min=1)).cpu())
            groups.append(batch.groups.cpu())
    positive = torch.cat(groups) == target
    return {place: auroc(torch.cat(parts), positive) for place, parts in means.items()}


def _ranked(scores: dict[str, Tensor], rank_by: str) -> Tensor:
    if rank_by != "output":
        return scores[rank_by].argsort(descending=True, stable=True)  # ties stay in order of monolinguality
    if scores["output"].isnan().any():
        raise ValueError("`rank_by='output'` needs tokens that only the target group uses, and there are none.")
    return (scores["monolinguality"] * scores["output"].clamp(min=0)).argsort(descending=True, stable=True)


def _as_feature_set(
    sae: FrozenSAE, ids: Tensor, scores: dict[str, Tensor], sums: GroupSums, groups: Sequence[str]
) -> FeatureSet:
    on_device = ids.to(sums.pre.device)
    numbers = ids.tolist() if sae.features is None else [sae.features[i] for i in ids.tolist()]
    return replace(
        FeatureSet.from_sae(sae, numbers),
        groups=tuple(groups),
        mean=sums.mean_pre[:, on_device].T.float().cpu(),
        std=sums.std_pre[:, on_device].T.float().cpu(),
        scores=scores,
        residual_norms=torch.full((len(ids),), float(sums.norms.median())),
    )


def _warn_of_a_short_set(feature_set: FeatureSet, saes: Sequence[FrozenSAE], num_features: int) -> None:
    for sae in saes:
        num_found = list(zip(feature_set.blocks, feature_set.sites)).count(place_of(sae))
        if num_found < num_features:
            logger.warning(
                "%s: %d features fire more on the target than elsewhere, fewer than the %d asked for.",
                describe_place(place_of(sae)),
                num_found,
                num_features,
            )


def _warn_of_features_that_fire_elsewhere(feature_set: FeatureSet) -> None:
    target, elsewhere = feature_set.scores["firing_rate"], feature_set.scores["firing_rate_elsewhere"]
    for name, here, there in zip(feature_set.names, target.tolist(), elsewhere.tolist()):
        if there > 0.5 * here:
            logger.warning(
                "Feature %s fires on %.1f %% of the target's tokens and on %.1f %% of another group's: holding it "
                "down will be felt there.",
                name,
                100 * here,
                100 * there,
            )
