"""How the features of a set read on texts: what they read before a training, and what after it."""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import nn

from ...eval_mode import eval_mode
from ...hooks.sites import Place
from ...hooks.truncated import read_sites
from ..set.feature_set import FeatureSet
from .text_options import ALL_TEXTS, TextOptions
from .texts import batches, tokenize


def read_features(
    model: nn.Module,
    feature_set: FeatureSet,
    rows: Iterable[Mapping[str, Any]],
    tokenizer: Any,
    options: TextOptions = ALL_TEXTS,
) -> dict[str, dict[str, tuple[float, float]]]:
    """
    Mean and standard deviation of the pre-activation of each feature over the tokens of each group.

    Args:
        model (`torch.nn.Module`):
            A causal language model: the one that the features were found on, or one trained from it.
        feature_set ([`FeatureSet`]):
            The features.
        rows (`Iterable[Mapping]`):
            Texts with a group each, as in [`find_features`].
        tokenizer (`PreTrainedTokenizerBase`):
            The model's tokenizer.
        options ([`TextOptions`], *optional*):
            How the texts are tokenized, and how many go into one forward pass.

    Returns:
        `dict[str, dict[str, tuple[float, float]]]`: by feature and group, in raw units of the feature's site.

    Raises:
        ValueError: If there are no rows, a column is missing, or no token of a group counts.
    """
    texts = tokenize(list(rows), tokenizer, options)
    groups = sorted({text.group for text in texts})
    device = next(model.parameters()).device
    of_place = {place: feature_set.at(place) for place in feature_set.places}
    pre_activations: dict[Place, list[torch.Tensor]] = {place: [] for place in of_place}
    members = []
    with torch.inference_mode(), eval_mode(model):
        for batch in batches(texts, groups, options.batch_size):
            batch = batch.to(device)
            values = read_sites(model, list(of_place), input_ids=batch.input_ids, attention_mask=batch.attention_mask)
            members.append(batch.groups[:, None].expand_as(batch.counted)[batch.counted].cpu())
            for place, features in of_place.items():
                pre_activations[place].append(features.pre_activations(values[place][batch.counted]).cpu())
    group_of_token = torch.cat(members)
    if silent := [group for number, group in enumerate(groups) if not (group_of_token == number).any()]:
        raise ValueError(f"No token of {', '.join(silent)} counts: the texts hold one token each, or special ones.")
    readings: dict[str, dict[str, tuple[float, float]]] = {}
    for place in of_place:
        read = torch.cat(pre_activations[place]).double()
        for column, label in enumerate(feature_set.labels_at(place)):
            by_group = {group: read[group_of_token == number, column] for number, group in enumerate(groups)}
            readings[label] = {g: (float(v.mean()), float(v.std(correction=0))) for g, v in by_group.items()}
    return readings
