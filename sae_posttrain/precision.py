"""Dtypes for exact sums, and a context without autocast."""

from contextlib import AbstractContextManager, nullcontext

import torch


def widest_float(device: torch.device | str) -> torch.dtype:
    """The most exact floating-point dtype of a device: float64, or float32 on Apple's GPUs, which lack float64."""
    return torch.float32 if torch.device(device).type == "mps" else torch.float64


def without_autocast(device: torch.device | str) -> AbstractContextManager:
    """A context without autocast on a device. On devices without autocast it does nothing."""
    kind = torch.device(device).type
    return torch.autocast(kind, enabled=False) if torch.amp.is_autocast_available(kind) else nullcontext()
