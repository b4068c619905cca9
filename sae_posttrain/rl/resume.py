"""Restores what TRL's GRPO does not restore when it is resumed from a checkpoint."""

import logging
import math
from typing import Any

import torch

logger = logging.getLogger(__name__)


class ResumableGRPO:
    """
    Lets a run go on as if it had not stopped, if it is resumed where a generation ends. Put it before
    [`~trl.GRPOTrainer`] in the bases of a class.

    TRL shuffles the prompts of each epoch with a generator that is seeded when training starts. A resumed run would
    see the order of the first epoch again, so the orders of the finished epochs are drawn and thrown away here.
    Checkpoints keep no rollouts. A run that is resumed between two generations generates its rollouts anew from the
    same prompts, with the model of the checkpoint, and warns. From there on the weights differ, and a controller of
    the strength counts that generation twice.
    """

    # The trainer's own; declared for the type checker.
    args: Any
    state: Any
    num_iterations: Any

    def _get_train_sampler(self, dataset: Any = None) -> Any:
        self._train_sampler = super()._get_train_sampler(dataset)  # type: ignore[misc]
        return self._train_sampler

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)  # type: ignore[misc]
        if checkpoint is None:
            return
        sampler: Any = getattr(self, "_train_sampler", None)
        if getattr(sampler, "shuffle", False):
            for _ in range(int(self.state.epoch or 0)):
                torch.randperm(sampler.num_samples, generator=sampler.generator)  # as each epoch draws its order
        per_step = self.args.gradient_accumulation_steps
        every = math.lcm(self.args.steps_per_generation * self.num_iterations, per_step) // per_step
        if self.state.global_step % every:
            logger.warning(
                "Resuming at step %d, between two generations: TRL keeps no rollouts, so they are generated anew, and "
                "the weights will differ from those of a run that was not interrupted. To resume exactly, save at "
                "multiples of %d steps.",
                self.state.global_step,
                every,
            )
