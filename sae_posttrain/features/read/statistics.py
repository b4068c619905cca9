"""
How every feature of every SAE reads on each group, from one forward pass: sums that are streamed, nothing stored.

Shape suffixes: N tokens, D width of the site, F features, G groups.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields

import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from torch import Tensor, nn
from tqdm.auto import tqdm

from ...hooks.sites import Place
from ...hooks.truncated import read_sites
from ...precision import widest_float
from ...saes.frozen import FrozenSAE
from .loading import place_of
from .texts import TextBatch

_TILE_ELEMENTS = 1 << 24  # tokens × features of one dense tile of pre-activations: 64 MB
_TILE_ELEMENTS_ON_CPU = 1 << 20  # 4 MB: what is done to a tile finds it in the cache
_NORMS_KEPT = 200_000  # of each place, for the median


@dataclass
class GroupSums:
    """
    Sums over the tokens of each group, for every feature of one SAE.

    Attributes:
        num_tokens (`(G,)`): Tokens counted.
        activation, fired, pre, pre_squared (`(G, F)`, float64): Sums of the activation, of whether it is above 0, of
            the pre-activation and of its square.
        norms (`(N,)`): Norms of what the SAE's site holds.
    """

    num_tokens: Tensor
    activation: Tensor
    fired: Tensor
    pre: Tensor
    pre_squared: Tensor
    norms: Tensor

    @classmethod
    def zeros(cls, num_groups: int, num_features: int, device: torch.device) -> "GroupSums":
        wide = widest_float(device)
        num_tokens = torch.zeros(num_groups, dtype=wide, device=device)
        a, b, c, d = (torch.zeros(num_groups, num_features, dtype=wide, device=device) for _ in range(4))
        return cls(num_tokens, a, b, c, d, norms=torch.zeros(0, device=device))

    def add(self, residual_ND: Tensor, groups_N: Tensor, sae: FrozenSAE) -> None:
        """Add the tokens of a batch, a tile of them at a time."""
        elements = _TILE_ELEMENTS_ON_CPU if residual_ND.device.type == "cpu" else _TILE_ELEMENTS
        per_tile = max(1, elements // sae.num_features)
        num_groups = len(self.num_tokens)
        for residual, groups in zip(residual_ND.split(per_tile), groups_N.split(per_tile)):
            residual = residual.float()
            member_GN = torch.nn.functional.one_hot(groups, num_groups).T.float()
            self.num_tokens += member_GN.sum(dim=1)
            pre_NF = sae.pre_activations(residual)
            if sae.keeps_largest:  # k values a token, not F
                self.add_largest(*sae.activate_topk(pre_NF), groups)
            else:
                acts_NF = sae.activate(pre_NF)
                self.activation += member_GN @ acts_NF
                self.fired += member_GN @ (acts_NF > 0).float()
            self.pre += member_GN @ pre_NF
            self.pre_squared += member_GN @ pre_NF.square_()
            room = _NORMS_KEPT - len(self.norms)
            if room > 0:
                self.norms = torch.cat([self.norms, residual.norm(dim=1)[:room]])

    def add_largest(self, values_NK: Tensor, ids_NK: Tensor, groups_N: Tensor) -> None:
        """Add the activations of tokens that are given as values and numbers of features."""
        places = (groups_N[:, None] * self.activation.shape[1] + ids_NK).flatten()
        self.activation.view(-1).index_add_(0, places, values_NK.flatten().to(self.activation.dtype))
        self.fired.view(-1).index_add_(0, places, (values_NK > 0).flatten().to(self.fired.dtype))

    @property
    def mean_activation(self) -> Tensor:
        """Mean activation per group, `(G, F)`."""
        return self.activation / self.num_tokens[:, None]

    @property
    def firing_rate(self) -> Tensor:
        """Share of tokens on which the feature is active, `(G, F)`."""
        return self.fired / self.num_tokens[:, None]

    @property
    def mean_pre(self) -> Tensor:
        """Mean pre-activation per group, `(G, F)`."""
        return self.pre / self.num_tokens[:, None]

    @property
    def std_pre(self) -> Tensor:
        """Standard deviation of the pre-activation per group, `(G, F)`."""
        variance = self.pre_squared / self.num_tokens[:, None] - self.mean_pre.square()
        return variance.clamp(min=0).sqrt()


def collect_statistics(
    model: nn.Module,
    batches: Iterable[TextBatch],
    saes: Sequence[FrozenSAE],
    num_groups: int,
    *,
    num_tokens: int | None = None,
) -> dict[Place, GroupSums]:
    """
    Sums of every feature of every SAE, each at its own site, from one forward pass per batch.

    Under `accelerate launch` each process gives its own batches, and the sums are added up over the processes.
    `num_tokens` is for the progress bar.
    """
    device = next(model.parameters()).device
    saes = [sae.to(device) for sae in saes]
    sums = {place_of(sae): GroupSums.zeros(num_groups, sae.num_features, device) for sae in saes}
    progress = tqdm(total=num_tokens, unit="tok", unit_scale=True, desc="Reading texts", disable=not _is_main())
    with torch.inference_mode(), progress:
        for batch in batches:
            batch = batch.to(device)
            values = read_sites(model, list(sums), input_ids=batch.input_ids, attention_mask=batch.attention_mask)
            groups_N = batch.groups[:, None].expand_as(batch.counted)[batch.counted]
            for sae in saes:
                sums[place_of(sae)].add(values[place_of(sae)][batch.counted], groups_N, sae)
            progress.update(int(batch.attention_mask.sum()))
    for place_sums in sums.values():
        _add_over_processes(place_sums)
    return sums


def _is_main() -> bool:
    return PartialState().is_main_process


def _add_over_processes(sums: GroupSums) -> None:
    if PartialState().num_processes == 1:
        return
    for each in fields(sums):
        if each.name != "norms":
            torch.distributed.all_reduce(getattr(sums, each.name))
    sums.norms = torch.cat(gather_object([sums.norms.cpu()]))  # every process takes the same median
