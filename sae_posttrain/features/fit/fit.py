"""
[`measure_fit`]: how well an SAE describes what its site holds in a model, on texts.

Shape suffixes: B texts, T positions, N tokens, D width of the site, F features, G groups.
"""

import math
import os
import random
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from ...eval_mode import eval_mode
from ...hooks.blocks import find_blocks
from ...hooks.edit import edit_sites
from ...hooks.record import record_sites
from ...hooks.sites import Place, find_site, require_width
from ...saes.frozen import COMPARING, FrozenSAE
from ..read.loading import load_model_and_tokenizer, place_of, require_order
from ..read.text_options import TextOptions
from ..read.texts import Text, TextBatch, batches, check_texts, tokenize
from ..read.variance import UnexplainedVariance
from ..set.model_identity import model_name

_TILE_ELEMENTS = 1 << 24  # tokens × features of one dense tile of activations: 64 MB
_NORMS_KEPT = 200_000  # for the median

FIT_TEXTS = TextOptions(max_texts=200, batch_size=8)
"""Options of [`measure_fit`] by default: 200 texts give its figures."""


@dataclass(frozen=True)
class SAEFit:
    """
    How well one SAE fits one model, over the tokens that count. Made by [`measure_fit`].

    Attributes:
        block, site, file: Where the SAE reads, and its weight file.
        model, base_model: The model measured, and the one that the SAE's files name; empty if unknown.
        fvu: Fraction of variance unexplained, `Σ‖x - x̂‖² / Σ‖x - mean(x)‖²`: 0 is perfect, 1 no better than the mean.
        fvu_by_group: The same over the tokens of each group of texts, about the same mean.
        fvu_next_door: The same of this SAE at this site of the blocks before and after its own.
        l0: Features active on a token, mean.
        stated_l0: What the SAE's files say it should be.
        dead_features: Share of features active on none of the tokens.
        cosine, norm_ratio: Cosine between `x̂` and `x`, and the ratio `‖x̂‖ / ‖x‖`; means over tokens.
        residual_norm: Median `‖x‖`.
        loss, loss_with_sae, loss_with_zero: Nats per token: of the model as it is, with `x̂` in the place of `x`, and
            with 0 there.
    """

    block: int
    site: str
    file: str
    model: str
    base_model: str
    num_tokens: int
    fvu: float
    fvu_by_group: dict[str, float]
    fvu_next_door: dict[int, float]
    l0: float
    stated_l0: float | None
    dead_features: float
    cosine: float
    norm_ratio: float
    residual_norm: float
    loss: float
    loss_with_sae: float
    loss_with_zero: float

    @property
    def loss_recovered(self) -> float:
        """
        `(loss_with_zero - loss_with_sae) / (loss_with_zero - loss)`, 1 at best; not a number where zeros do not hurt.

        SAELens' `ce_loss_score` (https://github.com/decoderesearch/SAELens, `evals.py`), with one difference: there
        the first and special tokens are set to zero too.
        """
        hurt = self.loss_with_zero - self.loss
        return (self.loss_with_zero - self.loss_with_sae) / hurt if hurt > 0 else math.nan

    def as_dict(self) -> dict[str, Any]:
        """Everything, as plain values for JSON; what is not a number is `None`."""
        values = asdict(self) | {"loss_recovered": self.loss_recovered}
        return {
            name: None if isinstance(value, float) and math.isnan(value) else value for name, value in values.items()
        }


def measure_fit(
    model: nn.Module | str,
    saes: FrozenSAE | Sequence[FrozenSAE],
    texts: str | os.PathLike | Iterable[Mapping[str, Any]],
    *,
    tokenizer: Any = None,
    text_options: TextOptions = FIT_TEXTS,
    seed: int = 0,
) -> list[SAEFit]:
    """
    Measure how well SAEs describe what their sites hold in a model, each at its own site.

    Left out of all figures are the first token of each text, whose residual is an outlier in most models and which
    SAEs are often not trained on, special tokens, and prompts. Where the SAE replaces the model's values, it does so
    on the tokens that count; the loss is taken where a replaced token predicts one that counts.

    Args:
        model (`torch.nn.Module` or `str`):
            A causal language model, or its folder or Hub id.
        saes ([`FrozenSAE`] or a sequence of them):
            SAEs with all of their features and directions, one a site.
        texts (`str`, `os.PathLike` or `Iterable[Mapping]`):
            A JSONL file (or `.gz`, or a folder of them), a `datasets` id, or rows. A row has a text, `messages`, or
            `prompt` and `completion`.
        tokenizer (`PreTrainedTokenizerBase`, *optional*):
            The model's own by default.
        text_options ([`TextOptions`], *optional*, defaults to `TextOptions(max_texts=200, batch_size=8)`):
            How the texts are read. `max_texts` counts the texts of all groups together here. Rows without a group
            are taken together.
        seed (`int`, *optional*, defaults to `0`):
            Seed of the random draw of texts.

    Returns:
        `list[SAEFit]`: one for each SAE, in their order.

    Raises:
        FileNotFoundError: If there is no such file of texts.
        ValueError: If there is no SAE, two read one site, an SAE cannot encode or does not fit the model's sizes, or
            no token counts.
    """
    require_order(saes, texts)
    saes = [saes] if isinstance(saes, FrozenSAE) else list(saes)
    if not saes:
        raise ValueError("There is no SAE to measure.")
    if len({place_of(sae) for sae in saes}) < len(saes):
        raise ValueError("Give one SAE for each block and site.")
    for sae in saes:
        _require_encodes(sae)
    rows = check_texts(texts, text_options.split, group_column=None, text_column=text_options.text_column)
    loaded, tokenizer = load_model_and_tokenizer(model, tokenizer)
    for sae in saes:
        require_width(loaded, place_of(sae), sae.d_model, "The SAE reads", "was it trained on this model?")
    chosen = _draw(rows, tokenizer, text_options, seed)
    groups = sorted({text.group for text in chosen})
    device = next(loaded.parameters()).device
    next_door = [_next_door(loaded, sae) for sae in saes]
    sums = [_Sums(sae.to(device), len(groups), places, device=device) for sae, places in zip(saes, next_door)]
    places = list(dict.fromkeys([*map(place_of, saes), *(place for each in next_door for place in each)]))
    clean = _Loss()
    progress = tqdm(total=sum(len(text.ids) for text in chosen), unit="tok", unit_scale=True, desc="Measuring")
    with torch.inference_mode(), eval_mode(loaded), progress:
        for batch in batches(chosen, groups, text_options.batch_size):
            batch = batch.to(device)
            groups_N = batch.groups[:, None].expand_as(batch.counted)[batch.counted]
            with record_sites(loaded, places) as values:
                clean.add(loaded, batch)
            held = {place: captured[0] for place, captured in values.items()}
            for each in sums:
                made_ND = each.add(held, batch.counted, groups_N)
                each.with_sae.add(loaded, batch, {each.place: _replace(batch.counted, made_ND)})
                each.with_zero.add(loaded, batch, {each.place: _replace(batch.counted, torch.zeros_like(made_ND))})
            progress.update(int(batch.attention_mask.sum()))
    if not clean.num_tokens:
        raise ValueError(
            "No token counts: the texts hold one or two tokens each, or special tokens only. Give longer texts."
        )
    return [each.result(groups, model_name(loaded), clean) for each in sums]


def _require_encodes(sae: FrozenSAE) -> None:
    if sae.features is not None:
        raise ValueError(f"Only {sae.num_features} features were loaded. Load the SAE without `features`.")
    if sae.k is None and sae.activation in COMPARING:
        raise ValueError("The SAE's files do not say how many features are active per token. Give it, e.g. `k=50`.")
    _ = sae.directions  # an error if they were left in the file


def _draw(rows: Sequence[Mapping[str, Any]], tokenizer: Any, options: TextOptions, seed: int) -> list[Text]:
    max_texts, group_column = options.max_texts, options.group_column
    if max_texts is not None and max_texts < 1:
        raise ValueError(f"`max_texts` must be 1 or more, got {max_texts}.")
    if not rows:
        raise ValueError("There are no texts to measure on.")
    drawn = random.Random(seed).sample(rows, len(rows))[:max_texts]
    grouped = [row if isinstance(row.get(group_column), str) else {**row, group_column: ""} for row in drawn]
    return tokenize(grouped, tokenizer, options)


def _next_door(model: nn.Module, sae: FrozenSAE) -> list[Place]:
    """The SAE's site in the blocks before and after, where they have it in this width."""
    places = []
    for block in (sae.block - 1, sae.block + 1):
        if 0 <= block < len(find_blocks(model)):
            try:
                found = find_site(model, (block, sae.site))
            except ValueError:  # blocks of several kinds: this one has no such module
                continue
            if found.width in (None, sae.d_model):
                places.append(found.place)
    return places


def _replace(counted_BT: Tensor, made_ND: Tensor) -> Callable[[Tensor], Tensor]:
    """What is to be added to a site so that it holds `made_ND` at the tokens that count."""

    def push(value_BTD: Tensor) -> Tensor:
        push_BTD = torch.zeros_like(value_BTD)
        push_BTD[counted_BT] = (made_ND - value_BTD[counted_BT].float()).to(value_BTD.dtype)
        return push_BTD

    return push


class _Loss:
    """Sum of the token losses, over the tokens that count and follow one that counts."""

    def __init__(self) -> None:
        self.sum = 0.0
        self.num_tokens = 0

    def add(
        self, model: nn.Module, batch: TextBatch, pushes: Mapping[Place, Callable[[Tensor], Tensor]] | None = None
    ) -> None:
        with edit_sites(model, pushes or {}):
            logits = model(input_ids=batch.input_ids, attention_mask=batch.attention_mask, use_cache=False).logits
        scored_BT = batch.counted[:, 1:] & batch.counted[:, :-1]
        for logits_TV, ids_T, scored_T in zip(
            logits, batch.input_ids, scored_BT
        ):  # a text at a time: float32 is large
            losses = nn.functional.cross_entropy(
                logits_TV[:-1][scored_T].float(), ids_T[1:][scored_T], reduction="sum"
            )
            self.sum += float(losses)
        self.num_tokens += int(scored_BT.sum())

    @property
    def mean(self) -> float:
        return self.sum / self.num_tokens


class _Sums:
    """Everything that is added up for one SAE."""

    def __init__(self, sae: FrozenSAE, num_groups: int, next_door: Sequence[Place], *, device: torch.device):
        self.place = place_of(sae)
        self.with_sae, self.with_zero = _Loss(), _Loss()
        self._sae = sae
        self._variance = {
            place: UnexplainedVariance(num_groups, sae.d_model, device) for place in (self.place, *next_door)
        }
        self._was_active_F = torch.zeros(sae.num_features, dtype=torch.bool, device=device)
        self._num_tokens = 0
        self._num_active = self._cosine = self._ratio = 0.0
        self._norms: list[Tensor] = []

    def add(self, held: Mapping[Place, Tensor], counted_BT: Tensor, groups_N: Tensor) -> Tensor:
        """Add the counted tokens of a batch; what the SAE makes of those at its own site: `(N, D)`."""
        made = {}
        for place, variance in self._variance.items():
            x_ND = held[place][counted_BT].float()
            made[place] = self._reconstruct(x_ND, own=place == self.place)
            variance.add(x_ND, made[place], groups_N)
        x_ND, made_ND = held[self.place][counted_BT].float(), made[self.place]
        norms_N = x_ND.norm(dim=1)
        self._cosine += float(nn.functional.cosine_similarity(x_ND, made_ND).sum())
        self._ratio += float((made_ND.norm(dim=1) / norms_N.clamp_min(torch.finfo(torch.float32).tiny)).sum())
        if self._num_tokens < _NORMS_KEPT:
            self._norms.append(norms_N.cpu())
        self._num_tokens += len(x_ND)
        return made_ND

    def _reconstruct(self, x_ND: Tensor, *, own: bool) -> Tensor:
        """A tile of tokens at a time."""
        tiles = []
        for tile_ND in x_ND.split(max(1, _TILE_ELEMENTS // self._sae.num_features)):
            acts_NF = self._sae.encode(tile_ND)
            if own:
                active_NF = acts_NF != 0  # features of AbsTopK are active below 0 too
                self._was_active_F |= active_NF.any(dim=0)
                self._num_active += int(active_NF.sum())
            normalised = self._sae.input_norm is not None
            tiles.append(self._sae.reconstruct(tile_ND) if normalised else self._sae.decode(acts_NF))
        return torch.cat(tiles) if tiles else torch.zeros_like(x_ND)

    def result(self, groups: Sequence[str], model: str, clean: _Loss) -> SAEFit:
        fvu, by_group = self._variance[self.place].fractions()
        named = {group: float(value) for group, value in zip(groups, by_group) if group}
        next_door = {
            place[0]: variance.fractions()[0] for place, variance in self._variance.items() if place != self.place
        }
        return SAEFit(
            block=self._sae.block,
            site=self._sae.site,
            file=self._sae.source.file,
            model=model,
            base_model=self._sae.base_model,
            num_tokens=self._num_tokens,
            fvu=fvu,
            fvu_by_group=named,
            fvu_next_door=next_door,
            l0=self._num_active / self._num_tokens,
            stated_l0=_stated_l0(self._sae),
            dead_features=1 - float(self._was_active_F.float().mean()),
            cosine=self._cosine / self._num_tokens,
            norm_ratio=self._ratio / self._num_tokens,
            residual_norm=float(torch.cat(self._norms).median()),
            loss=clean.mean,
            loss_with_sae=self.with_sae.mean,
            loss_with_zero=self.with_zero.mean,
        )


def _stated_l0(sae: FrozenSAE) -> float | None:
    """`k`, or what Gemma Scope writes into the folder's name."""
    if sae.k is not None:
        return float(sae.k)
    found = re.search(r"average_l0_(\d{1,6})(?=/|$)", sae.source.file)
    return float(found[1]) if found else None
