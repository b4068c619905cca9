"""
What the steered trainer knows of a batch of rollouts: which are steered, which show the fault, where they loop.

Legend of the shapes: N rows of all processes, B rows of this one, P prompt and C completion positions.
"""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..measure.faults.loops import find_loop

Fault = Callable[[list[int], bool], bool]
"""From the token ids of an answer, without the end token, and whether it was ended: does it show the fault?"""


def endless_repetition(token_ids: list[int], finished: bool) -> bool:
    """The default fault: an exact loop of any period up to the length limit."""
    return find_loop(token_ids, finished=finished).endless


@dataclass
class Rollouts:
    """
    The rollouts that one process made in one generation.

    Attributes:
        steered (`torch.Tensor` of shape `(B,)`, bool):
            Rollouts that were steered.
        faulty (`torch.Tensor` of shape `(B,)`, bool):
            Rollouts that show the fault.
        hit_at_first (`torch.Tensor` of shape `(B,)`, bool):
            The same before any steered rollout was generated again.
        num_resampled (`int`):
            Rollouts that were generated again, each attempt counted.
        strength (`float`):
            Strength of the steered ones.
    """

    steered: Tensor
    faulty: Tensor
    hit_at_first: Tensor
    num_resampled: int
    strength: float


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


def rows_in_step(steered: Tensor, process_index: int, num_processes: int, num_generations: int, num_steered: int):
    """
    Rows for a forward pass over the steered ones, as many on every process.

    Sharded models (ZeRO-3, FSDP) hang if one process runs more forward passes than another, and a process that holds
    only some rollouts of a prompt may have fewer steered rows. Such a process repeats its first row, for nothing.

    Returns:
        `torch.Tensor` of shape `(R,)`: row numbers, the steered ones first.
    """
    num_rows = len(steered)
    counts = [
        int(steered_slots(num_rows, index, num_generations, num_steered).sum()) for index in range(num_processes)
    ]
    rows = steered.nonzero().flatten().cpu()
    assert len(rows) == counts[process_index]
    return torch.cat([rows, torch.zeros(max(counts) - len(rows), dtype=torch.long)])
