"""
One pass over texts that keeps what the pages of all features of an SAE need.

Shape suffixes: N tokens, T texts, D width of the site, F features, G groups.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from ...features.read.loading import place_of
from ...features.read.statistics import GroupSums
from ...features.read.texts import Text, batches
from ...features.read.tokens import Tokens, read_tokens
from ...saes.frozen import FrozenSAE
from ..scipy_sparse import scipy_sparse
from .snippets import Entries, Pairs, Strongest, pairs_of

if TYPE_CHECKING:
    from scipy.sparse import csr_array

_TILE_ELEMENTS = 1 << 24  # tokens × features of one dense tile: 64 MB
_TILE_ELEMENTS_ON_CPU = 1 << 20  # 4 MB
_FEWEST_TOKENS = 64  # of a tile
_MEAN_BYTES = 1 << 30  # of all texts' mean pre-activations, for AUROC


@dataclass(frozen=True)
class Reading:
    """
    What one pass read.

    Attributes:
        texts (`list[Text]`): The texts; numbers of texts count in this list.
        groups (`list[str]`): The groups, by number.
        sums ([`GroupSums`]): Sums of activations and of tokens on which features fire, by group.
        strongest (`csr_array` of shape `(T, F)`): Strongest activation of each feature in each text.
        means (`numpy.ndarray` of shape `(M, F)`), mean_groups (`(M,)`): Mean pre-activations of `M` texts, all
            that fit or some of each group, and numbers of their groups.
        snippets ([`Pairs`]): The strongest texts of each feature, without copies of a text.
    """

    texts: list[Text]
    groups: list[str]
    sums: GroupSums
    strongest: "csr_array"
    means: np.ndarray
    mean_groups: np.ndarray
    snippets: Pairs


def read_all_features(
    model: nn.Module, sae: FrozenSAE, texts: Sequence[Text], *, num_snippets: int, batch_size: int
) -> Reading:
    """
    Read all features of an SAE on texts.

    Args:
        model (`torch.nn.Module`):
            A causal language model in evaluation mode.
        sae ([`FrozenSAE`]):
            The SAE.
        texts (`Sequence[Text]`):
            Tokenized texts.
        num_snippets (`int`):
            Texts that are kept of each feature.
        batch_size (`int`):
            Texts in one forward pass.
    """
    ordered = sorted(texts, key=lambda text: -len(text.ids))  # the order in which `batches` has them
    groups = sorted({text.group for text in ordered})
    device = next(model.parameters()).device
    pass_over = _Pass(sae.to(device), ordered, groups, num_snippets, device)
    num_tokens = sum(len(text.ids) for text in ordered)
    with torch.inference_mode(), tqdm(total=num_tokens, unit="tok", unit_scale=True, desc="Reading texts") as bar:
        for tokens in read_tokens(model, batches(ordered, groups, batch_size), [place_of(sae)]):
            first = pass_over.num_texts
            pass_over.add(tokens, min(batch_size, len(ordered) - first))
            bar.update(sum(len(text.ids) for text in ordered[first : pass_over.num_texts]))
    return pass_over.reading()


def active_entries(sae: FrozenSAE, pre_NF: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Token, feature and activation of whatever fires on tokens, `(E,)` each, token by token."""
    if sae.keeps_largest:
        values_NK, ids_NK = sae.activate_topk(pre_NF)
        token_E, place_E = (values_NK > 0).nonzero(as_tuple=True)
        return token_E, ids_NK[token_E, place_E], values_NK[token_E, place_E]
    acts_NF = sae.activate(pre_NF)
    token_E, feature_E = (acts_NF > 0).nonzero(as_tuple=True)
    return token_E, feature_E, acts_NF[token_E, feature_E]


def tokens_per_tile(sae: FrozenSAE, device: torch.device) -> int:
    """Tokens whose pre-activations are held at once."""
    elements = _TILE_ELEMENTS_ON_CPU if device.type == "cpu" else _TILE_ELEMENTS
    return max(_FEWEST_TOKENS, elements // sae.num_features)


class _Pass:
    def __init__(self, sae: FrozenSAE, texts: list[Text], groups: list[str], num_snippets: int, device: torch.device):
        self._sae, self._texts, self._groups = sae, texts, groups
        self._sums = GroupSums.zeros(len(groups), sae.num_features, device)
        self._strongest: list[csr_array] = []
        self._snippets = Strongest(sae.num_features, num_snippets)
        self.num_texts = 0
        seen: set[str] = set()
        self._is_copy = np.zeros(len(texts), dtype=bool)
        for number, text in enumerate(texts):
            self._is_copy[number] = text.key in seen
            seen.add(text.key or str(number))
        most = max(2, _MEAN_BYTES // (4 * sae.num_features * len(groups)))
        count = dict.fromkeys(groups, 0)
        self._row_of: dict[int, int] = {}  # text to row of the means
        for number in random.Random(0).sample(range(len(texts)), len(texts)):
            text = texts[number]
            count[text.group] += 1
            if count[text.group] <= most and any(text.counted):
                self._row_of[number] = len(self._row_of)
        self._means = torch.zeros(len(self._row_of) if len(groups) > 1 else 0, sae.num_features)

    def add(self, tokens: Tokens, num_texts: int) -> None:
        first = self.num_texts
        members = self._texts[first : first + num_texts]
        self.num_texts += num_texts
        text_N = tokens.texts - first
        own_N = text_N.cpu().numpy()
        position_N = np.concatenate([np.flatnonzero(text.counted) for text in members])
        sums_TF = torch.zeros(num_texts, self._sae.num_features, device=text_N.device)
        parts = []
        residual_ND = tokens.values[place_of(self._sae)]
        size = tokens_per_tile(self._sae, residual_ND.device)
        for begin in range(0, len(residual_ND), size):
            pre_NF = self._sae.pre_activations(residual_ND[begin : begin + size])
            if len(self._means):
                sums_TF.index_add_(0, text_N[begin : begin + size], pre_NF)
            token_E, feature_E, value_E = active_entries(self._sae, pre_NF)
            token_E += begin
            self._sums.add_largest(value_E[:, None], feature_E[:, None], tokens.groups[token_E])
            parts.append([each.cpu().numpy() for each in (token_E, feature_E, value_E)])
        self._sums.num_tokens += torch.bincount(tokens.groups, minlength=len(self._groups))
        if len(self._means):
            count_T = torch.bincount(text_N, minlength=num_texts).clamp(min=1)[:, None]
            held = [number for number in range(num_texts) if first + number in self._row_of]
            rows = [self._row_of[first + number] for number in held]
            self._means[rows] = (sums_TF / count_T)[held].cpu()
        none = [np.zeros(0, dtype=np.int64)] * 3
        tokens_E, features_E, values_E = (np.concatenate(each) for each in zip(*(parts or [none])))
        entries = Entries(features_E, own_N[tokens_E], position_N[tokens_E], values_E.astype(np.float32))
        pairs = pairs_of(entries, num_texts)
        self._strongest.append(
            scipy_sparse().csr_array(
                (pairs.strongest, (pairs.texts, pairs.features)), shape=(num_texts, self._sae.num_features)
            )
        )
        fresh = pairs.take(np.flatnonzero(~self._is_copy[first + pairs.texts]))
        fresh.texts[:] += first
        self._snippets.add(fresh)

    def reading(self) -> Reading:
        number = {group: i for i, group in enumerate(self._groups)}
        return Reading(
            self._texts,
            self._groups,
            self._sums,
            scipy_sparse().vstack(self._strongest, format="csr"),
            self._means.numpy(),
            np.array([number[self._texts[text].group] for text in self._row_of], dtype=np.int64),
            self._snippets.kept(),
        )
