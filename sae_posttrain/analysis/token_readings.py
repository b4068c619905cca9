"""
How a handful of features fires along texts, token by token, and what its tokens say.

Shape suffixes: T tokens of a text, N tokens of a batch, F features.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from ..features.read.loading import place_of
from ..features.read.texts import Text, batches
from ..features.set.feature_set import FeatureSet
from ..hooks.sites import Place
from ..hooks.truncated import read_sites
from ..saes.frozen import FrozenSAE

_TOKENS_PER_TILE = 256


@dataclass(frozen=True, eq=False)
class TokenReadings:
    """
    What some features read along texts.

    Attributes:
        activations (`list[numpy.ndarray]`, each of shape `(T, F)`, float32):
            Activations at each token of each text, in the order of the texts; 0 where a token does not count.
        pre_activations (`list[numpy.ndarray]`, each of shape `(N, F)`, float32):
            Pre-activations at the tokens of each text that count.
        norms (`list[numpy.ndarray]`, each of shape `(N, F)`, float32):
            Norms of what the features' sites hold at these tokens.
    """

    activations: list[np.ndarray]
    pre_activations: list[np.ndarray]
    norms: list[np.ndarray]

    def with_statistics(self, feature_set: FeatureSet, texts: Sequence[Text], groups: Sequence[str]) -> FeatureSet:
        """The set with mean and standard deviation of each group's pre-activations, and the median norms."""
        mean, std = np.zeros((2, len(feature_set), len(groups)))
        for number, group in enumerate(groups):
            read = [pre for pre, text in zip(self.pre_activations, texts) if text.group == group]
            pre_NF = np.concatenate(read).astype(np.float64)
            mean[:, number], std[:, number] = pre_NF.mean(axis=0), pre_NF.std(axis=0)
        return replace(
            feature_set,
            groups=tuple(groups),
            mean=torch.from_numpy(mean).float(),
            std=torch.from_numpy(std).float(),
            residual_norms=torch.from_numpy(np.concatenate(self.norms)).median(dim=0).values,
        )


def read_along_texts(
    model: nn.Module,
    feature_set: FeatureSet,
    texts: Sequence[Text],
    saes: Sequence[FrozenSAE] = (),
    *,
    batch_size: int = 16,
) -> TokenReadings:
    """
    Activations of the set's features at each token of each text.

    With the SAEs, they are the activations of the SAE's authors. Without, they are what the set alone tells: the part
    of the pre-activation above 0, or above the JumpReLU threshold. In a TopK SAE that is more than fires there.

    Args:
        model (`torch.nn.Module`):
            A causal language model.
        feature_set ([`FeatureSet`]):
            The features.
        texts (`Sequence[Text]`):
            Tokenized texts.
        saes (`Sequence[FrozenSAE]`, *optional*):
            SAEs that the features are from.
        batch_size (`int`, *optional*, defaults to `16`):
            Texts in one forward pass.

    Returns:
        [`TokenReadings`].
    """
    device = next(model.parameters()).device
    of_place = {place_of(sae): sae.to(device) for sae in saes}
    rows_of: dict[Place, list[int]] = {}
    for row, place in enumerate(zip(feature_set.blocks, feature_set.sites)):
        rows_of.setdefault(place, []).append(row)
    order = sorted(range(len(texts)), key=lambda i: -len(texts[i].ids))
    groups = sorted({text.group for text in texts})
    num_features = len(feature_set)
    counted = [np.array(text.counted, dtype=bool) for text in texts]
    acts, pre, norms = (
        [np.zeros((size, num_features), dtype=np.float32) for size in sizes]
        for sizes in ([len(each) for each in counted], *[[int(each.sum()) for each in counted]] * 2)
    )
    num_done = 0
    with torch.inference_mode(), tqdm(total=len(texts), desc="Following features", unit=" texts", leave=False) as bar:
        for batch in batches([texts[i] for i in order], groups, batch_size):
            batch = batch.to(device)
            members = order[num_done : num_done + len(batch.groups)]
            num_done += len(members)
            values = read_sites(model, list(rows_of), input_ids=batch.input_ids, attention_mask=batch.attention_mask)
            ends = np.cumsum([len(pre[i]) for i in members])[:-1]
            for place, rows in rows_of.items():
                x_ND = values[place][batch.counted]
                features = feature_set.at(place)
                read = (
                    _activations(x_ND, features, of_place.get(place)),
                    features.pre_activations(x_ND),
                    x_ND.float().norm(dim=1, keepdim=True).expand(-1, len(rows)),
                )
                for i, own_acts, own_pre, own_norms in zip(
                    members, *(np.split(each.cpu().numpy(), ends) for each in read)
                ):
                    acts[i][np.ix_(counted[i], rows)] = own_acts
                    pre[i][:, rows] = own_pre
                    norms[i][:, rows] = own_norms
            bar.update(len(members))
    return TokenReadings(acts, pre, norms)


def _activations(x_ND: Tensor, features: FeatureSet, sae: FrozenSAE | None) -> Tensor:
    """The activations of a place's features, a tile of tokens at a time."""
    if sae is None:
        pre_NF = features.pre_activations(x_ND)
        floor_F = features.thresholds.nan_to_num(0.0).to(pre_NF.device)
        return torch.relu(pre_NF) * (pre_NF > floor_F)
    held = list(range(sae.num_features)) if sae.features is None else list(sae.features)
    columns = torch.tensor([held.index(feature) for feature in features.feature_ids], device=x_ND.device)
    parts = [x_ND.new_zeros((0, len(columns)), dtype=torch.float32)]
    for tile_ND in x_ND.split(_TOKENS_PER_TILE):
        if sae.keeps_largest:
            values_NK, ids_NK = sae.activate_topk(sae.pre_activations(tile_ND))
            parts.append(torch.stack([(values_NK * (ids_NK == column)).sum(dim=1) for column in columns], dim=1))
        else:
            parts.append(sae.encode(tile_ND)[:, columns])
    return torch.cat(parts)


def token_pieces(ids: Sequence[int], tokenizer: Any, decoded: dict[tuple[int, ...], str] | None = None) -> list[str]:
    """
    The text of each token, so that joined they are the text of all.

    A token that ends inside a character has none; the token that completes the character has all of it. `decoded`
    keeps what was decoded for the next call, where there are many.
    """
    decoded = {} if decoded is None else decoded

    def decode(part: Sequence[int]) -> str:
        key = tuple(part)
        if key not in decoded:
            decoded[key] = tokenizer.decode(part, clean_up_tokenization_spaces=False)
        return decoded[key]

    pieces: list[str] = []
    begin = 0  # where what is decoded anew begins: the tokens before it are whole characters
    said = ""
    for end in range(1, len(ids) + 1):
        text = decode(ids[begin:end])
        if text.endswith("\ufffd") and end < len(ids) and end - begin < 12:
            pieces.append("")
            continue
        pieces.append(text[len(said) :] if text.startswith(said) else text)
        if end < len(ids):
            begin = end - 1  # keep one token before it: some tokenizers drop a space at the beginning
            said = decode(ids[begin:end])
            if said.endswith("\ufffd"):
                begin, said = end, ""
    return pieces


def first_counted(text: Text) -> int:
    """Position of the first token that counts: where the answer begins."""
    return next((i for i, counts in enumerate(text.counted) if counts), len(text.ids))
