"""
The rollouts of one generation: made once, and handed from step to step until the batch is weighed.

Legend of the shapes: N rows of all processes, B rows of this one, P prompt and C completion positions, K rewards.
"""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ..measure.faults.fault import Fault
from ..measure.faults.loops import find_loop

Logps = list[list[float] | None]
"""Log-probabilities of the tokens of each row; `None` for a row whose sampler did not tell them."""

GenerateTurn = Callable[[list, Tensor, Tensor], tuple[list[list[int]], list | None, Logps | None]]
"""
From prompts, the rows to steer and the cold rows, `(B,)` each: completion ids, their log-probabilities for the trainer
if the engine tells them, and those of steered and cold rows under the distribution they were drawn from, if recorded.
"""


@dataclass
class Rollouts:
    """
    The rollouts that one process made in one generation.

    Attributes:
        completion_ids (`list[list[int]]`):
            Token ids of each answer, with its end token if there was one.
        logprobs (`list`, *optional*):
            Log-probabilities of these tokens, if the engine that sampled them tells them.
        steered (`torch.Tensor` of shape `(B,)`, bool):
            Rollouts that were steered.
        cold (`torch.Tensor` of shape `(B,)`, bool):
            Rollouts that were sampled at the cold temperature, without steering. By default none.
        faulty (`torch.Tensor` of shape `(B,)`, bool):
            Rollouts that show the fault.
        hit_at_first (`torch.Tensor` of shape `(B,)`, bool):
            Rollouts that showed the fault before any rollout was generated again.
        num_resampled, num_cold_resampled (`int`):
            Number of steered and of cold rollouts that were generated again, each attempt counted.
        strength (`float`):
            Strength of the steered rollouts, in residual norms.
        rewards (`torch.Tensor` of shape `(N, K)`, *optional*):
            Rewards of all processes. `None` until the rollouts are scored.
        extra (`dict[str, list]`):
            Columns that reward functions put into the completions table.
        sampling_logps (`list`, *optional*):
            For each steered or cold rollout the log-probability of each token under the distribution that it was drawn
            from, steering, temperature and truncation included; `None` for the others. `None` if nothing was recorded.
    """

    completion_ids: list[list[int]]
    logprobs: list | None
    steered: Tensor
    faulty: Tensor
    hit_at_first: Tensor
    num_resampled: int = 0
    num_cold_resampled: int = 0
    strength: float = 0.0
    rewards: Tensor | None = None
    extra: dict[str, list[Any]] = field(default_factory=dict)
    cold: Tensor = None  # type: ignore[assignment]  # set below
    sampling_logps: Logps | None = None

    def __post_init__(self) -> None:
        if self.cold is None:
            self.cold = torch.zeros_like(self.steered)

    @property
    def provoked(self) -> Tensor:
        """Rollouts that the policy's own sampling did not make: steered or cold ones, `(B,)`, bool."""
        return self.steered | self.cold


def roll_out(
    generate: GenerateTurn,
    prompt_ids: list,
    steered: Tensor,
    cold: Tensor,
    *,
    fault: Fault,
    end_ids: Collection[int],
    strength: float,
    max_resamples: int = 0,
) -> Rollouts:
    """
    Generate one answer for each prompt. Steered and cold answers that miss the fault are generated again.

    Args:
        generate (`Callable`):
            Generates answers; see [`GenerateTurn`].
        prompt_ids (`list`):
            Token ids of the prompts.
        steered, cold (`torch.Tensor` of shape `(B,)`, bool):
            Rows to steer, and rows to sample at the cold temperature.
        fault (`Fault`):
            Tells whether an answer shows the fault.
        end_ids (`Collection[int]`):
            Token ids that end an answer.
        strength (`float`):
            Strength that `generate` steers with, for the record.
        max_resamples (`int`, *optional*, defaults to `0`):
            Largest number of further attempts for a steered or cold answer. The last attempt is kept.
    """
    completion_ids, logprobs, sampling_logps = generate(prompt_ids, steered, cold)
    faulty = show_fault(fault, completion_ids, end_ids)
    rollouts = Rollouts(
        completion_ids,
        logprobs,
        steered,
        faulty,
        faulty.clone(),
        strength=strength,
        cold=cold,
        sampling_logps=sampling_logps,
    )
    for _ in range(max_resamples):
        missed = (rollouts.provoked & ~faulty).nonzero().flatten().tolist()
        if not missed:
            break
        again = generate([prompt_ids[row] for row in missed], steered[missed], cold[missed])
        kinds: tuple[list | None, ...] = (completion_ids, logprobs, sampling_logps)
        for kept, made in zip(kinds, again):
            for number, row in enumerate(missed):
                if kept is not None and made is not None:
                    kept[row] = made[number]
        faulty[missed] = show_fault(fault, again[0], end_ids)
        rollouts.num_resampled += int(steered[missed].sum())
        rollouts.num_cold_resampled += int(cold[missed].sum())
    return rollouts


def steered_slots(num_rows: int, process_index: int, num_generations: int, num_steered: int) -> Tensor:
    """
    Rows of one process that are steered: the last `num_steered` of each prompt.

    TRL lays the rollouts of a prompt out one after the other and hands each process a contiguous slice, so those of
    one prompt may begin on one process and end on the next.

    Returns:
        `torch.Tensor` of shape `(num_rows,)`, bool.
    """
    slots = (process_index * num_rows + torch.arange(num_rows)) % num_generations
    return slots >= num_generations - num_steered


def cold_slots(num_rows: int, process_index: int, num_generations: int, num_steered: int, num_cold: int) -> Tensor:
    """Rows of one process that are cold: the `num_cold` of each prompt in front of the steered ones."""
    provoked = steered_slots(num_rows, process_index, num_generations, num_steered + num_cold)
    return provoked & ~steered_slots(num_rows, process_index, num_generations, num_steered)


def without_end(completion_ids: Sequence[int], end_ids: Collection[int]) -> tuple[list[int], bool]:
    """Token ids without the end token, and whether there was one."""
    ids = list(completion_ids)
    finished = bool(ids) and ids[-1] in end_ids
    return (ids[:-1] if finished else ids), finished


def show_fault(fault: Fault, completions: Sequence[Sequence[int]], end_ids: Collection[int]) -> Tensor:
    """Which completions show the fault, `(B,)`, bool."""
    return torch.tensor([bool(fault(*without_end(ids, end_ids))) for ids in completions], dtype=torch.bool)


def cut_loops(
    completion_ids: Tensor, completion_mask: Tensor, rows: Tensor, num_periods: int, end_ids: Collection[int]
) -> Tensor:
    """
    The completion mask with the endless loops of some rows cut after their first periods.

    Args:
        completion_ids, completion_mask (`torch.Tensor` of shape `(B, C)`):
            Padded on the right.
        rows (`torch.Tensor` of shape `(B,)`, bool):
            Rows that are cut.
        num_periods (`int`):
            Periods that stay.
        end_ids (`Collection[int]`):
            Token ids that end an answer.

    Returns:
        `torch.Tensor` of shape `(B, C)`: 0 from the first token after those periods on.
    """
    cut = completion_mask.clone()
    for row in rows.nonzero().flatten().tolist():
        ids = completion_ids[row][completion_mask[row].bool()].tolist()
        ids, finished = without_end(ids, end_ids)
        loop = find_loop(ids, finished=finished)
        if loop.endless:
            assert loop.onset is not None and loop.period is not None
            cut[row, loop.onset + num_periods * loop.period :] = 0
    return cut


def steered_positions(positions: str, num_prompt: int, attention_mask: Tensor) -> Tensor:
    """
    Positions that were pushed while the rows were generated, for one forward pass over prompt and completion.

    Args:
        positions (`"generated"` or `"all"`):
            As in the configuration.
        num_prompt (`int`):
            P, with the padding on the left.
        attention_mask (`torch.Tensor` of shape `(B, P + C)`):
            Only its shape counts: what is pushed under padding is not attended to.

    Returns:
        `torch.Tensor` of shape `(B, P + C)`, bool.
    """
    mask = torch.ones_like(attention_mask, dtype=torch.bool)
    if positions == "generated":
        mask[:, : num_prompt - 1] = False
    return mask


def rows_in_step(chosen: Tensor, process_index: int, num_processes: int, num_generations: int, num_chosen: int):
    """
    Rows for a forward pass over the last `num_chosen` of each prompt, as many on every process.

    Sharded models (ZeRO-3, FSDP) hang if one process runs more forward passes than another, and a process that holds
    only some rollouts of a prompt may have fewer of these rows. Such a process repeats its first row, for nothing.

    Returns:
        `torch.Tensor` of shape `(R,)`: row numbers, the chosen ones first.
    """
    num_rows = len(chosen)
    counts = [int(steered_slots(num_rows, index, num_generations, num_chosen).sum()) for index in range(num_processes)]
    rows = chosen.nonzero().flatten().cpu()
    assert len(rows) == counts[process_index]
    return torch.cat([rows, torch.zeros(max(counts) - len(rows), dtype=torch.long)])
