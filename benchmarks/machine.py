"""Describe the machine of a measurement. Every script of this folder writes it with its results."""

import os
import platform
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch


def hardware() -> dict[str, Any]:
    """Processor, GPU and memory, without the machine's name."""
    info = Path("/proc/cpuinfo")
    named = [line for line in info.read_text().splitlines() if line.startswith("model name")] if info.exists() else []
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else 0
    return {
        "cpu": named[0].split(":", 1)[1].strip() if named else platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "ram_gb": round(memory / 1e9, 1),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }


def versions(*packages: str) -> dict[str, str]:
    """Python's, and those of some packages."""
    return {"python": platform.python_version(), **{package: version(package) for package in packages}}


def seconds() -> float:
    """
    A clock to time work by: with a GPU the time of day once it is done; without one, this process' own time on the
    processors, so that what else runs on the machine counts less.
    """
    if torch.cuda.is_available():
        torch.cuda.synchronize()
        return time.perf_counter()
    return time.process_time()
