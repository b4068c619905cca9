"""Which features write nearly the same direction."""

import torch
from torch import Tensor

_COSINES_AT_ONCE = 1 << 25  # 128 MB


def nearest_directions(directions_FD: Tensor, num: int) -> tuple[Tensor, Tensor]:
    """
    For each direction the others of largest cosine, the nearest first.

    Args:
        directions_FD (`torch.Tensor` of shape `(F, D)`):
            Decoder directions.
        num (`int`):
            Number of neighbours; fewer if there are fewer others.

    Returns:
        `tuple[torch.Tensor, torch.Tensor]` of shape `(F, K)`: cosines, and row numbers of the neighbours.
    """
    unit_FD = torch.nn.functional.normalize(directions_FD.float(), dim=1)
    num = min(num, len(unit_FD) - 1)
    parts = []
    for start in range(0, len(unit_FD), max(1, _COSINES_AT_ONCE // len(unit_FD))):
        cosines = unit_FD[start : start + max(1, _COSINES_AT_ONCE // len(unit_FD))] @ unit_FD.T
        own = torch.arange(len(cosines), device=cosines.device)
        cosines[own, own + start] = -torch.inf
        parts.append([each.cpu() for each in cosines.topk(num, dim=1)])
    cosines_FK, rows_FK = (torch.cat(each) for each in zip(*parts))
    return cosines_FK, rows_FK
