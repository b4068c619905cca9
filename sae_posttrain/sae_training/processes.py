"""[`Processes`]: what several processes that train SAEs together say and send to each other."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from accelerate import PartialState
from torch import Tensor

from ..hooks.sites import Place


@dataclass(frozen=True)
class Processes:
    """
    One of several processes: they divide the forward passes and the SAEs between them.

    Each SAE is trained by one process, on the whole batch. So the gradients need no exchange, and the weights do not
    depend on the number of processes.

    Args:
        index (`int`, *optional*, defaults to `0`):
            Number of this process. Process 0 writes what belongs to all.
        count (`int`, *optional*, defaults to `1`):
            Number of processes.
    """

    index: int = 0
    count: int = 1

    @classmethod
    def current(cls) -> "Processes":
        """The processes that `accelerate launch` or `torchrun` started, or this one alone."""
        # Without `cpu`, each process of `torchrun` on a machine without accelerators takes itself for the only one.
        state = PartialState(cpu=not torch.accelerator.is_available())
        return cls(state.process_index, state.num_processes)

    @property
    def is_main(self) -> bool:
        """Whether this is process 0."""
        return self.index == 0

    def owners(self, places: Sequence[Place]) -> dict[Place, int]:
        """The process that trains the SAE of each place: one after the other in turn."""
        return {place: number % self.count for number, place in enumerate(places)}

    def deliver(
        self, mine: Mapping[Place, Tensor], num_tokens: int, producer: int, owners: Mapping[Place, int]
    ) -> dict[Place, Tensor]:
        """
        Send the activations of one forward pass to the processes that need them. All processes call this together.

        Args:
            mine (`Mapping[Place, torch.Tensor]`):
                Activations of this process's own forward pass, `(N, D)`.
            num_tokens (`int`):
                Tokens of the forward pass that is sent.
            producer (`int`):
                Process that did this forward pass.
            owners (`Mapping[Place, int]`):
                Process that needs each place.

        Returns:
            `dict[Place, torch.Tensor]`: `(num_tokens, D)` for each place that this process owns.
        """
        received = {}
        for place, owner in owners.items():
            if self.index == producer == owner:
                received[place] = mine[place]
            elif self.index == producer:
                dist.send(mine[place].contiguous().view(torch.uint8), owner)  # as bytes: any dtype
            elif self.index == owner:
                received[place] = mine[place].new_empty(num_tokens, mine[place].shape[1])
                dist.recv(received[place].view(torch.uint8), producer)
        return received

    def in_any(self, flag: bool) -> bool:
        """Whether the flag is true in at least one process. All processes call this together."""
        if self.count == 1:
            return flag
        flags = torch.tensor([flag], dtype=torch.int32, device=PartialState().device)
        dist.all_reduce(flags, dist.ReduceOp.MAX)
        return bool(flags.item())

    def wait(self) -> None:
        """Wait until all processes are here."""
        if self.count > 1:
            PartialState().wait_for_everyone()


ALONE = Processes()
"""This process is the only one."""
