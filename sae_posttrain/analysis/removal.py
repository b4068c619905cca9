"""The causal check of a diagnosis: is the fault less probable when a feature is removed, and is anything else?"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from ..features.read.texts import Text
from ..features.set.feature_set import FeatureSet
from ..hooks.edit import edit_sites
from ..measure.statistics.resampling import bootstrap_mean

_NUM_RESAMPLES = 2_000


@dataclass(frozen=True)
class Removal:
    """
    What removing a feature does to the log-probability of tokens, in nats a token, with 95 % intervals over answers.

    Attributes:
        fault, fault_interval:
            Change on the tokens of the fault. Below 0: they became less probable.
        others, others_interval:
            Change on the other tokens of the same answers. Near 0: the rest is left alone.
        num_answers (`int`):
            Answers that were read.
    """

    fault: float
    fault_interval: tuple[float, float]
    others: float
    others_interval: tuple[float, float]
    num_answers: int


def remove_each(
    model: nn.Module, feature_set: FeatureSet, texts: Sequence[Text], faults: Sequence[np.ndarray]
) -> list[Removal]:
    """
    Remove each feature's direction from what its site holds, one at a time, and read the tokens' log-probabilities.

    Directional ablation as in https://huggingface.co/papers/2505.05111: `h − (h · d̂) d̂` at every position.

    Args:
        model (`torch.nn.Module`):
            A causal language model, in evaluation mode.
        feature_set ([`FeatureSet`]):
            The features.
        texts (`Sequence[Text]`), faults (`Sequence[numpy.ndarray]`, each of shape `(T,)`, bool):
            Bad answers, and which of their tokens are in the fault.

    Returns:
        `list[Removal]`, one for each feature.
    """
    device = next(model.parameters()).device
    changes: list[list[tuple[float, float]]] = [[] for _ in range(len(feature_set))]
    units_FD = torch.nn.functional.normalize(feature_set.directions.float(), dim=1).to(device)
    places = list(zip(feature_set.blocks, feature_set.sites))
    with torch.inference_mode():
        for text, fault in zip(tqdm(texts, desc="Removing features", unit=" answers", leave=False), faults):
            counted = torch.tensor(text.counted)[1:]
            inside = torch.from_numpy(fault)[1:] & counted
            if not inside.any() or inside.equal(counted):
                continue
            before_T = _log_probabilities(model, text, device)
            for number, (place, unit_D) in enumerate(zip(places, units_FD)):
                with edit_sites(model, {place: partial(_off, unit_D)}):
                    change_T = _log_probabilities(model, text, device) - before_T
                changes[number].append((float(change_T[inside].mean()), float(change_T[counted & ~inside].mean())))
    return [_summary(each) for each in changes]


def _off(unit_D: Tensor, hidden: Tensor) -> Tensor:
    with torch.autocast(hidden.device.type, enabled=False):
        return -((hidden.float() @ unit_D)[..., None] * unit_D).to(hidden.dtype)


def _log_probabilities(model: nn.Module, text: Text, device: torch.device) -> Tensor:
    """Log-probability of each token but the first, `(T - 1,)`, on the CPU."""
    ids = torch.tensor([text.ids], device=device)
    logits_TV = model(input_ids=ids, use_cache=False).logits[0, :-1].float()
    picked_T = logits_TV.gather(1, ids[0, 1:, None])[:, 0]
    return (picked_T - logits_TV.logsumexp(dim=1)).cpu()


def _summary(changes: Sequence[tuple[float, float]]) -> Removal:
    if not changes:
        nan = float("nan")
        return Removal(nan, (nan, nan), nan, (nan, nan), 0)
    means, bounds = [], []
    for column in zip(*changes):
        if len(set(column)) < 2:  # no spread to resample
            means.append(column[0])
            bounds.append((float("nan"), float("nan")))
            continue
        rows = [(number, 0, value) for number, value in enumerate(column)]
        estimate = bootstrap_mean(rows, num_resamples=_NUM_RESAMPLES)
        means.append(estimate.estimate)
        bounds.append((estimate.low, estimate.high))
    return Removal(means[0], bounds[0], means[1], bounds[1], len(changes))
