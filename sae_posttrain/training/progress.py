"""The progress bar of a training, with the figures on it that a person looks at first."""

from typing import Any

from transformers import ProgressCallback

FIRST_FIGURES = {
    "excess": "sae/excess_rate",
    "hit": "steer/hit_rate",
    "endless": "watch/endless",
    "loss": "loss",
    "weight": "sae/penalty_weight",
}
"""What the bar calls a figure, and its name in the logs."""


class FirstFigures(ProgressCallback):
    """
    The trainer's progress bar with the last of these figures on it, in this order: `excess`, the share of penalised
    readings above their ceiling; `hit`, the share of steered rollouts that show the fault; `endless`, the share of
    watched answers that loop; `loss`; and `weight`, that of the penalty. A figure that the run does not log is left
    out. The lines of the log begin with the same figures.

    Args:
        weight (`float`, *optional*):
            Weight of the penalty, which a run logs only where it adapts itself.
        **kwargs:
            Arguments of transformers' `ProgressCallback`.
    """

    def __init__(self, weight: float | None = None, **kwargs: Any):
        super().__init__(**kwargs)
        self._weight = weight
        self._latest: dict[str, float] = {}

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        super().on_train_begin(args, state, control, **kwargs)
        self._latest = {} if self._weight is None else {"weight": self._weight}

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        logs = dict(logs or {})
        found = {short: logs[name] for short, name in FIRST_FIGURES.items() if name in logs}
        first = {FIRST_FIGURES[short]: value for short, value in found.items()}
        super().on_log(args, state, control, logs={**first, **logs}, **kwargs)
        if self.training_bar is not None:
            self._latest |= found
            self.training_bar.set_postfix_str(progress_text(self._latest))


def progress_text(figures: dict[str, float]) -> str:
    """The figures as the bar shows them: `excess 0.12, hit 0.75, loss 1.83`."""
    shown = [(name, figures[name]) for name in FIRST_FIGURES if name in figures]
    return ", ".join(f"{name} {value:.3g}" for name, value in shown)


def show_first_figures(trainer: Any, weight: float | None = None) -> None:
    """Put these figures on the trainer's bar. A trainer without transformers' own bar is left as it is."""
    callbacks = trainer.callback_handler.callbacks
    for place, callback in enumerate(callbacks):
        if type(callback) is ProgressCallback:
            callbacks[place] = FirstFigures(weight, max_str_len=callback.max_str_len)
