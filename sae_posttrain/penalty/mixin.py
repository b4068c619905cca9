"""Adds the feature penalty to the loss of a trainer."""

from typing import Any

import torch
from torch import Tensor

from ..hooks.record import SiteRecorder, training_capture
from ..hooks.sites import Place
from .feature_penalty import FeaturePenalty, PenaltyReading
from .groups import GROUP_IDS

_MAX_FEATURES_LOGGED_BY_NAME = 32


class FeaturePenaltyMixin:
    """
    Put before a TRL trainer in the bases of a class, it adds one term to the loss: a [`FeaturePenalty`] on
    what passes at the features' sites at the tokens that the loss is taken on. Everything else is the trainer's.

    The subclass calls [`start_feature_penalty`] at the end of its `__init__`, and sees to it that the batches hold
    `group_ids`.

    The term is divided as the trainer divides its token loss, by `num_items_in_batch`: all response tokens of the
    accumulation window over all processes. So a weight means the same at any batch size, accumulation and number of
    processes.
    """

    # The trainer's own; declared for the type checker.
    model: Any
    args: Any
    accelerator: Any
    _metrics: Any

    feature_penalty: FeaturePenalty | None = None
    """The penalty in use; `None` trains plainly."""

    def start_feature_penalty(self, penalty: FeaturePenalty, weight: float, positions: str = "response") -> None:
        """
        Register the hooks, before the first forward.

        Args:
            penalty ([`FeaturePenalty`]):
                What to measure.
            weight (`float`):
                Its weight beside the mean token loss.
            positions (`"response"` or `"predicting"`, *optional*, defaults to `"response"`):
                At the tokens of the answer, or at the positions that predict them: one to the left, so that the last
                position of the prompt, which chooses how the answer begins, is held too.

        Raises:
            ValueError: If the model has no such block or site.
        """
        self.feature_penalty = penalty
        self.penalty_weight = weight
        self.penalty_positions = positions
        self._recorder = SiteRecorder(self.model, penalty.places)
        self._penalty_sums: dict[str, Tensor] = {}

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        group_ids = inputs.pop(GROUP_IDS, None)  # ours: the model must not see it
        if self.feature_penalty is None:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)  # type: ignore[misc]
        if group_ids is None:
            raise ValueError(
                f"The batch has no `{GROUP_IDS}`, so the penalty cannot tell whose tokens it may touch. "
                "Was the trainer's data collator replaced?"
            )
        labels = inputs["labels"]
        with self._recorder.armed() as captures:
            result = super().compute_loss(model, inputs, return_outputs, num_items_in_batch)  # type: ignore[misc]
        training = self.model.training
        with torch.set_grad_enabled(training and self.penalty_weight > 0):
            reading = self._read_penalty(captures, group_ids, labels)
            if training and self.penalty_weight > 0:
                loss = result[0] if return_outputs else result
                loss = loss + self.penalty_weight * self._scale(reading.excess_sum, labels, num_items_in_batch)
                result = (loss, result[1]) if return_outputs else loss
        self._add_to_metrics("train" if training else "eval", reading, labels)
        return result

    def _read_penalty(self, captures: dict[Place, list[Tensor]], group_ids: Tensor, labels: Tensor) -> PenaltyReading:
        assert self.feature_penalty is not None
        num_tokens = labels.shape[1]
        values = {}
        for place in self.feature_penalty.places:
            value = training_capture(captures, place)
            values[place] = value[:, -num_tokens:]  # prompt tuning puts virtual tokens in front
        mask = labels != -100
        mask[:, 0] = False  # nothing predicts a document's first token, and TRL does not count it
        if self.penalty_positions == "predicting":
            mask = mask.roll(-1, dims=1)  # as many positions, each one to the left
        return self.feature_penalty(values, group_ids, mask)

    def _scale(self, excess_sum: Tensor, labels: Tensor, num_items_in_batch: Tensor | int | None) -> Tensor:
        """Divide as `SFTTrainer.compute_loss` divides its token loss."""
        if num_items_in_batch is None:
            return excess_sum / _num_response_tokens(labels).clamp(min=1)
        num_items = torch.as_tensor(num_items_in_batch, device=excess_sum.device).clamp(min=1)
        scaled = excess_sum / num_items
        if self.args.average_tokens_across_devices:  # DDP averages gradients, the count is of all processes
            scaled = scaled * (self.accelerator.num_processes // self.get_tp_size())  # type: ignore[attr-defined]
        return scaled

    # Metrics stay tensors on the device until the logging step, where they are reduced once.

    def _add_to_metrics(self, mode: str, reading: PenaltyReading, labels: Tensor) -> None:
        sums = torch.cat(
            [
                torch.stack([reading.excess_sum.detach(), _num_response_tokens(labels), reading.num_penalised]),
                reading.num_above,
                reading.pre_activation_sum,
            ]
        ).double()
        self._penalty_sums[mode] = self._penalty_sums.get(mode, 0) + sums

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        mode = "train" if self.model.training else "eval"
        if self.feature_penalty is not None and mode in self._penalty_sums:
            sums = self.accelerator.reduce(self._penalty_sums.pop(mode), reduction="sum")
            for name, value in _metrics(sums, self.feature_penalty).items():
                self._metrics[mode][name] = [value]
        super().log(logs, start_time)  # type: ignore[misc]


def _num_response_tokens(labels: Tensor) -> Tensor:
    return (labels[:, 1:] != -100).sum()


def _metrics(sums: Tensor, penalty: FeaturePenalty) -> dict[str, float]:
    names = penalty.names
    head, above, pre_sums = sums.split([3, len(names), len(names)])
    excess_sum, num_tokens, num_penalised = head.tolist()
    mean_pre = (pre_sums / max(num_penalised, 1)).tolist()
    metrics = {
        "sae/penalty": excess_sum / max(num_tokens, 1),
        "sae/excess_rate": above.sum().item() / max(num_penalised * len(names), 1),
    }
    if num_penalised and len(names) <= _MAX_FEATURES_LOGGED_BY_NAME:
        metrics |= {f"sae/pre_activation/{name}": value for name, value in zip(names, mean_pre)}
    elif num_penalised:
        metrics["sae/pre_activation"] = sum(mean_pre) / len(mean_pre)
    return metrics
