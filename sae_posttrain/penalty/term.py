"""
What a penalty is to a trainer: one added loss term that records, measures, has a weight and logs.

Shape suffixes: B batch, T tokens.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..hooks.record import training_capture
from ..hooks.sites import Place
from ..precision import widest_float
from .batches import behind_the_first, earlier_forwards, token_ids
from .groups import NO_GROUP, PADDING, GroupTable


@dataclass(frozen=True)
class PenalisedBatch:
    """
    One micro-batch as the terms see it.

    Attributes:
        inputs (`Mapping[str, Any]`):
            What `compute_loss` was given, without the groups.
        mask (`torch.Tensor` of shape `(B, T)`, bool):
            The positions that the trainer's loss is on. Those of the target groups are among them: see `penalised`.
        group_ids (`torch.Tensor` of shape `(B, T)`):
            Number of each token's group in `groups`; negative where there is none.
        behind_the_first (`torch.Tensor` of shape `(B, T)`, bool):
            Positions that are not the first of a document.
        groups ([`GroupTable`]):
            The groups.
    """

    inputs: Mapping[str, Any]
    mask: Tensor
    group_ids: Tensor
    behind_the_first: Tensor
    groups: GroupTable

    @classmethod
    def of(cls, inputs: Mapping[str, Any], positions: Tensor, group_ids: Tensor, groups: GroupTable):
        """
        Read a batch.

        Args:
            inputs (`Mapping[str, Any]`):
                What `compute_loss` is given, without the groups.
            positions (`torch.Tensor` of shape `(B, T)`, bool):
                The positions that the trainer's loss is on.
            group_ids (`torch.Tensor` of shape `(B, T)` or `(B,)`):
                Number of each token's or each row's group.
            groups ([`GroupTable`]):
                The groups.

        Raises:
            ValueError: If the groups are those of another number of rows.
        """
        if len(group_ids) != len(positions):
            raise ValueError(
                f"The batch has {len(positions)} rows and the groups of {len(group_ids)}, so it is not known which "
                "tokens belong to which group. Use a collator that makes one row of each example (no "
                "`DataCollatorWithFlattening`)."
            )
        if group_ids.dim() == 1:
            group_ids = group_ids[:, None].expand_as(positions)
        behind = behind_the_first(inputs, positions.shape).to(positions.device)
        # Nothing predicts a document's first token, and TRL does not count it.
        mask = positions & (group_ids != PADDING) & behind
        return cls(dict(inputs), mask, group_ids, behind, groups)  # a copy: a trainer may change its inputs

    @cached_property
    def num_tokens(self) -> Tensor:
        """How many positions the trainer's loss is on, those of the target groups included."""
        return self.mask.sum()

    @property
    def penalised(self) -> Tensor:
        """The positions of `mask` whose group is not a target, `(B, T)`, bool."""
        return self.mask & self.groups.is_penalised(self.group_ids)

    @property
    def token_ids(self) -> Tensor:
        """The tokens that the model is given, `(B, T)`."""
        return token_ids(self.inputs)

    def of_loss(self, values: list[Tensor]) -> list[Tensor]:
        """What was recorded from the forward of the loss on: some trainers run another forward before it."""
        return values[earlier_forwards(self.inputs) :]

    def aligned(self, value: Tensor) -> Tensor:
        """A recorded value of shape `(B, T, D)` without the virtual tokens that prompt tuning puts in front."""
        return value[:, -self.mask.shape[1] :]

    def value_at(self, captured: Mapping[Place, list[Tensor]], place: Place) -> Tensor:
        """
        What passed at a place in the forward of the loss, `(B, T, D)`, attached to the graph where gradients are on.

        Args:
            captured (`Mapping[tuple[int, str], list[torch.Tensor]]`):
                What [`SiteRecorder.armed`] yields.
            place (`tuple[int, str]`):
                Block and site.
        """
        return self.aligned(training_capture({place: self.of_loss(captured[place])}, place))


class TermReading(NamedTuple):
    """
    What a term measured on one micro-batch.

    Attributes:
        total (`torch.Tensor` of shape `()`):
            The penalty as a sum over tokens, attached to the graph. The trainer divides it and multiplies it by the
            term's weight.
        sums (`torch.Tensor` of shape `(K,)`):
            Figures for the log that can be added up over micro-batches and processes; detached.
    """

    total: Tensor
    sums: Tensor


class PenaltyTerm(ABC):
    """
    One added loss term. Derive from it, and pass an object of the class to a trainer with [`FeaturePenaltyMixin`] in
    front: `terms=[MyTerm()]`.

    The trainer calls `attach` once, before the first forward. In each step it runs the forward of its loss inside
    `arm()`, then calls `measure` and adds `weight · total / number of tokens` to its loss. At a logging step it calls
    `metrics`. A term with weight 0 is measured without gradients and adds nothing to the loss.

    Attributes:
        weight (`float`):
            Weight of the term's mean over tokens, beside the trainer's loss.
    """

    weight: float = 0.0

    def attach(self, model: nn.Module) -> None:  # noqa: B027  # a term may need no hooks
        """Register hooks on the model. A hook that is added after the first forward may never fire."""

    def arm(self) -> AbstractContextManager[Any]:
        """Record what the term needs of the forwards inside; the context yields it, and `measure` is given it."""
        return nullcontext()

    @abstractmethod
    def measure(self, captured: Any, batch: PenalisedBatch) -> TermReading:
        """
        Measure one micro-batch, after the forward. It is called in evaluation too, without gradients.

        Args:
            captured:
                What `arm` yielded.
            batch ([`PenalisedBatch`]):
                Positions, groups and tokens of the micro-batch.
        """

    def metrics(self, sums: Tensor) -> dict[str, float]:
        """
        Figures to log.

        Args:
            sums (`torch.Tensor` of shape `(K,)`):
                The sums of a logging window, added up over its micro-batches and all processes.
        """
        return {}


class GroupShare(PenaltyTerm):
    """Adds nothing to the loss: it logs the share of tokens whose answer has no letters to tell a group from."""

    def measure(self, captured: Any, batch: PenalisedBatch) -> TermReading:
        without_group = (batch.mask & (batch.group_ids == NO_GROUP)).sum()
        return TermReading(without_group, summable(without_group, batch.num_tokens))

    def metrics(self, sums: Tensor) -> dict[str, float]:
        without_group, num_tokens = sums.tolist()
        return {"sae/without_group": without_group / num_tokens} if without_group else {}


def summable(*figures: Tensor) -> Tensor:
    """Figures of a micro-batch as one vector, in the widest floating-point type of the first one's device."""
    device = figures[0].device
    return torch.cat([figure.detach().reshape(-1).to(device) for figure in figures]).to(widest_float(device))
