"""Strength that follows the policy: as training unlearns the fault, more of a push is needed to provoke it."""

import math
from typing import Any

from transformers import TrainerCallback

SMALLEST_STRENGTH = 0.01
"""Residual norms below which a push does nothing that could be measured."""

_MEMORY = 0.7  # weight of the past in the mean hit rate


class StrengthController:
    """
    Integral control of the logarithm of the strength.

    After each generation, with hit rate `h`:

        mean ← 0.7 · mean + 0.3 · h
        log strength ← log strength + gain · (target − mean),   bounded by 0.01 and `largest`.

    On the logarithm, since a strength that is off by a factor needs as many steps at any scale. The hit rate is that
    of all processes, so that all of them keep the same strength.

    Args:
        strength (`float`):
            Where it starts, in residual norms.
        target (`float`):
            Share of the steered rollouts that shall show the fault.
        gain (`float`):
            Change of the logarithm per generation, per unit of missing hit rate.
        largest (`float`):
            Strength that is never exceeded.
    """

    def __init__(self, strength: float, *, target: float, gain: float, largest: float):
        self.strength = strength
        self.mean_hit_rate: float | None = None
        self._target = target
        self._gain = gain
        self._largest = largest

    def update(self, hit_rate: float) -> float:
        """Take in the hit rate of one generation; returns the strength of the next."""
        past = hit_rate if self.mean_hit_rate is None else self.mean_hit_rate
        self.mean_hit_rate = _MEMORY * past + (1 - _MEMORY) * hit_rate
        wanted = math.log(self.strength) + self._gain * (self._target - self.mean_hit_rate)
        self.strength = min(max(math.exp(wanted), SMALLEST_STRENGTH), self._largest)
        return self.strength

    def state(self) -> dict[str, float | None]:
        return {"strength": self.strength, "mean_hit_rate": self.mean_hit_rate}

    def load_state(self, state: dict[str, Any]) -> None:
        """Go on from `state()`."""
        self.strength = float(state["strength"])
        self.mean_hit_rate = state["mean_hit_rate"]


class KeepStrengthInCheckpoints(TrainerCallback):
    """
    Carries a controller's state in `trainer_state.json`.

    It is no `ExportableState`: those are only restored with `restore_callback_states_from_checkpoint`, and then as new
    objects, which the trainer would not know of.
    """

    _KEY = "StrengthController"

    def __init__(self, controller: StrengthController):
        self._controller = controller

    def on_train_begin(self, args, state, control, **kwargs):
        saved = state.stateful_callbacks.get(self._KEY)
        if saved is not None:
            self._controller.load_state(saved["attributes"])

    def on_step_end(self, args, state, control, **kwargs):
        state.stateful_callbacks[self._KEY] = {"args": {}, "attributes": self._controller.state()}
