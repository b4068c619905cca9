"""The types in which sums are kept, and in which nothing is cast behind one's back."""

from contextlib import AbstractContextManager, nullcontext

import torch


def widest_float(device: torch.device | str) -> torch.dtype:
    """The most exact floating-point type of a device: float64, or float32 on Apple's GPUs, which have no other."""
    return torch.float32 if torch.device(device).type == "mps" else torch.float64


def without_autocast(device: torch.device | str) -> AbstractContextManager:
    """A context in which autocast leaves the types on a device alone; some devices have none to begin with."""
    kind = torch.device(device).type
    return torch.autocast(kind, enabled=False) if torch.amp.is_autocast_available(kind) else nullcontext()
