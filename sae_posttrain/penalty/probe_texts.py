"""
How features read on a fixed set of texts, and how probable the target group is there.

Shape suffixes: B batch, T tokens of a text, V vocabulary, N tokens of all texts, P texts, D width, F features.
"""

import logging
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..eval_mode import eval_mode
from ..features.find.causal import target_tokens
from ..features.read.text_options import TextOptions
from ..features.read.texts import Text, TextBatch, batches, tokenize
from ..features.read.variance import UnexplainedVariance
from ..features.set.feature_set import FeatureSet
from ..hooks.record import record_sites
from ..hooks.sites import Place
from ..hooks.truncated import read_sites
from ..languages import names_of_targets

logger = logging.getLogger(__name__)

FEWEST_TEXTS = 4
"""Fewest texts of the target, and of the others: a direction is fitted on one half and tried on the other."""

_TOKENS_PER_TILE = 512  # of an SAE's dense activations


@dataclass(frozen=True)
class ProbeSet:
    """
    Texts of the target groups and of others, the same ones at every reading. The groups' numbers are 1 for a target
    group and 0 for another. `target_tokens` `(V,)` are used almost only in texts of the target groups; there may be
    none.
    """

    batches: tuple[TextBatch, ...]
    target_tokens: Tensor

    @classmethod
    def from_rows(
        cls,
        rows: Sequence[Mapping[str, Any]],
        tokenizer: Any,
        target_groups: Sequence[str],
        options: TextOptions,
    ) -> "ProbeSet":
        """Tokenize rows and draw at most `max_texts` different texts of each group, always the same ones."""
        texts = tokenize(rows, tokenizer, options)
        kept: list[Text] = []
        groups = {text.group for text in texts}
        own = {*target_groups, *names_of_targets(groups, target_groups)}
        for group in sorted(groups):
            counting = [text for text in texts if text.group == group and any(text.counted)]
            of_group = list({text.key: text for text in counting}.values())  # copies would stand in both halves
            if len(of_group) < len(counting):
                logger.warning(
                    "%d texts of %s in the probe set repeat others, up to case and spaces; one copy of each is read.",
                    len(counting) - len(of_group),
                    group,
                )
            random.Random(0).shuffle(of_group)
            name = _TARGET if group in own else _OTHERS
            kept += [Text(name, text.ids, text.counted) for text in of_group[: options.max_texts]]
        for name in (_TARGET, _OTHERS):
            num = sum(text.group == name for text in kept)
            if num < FEWEST_TEXTS:
                raise ValueError(
                    f"The probe set has {num} texts of {name} ({', '.join(target_groups)} being the target); it needs "
                    f"{FEWEST_TEXTS} or more of each side, a few dozen wanted."
                )
        used = target_tokens(kept, _TARGET, 1 + max(max(text.ids) for text in kept))
        return cls(tuple(batches(kept, [_OTHERS, _TARGET], options.batch_size)), used)


_OTHERS, _TARGET = "other groups", "the target"


@dataclass(frozen=True)
class ProbeReading:
    """
    What one model gave on a probe set. Everything is on the CPU, in the order of the probe set.

    Attributes:
        pre_activations (`(N, F)`): Pre-activations of the place's features on every counted token.
        mean_values (`(P, D)`): Mean of what the site holds over the counted tokens of each text.
        variance_explained: Share of the variance of what the site holds that its SAE reconstructs; where an SAE was
            given.
        token_is_target (`(N,)`, bool): Whether it belongs to a target group.
        target_probability (`(P,)`): For each text, the summed next-token probability of all target tokens, and the
            number of tokens in the sum.
    """

    pre_activations: dict[Place, Tensor]
    mean_values: dict[Place, Tensor]
    variance_explained: dict[Place, float]
    token_is_target: Tensor
    text_is_target: Tensor
    target_probability: Tensor
    num_tokens: Tensor


def read_probe(model: nn.Module, probe: ProbeSet, feature_set: FeatureSet, saes: Mapping[Place, Any]) -> ProbeReading:
    """
    Read the features on the probe set: forward passes only, without dropout, gradients or random numbers. An SAE of a
    place is anything with `reconstruct(x)`.
    """
    features = {place: feature_set.at(place) for place in feature_set.places}
    device = next(model.parameters()).device
    pre: dict[Place, list[Tensor]] = {place: [] for place in features}
    means: dict[Place, list[Tensor]] = {place: [] for place in features}
    saes = {place: sae.to(device) if hasattr(sae, "to") else sae for place, sae in saes.items()}
    unexplained = {place: UnexplainedVariance(1, feature_set.d_model, device) for place in saes}
    of_token, of_text, probability, num_tokens = [], [], [], []
    with torch.no_grad(), eval_mode(model):
        for batch in probe.batches:
            batch = batch.to(device)
            length = batch.input_ids.shape[1]
            counted = batch.counted
            values, probability_B = _pass(model, batch, list(features), probe.target_tokens)
            for place, of_place in features.items():
                value_BTD = values[place][:, -length:].to(device)  # prompt tuning puts virtual tokens in front
                value_ND = value_BTD[counted].float()
                pre[place].append(of_place.pre_activations(value_ND).cpu())
                total_BD = (value_BTD.float() * counted.unsqueeze(-1)).sum(dim=1)
                means[place].append((total_BD / counted.sum(dim=1, keepdim=True)).cpu())
                for tile_ND in value_ND.split(_TOKENS_PER_TILE) if place in saes else ():
                    made_ND = saes[place].reconstruct(tile_ND).to(tile_ND)
                    all_one = torch.zeros(len(tile_ND), dtype=torch.long, device=device)
                    unexplained[place].add(tile_ND, made_ND, all_one)
            is_target = batch.groups == 1
            of_token.append(is_target[:, None].expand_as(counted)[counted].cpu())
            of_text.append(is_target.cpu())
            probability.append(probability_B)
            num_tokens.append(counted.sum(dim=1).cpu())
    return ProbeReading(
        pre_activations={place: torch.cat(parts) for place, parts in pre.items()},
        mean_values={place: torch.cat(parts) for place, parts in means.items()},
        variance_explained={place: 1 - each.fractions()[0] for place, each in unexplained.items()},
        token_is_target=torch.cat(of_token),
        text_is_target=torch.cat(of_text),
        target_probability=torch.cat(probability),
        num_tokens=torch.cat(num_tokens),
    )


def _pass(
    model: nn.Module, batch: TextBatch, places: Sequence[Place], target_tokens_V: Tensor
) -> tuple[dict[Place, Tensor], Tensor]:
    """Values at the places, and each text's probability of the target's tokens; no logits if there are no such."""
    tokens = {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask}
    if not target_tokens_V.any():
        return read_sites(model, places, **tokens), torch.zeros(len(batch.input_ids), dtype=torch.float64)
    with record_sites(model, places) as captures:
        logits_BTV = model(**tokens, use_cache=False).logits[:, -batch.input_ids.shape[1] :]
    probability_B = _target_probability(logits_BTV, batch.counted, target_tokens_V)
    return {place: values[0] for place, values in captures.items()}, probability_B


def _target_probability(logits_BTV: Tensor, counted_BT: Tensor, tokens_V: Tensor) -> Tensor:
    """Summed over the counted positions of each text, which is read by itself: probabilities of a batch are large."""
    ids = tokens_V.nonzero().flatten().to(logits_BTV.device)
    sums = [
        logits[counted].float().softmax(dim=-1)[:, ids].sum()
        for logits, counted in zip(logits_BTV, counted_BT.to(logits_BTV.device))
    ]
    return torch.stack(sums).cpu().double()
