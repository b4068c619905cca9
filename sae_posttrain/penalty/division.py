"""Divide a penalty as the trainer divides its token loss, so that a weight means the same in every trainer."""

from typing import Any

import torch
from torch import Tensor


def divide(
    trainer: Any, total: Tensor, num_tokens: Tensor, num_items_in_batch: Any, num_generated: Tensor | None
) -> Tensor:
    """
    Divide a sum over the tokens of a micro-batch as the trainer divides its token loss.

    SFT, `Trainer`, GRPO and distillation count the tokens of the whole accumulation window over all processes
    (`num_items_in_batch`, or `num_generated` where the model generates). That count is the divisor, for every
    `loss_type`: a weight means the same at any batch size, accumulation and number of processes. For DPO, KTO, reward
    models and RLOO, `Trainer` divides the loss of a micro-batch by the accumulation, and the penalty is the mean of
    the micro-batch.
    """
    if trainer_divides(trainer, num_items_in_batch):
        return total / num_tokens.to(total.device).clamp(min=1)
    if num_generated is not None:  # as `GRPOTrainer._compute_loss` divides with `loss_type="dapo"`
        num_items = num_generated.to(total.device).clamp(min=1) / trainer.accelerator.num_processes
        num_batches = getattr(trainer.args, "steps_per_generation", None)
        if num_batches:  # what is generated at once may serve several windows, or part of one
            num_items = num_items * trainer.current_gradient_accumulation_steps / num_batches
        return total / num_items
    if num_items_in_batch is None:
        return total / num_tokens.to(total.device).clamp(min=1) / trainer.current_gradient_accumulation_steps
    scaled = total / torch.as_tensor(num_items_in_batch, device=total.device).clamp(min=1)
    if trainer.args.average_tokens_across_devices:  # DDP averages gradients, and the count is over all processes
        scaled = scaled * (trainer.accelerator.num_processes // trainer.get_tp_size())
    return scaled


def trainer_divides(trainer: Any, num_items_in_batch: Any) -> bool:
    """Whether `Trainer.training_step` divides the loss by the accumulation steps."""
    scaled = getattr(trainer, "loss_is_scaled_for_ga", None)
    if scaled is not None:
        return not scaled
    counted = trainer.model_accepts_loss_kwargs and num_items_in_batch is not None
    return not counted and trainer.compute_loss_func is None
