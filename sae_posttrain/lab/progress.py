"""The demo's output while it works: numbered stages with their time, and progress bars without log lines."""

from typing import Any

from transformers import ProgressCallback

from .record import Record, Stage


class Progress:
    """Print the current stage and how long it took."""

    def __init__(self, total: int):
        self.total = total
        self.number = 0

    def run(self, stage: Stage, record: Record) -> bool:
        """Run a stage unless it is finished; returns whether it was run."""
        self.number += 1
        print(f"[{self.number}/{self.total}] {stage.text}", flush=True)
        if record.is_finished(stage.makes):
            print("      finished before", flush=True)
            return False
        already = sum(record.seconds.values())
        record.run(stage)
        print(f"      {sum(record.seconds.values()) - already:.0f} s", flush=True)
        return True


class Bar(ProgressCallback):
    """The trainer's progress bar without log lines; the report shows the logged values."""

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        pass


def train_with_bar(trainer: Any) -> Any:
    """Train, and return the trainer."""
    trainer.remove_callback(ProgressCallback)
    trainer.add_callback(Bar())
    trainer.train()
    return trainer
