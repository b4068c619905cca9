"""What the tokens of a text read on the features of a set."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..eval_mode import eval_mode
from ..features.set.feature_set import FeatureSet
from ..hooks.record import record_sites


@dataclass(frozen=True)
class Readings:
    """
    Pre-activations of features on tokens.

    Attributes:
        labels (`tuple[str, ...]`):
            The features.
        values (`torch.Tensor` of shape `(T, F)`, float32):
            Their pre-activations.
    """

    labels: tuple[str, ...]
    values: Tensor

    def shades(self, feature: int) -> list[float]:
        """
        A number from 0 to 1 for each token: its reading above 0, as a share of the highest one.

        Readings of 0 or less get 0, because an SAE's feature is not active there.
        """
        positive = self.values[:, feature].clamp(min=0)
        highest = float(positive.max()) if len(positive) else 0.0
        return (positive / highest).tolist() if highest > 0 else [0.0] * len(positive)


def read_tokens(model: nn.Module, feature_set: FeatureSet, ids: Sequence[int], num_last: int) -> Readings:
    """
    Pre-activations on the last tokens of a text, in one forward pass of the model as it is, without steering.

    Args:
        model (`torch.nn.Module`):
            A causal language model.
        feature_set ([`FeatureSet`]):
            The features.
        ids (`Sequence[int]`):
            Token ids of the text.
        num_last (`int`):
            How many tokens to read, from the end.
    """
    device = next(model.parameters()).device
    with eval_mode(model), torch.no_grad(), record_sites(model, feature_set.places) as values:
        model(input_ids=torch.tensor([list(ids)], device=device), use_cache=False)
    columns: list[Tensor] = []
    labels: list[str] = []
    for place in feature_set.places:
        residual = values[place][0][0, len(ids) - num_last :]
        columns.append(feature_set.at(place).pre_activations(residual).cpu())
        labels += feature_set.labels_at(place)
    return Readings(tuple(labels), torch.cat(columns, dim=1))
