"""How well a score tells two classes apart: the area under the ROC curve."""

import torch
from torch import Tensor

from ...precision import widest_float


def auroc(scores: Tensor, positive: Tensor) -> Tensor:
    """
    Area under the ROC curve of each column of `scores` `(N, F)`, from ranks: the chance that a positive scores above a
    negative, ties counting half.
    """
    num_positive, num_negative = int(positive.sum()), int((~positive).sum())
    if not num_positive or not num_negative:
        raise ValueError(f"AUROC needs positives and negatives, got {num_positive} and {num_negative}.")
    positive_FN = scores[positive].T.contiguous()
    negative_FN = scores[~positive].T.sort(dim=1).values.contiguous()
    below_FN = torch.searchsorted(negative_FN, positive_FN)  # negatives below each positive
    up_to_FN = torch.searchsorted(negative_FN, positive_FN, right=True)  # and those that are equal to it
    pairs_F = (below_FN + up_to_FN).sum(dim=1, dtype=widest_float(scores.device))
    return (pairs_F / (2 * num_positive * num_negative)).float()
