"""
The kinds of rollouts of one prompt: plain ones first, then cold ones, then steered ones; and how each is sampled.

Legend of the shapes: B rows of this process.
"""

from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ..hooks.row_sampling import SAME_AS_CALL, RowSampling, sample_rows
from .config import SteeredGRPOConfig
from .refusals import samples
from .rollouts import cold_slots, steered_slots


@dataclass(frozen=True)
class RolloutKinds:
    """
    Tells which rows of a process are steered or cold, and how they are sampled.

    Attributes:
        args ([`SteeredGRPOConfig`]): Settings.
        num_generations (`int`): Rollouts of one prompt.
        process_index (`int`): Number of this process.
        steered, cold ([`RowSampling`]): How steered and cold rollouts are sampled.
    """

    args: SteeredGRPOConfig
    num_generations: int
    process_index: int
    steered: RowSampling = SAME_AS_CALL
    cold: RowSampling = SAME_AS_CALL

    def rows(self, num_rows: int) -> tuple[Tensor, Tensor]:
        """Which of the rows of one generation are steered, and which are cold, `(B,)`, bool each."""
        slots = (num_rows, self.process_index, self.num_generations)
        return (
            steered_slots(*slots, self.args.num_steered),
            cold_slots(*slots, self.args.num_steered, self.args.num_cold),
        )

    def sampling_of(self, steered: Tensor, cold: Tensor) -> list[RowSampling]:
        """How each row is sampled, given which are steered and which are cold, `(B,)`, bool each."""
        return [
            self.steered if is_steered else self.cold if is_cold else SAME_AS_CALL
            for is_steered, is_cold in zip(steered.tolist(), cold.tolist())
        ]

    def sampling(self, model: Any, steered: Tensor, cold: Tensor) -> Any:
        """
        Context in which the model's `generate` samples each row with its own settings, and records what the weight
        `"truncated"` needs: the probabilities that the tokens of steered and cold rows were drawn with. It gives the
        record, or `None` if each row is sampled as the call says and nothing is needed.
        """
        args, rows = self.args, self.sampling_of(steered, cold)
        by_generate = not (args.use_vllm or args.use_transformers_continuous_batching) and samples(args)
        records = by_generate and args.num_provoked > 0 and args.off_policy_weight == "truncated"
        if not records and set(rows) == {SAME_AS_CALL}:
            return nullcontext()
        record = (steered | cold).nonzero().flatten().tolist() if records else []
        return sample_rows(model, rows, record=record)
