"""What the demo shows while it works: numbered steps with their time, and bars without the log lines between."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from transformers import ProgressCallback


@dataclass
class Progress:
    """Says what is going on, and how long it took."""

    total: int
    started: float = field(default_factory=time.perf_counter)
    number: int = 0

    @contextmanager
    def step(self, text: str) -> Iterator[None]:
        self.number += 1
        print(f"[{self.number}/{self.total}] {text}", flush=True)
        before = time.perf_counter()
        yield
        print(f"      {time.perf_counter() - before:.0f} s", flush=True)

    @property
    def seconds(self) -> float:
        """Since the start."""
        return time.perf_counter() - self.started


class Bar(ProgressCallback):
    """The trainer's bar; what is logged goes into the report, not between the lines."""

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        pass


def train_with_bar(trainer: Any) -> Any:
    """Train, and return the trainer."""
    trainer.remove_callback(ProgressCallback)
    trainer.add_callback(Bar())
    trainer.train()
    return trainer
