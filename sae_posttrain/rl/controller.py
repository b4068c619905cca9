"""The strength follows the policy: as training unlearns the fault, a harder push is needed to provoke it."""

import math
from typing import Any

from transformers import TrainerCallback
from transformers.trainer_callback import ExportableState

SMALLEST_STRENGTH = 0.01
"""Smallest strength, in residual norms: a weaker push has no measurable effect."""

_MEMORY = 0.7  # weight of the past in the mean hit rate


class StrengthController(TrainerCallback, ExportableState):
    """
    Integral control of the logarithm of the strength.

    After each generation, with hit rate `h`:

        mean ← 0.7 · mean + 0.3 · h
        log strength ← log strength + gain · (target − mean),   bounded by 0.01 and `largest`.

    It works on the logarithm because a strength that is wrong by a factor then needs as many steps at any scale. The
    hit rate is taken over all processes, so all processes keep the same strength.

    Its state is kept in checkpoints and restored on resuming, whether `restore_callback_states_from_checkpoint` is set
    or not. If it is set, the trainer replaces the controller with a new one that has the settings of the checkpoint.
    So look it up among the trainer's callbacks, and do not keep a reference to it.

    Args:
        target: Share of the steered rollouts that should show the fault.
        gain: Change of the logarithm per generation, per unit of missing hit rate.
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

    def state(self) -> dict[str, dict[str, Any]]:
        """What a checkpoint keeps: the arguments of a new one, and the values to set on it."""
        settings = {"target": self._target, "gain": self._gain, "largest": self._largest}
        moved = {"strength": self.strength, "mean_hit_rate": self.mean_hit_rate}
        return {"args": {"strength": self.strength, **settings}, "attributes": moved}

    def on_train_begin(self, args, state, control, **kwargs):
        """Go on from the checkpoint that training resumes from, if it holds the state of a controller."""
        saved = state.stateful_callbacks.setdefault(type(self).__name__, self.state())["attributes"]
        strength, mean_hit_rate = saved.get("strength"), saved.get("mean_hit_rate")
        if not (_is_number(strength) and strength > 0) or not (mean_hit_rate is None or _is_number(mean_hit_rate)):
            raise ValueError(
                f"The checkpoint holds the strength {str(strength)[:50]} and the mean hit rate "
                f"{str(mean_hit_rate)[:50]}: its `trainer_state.json` is damaged. Resume from another one."
            )
        self.strength, self.mean_hit_rate = strength, mean_hit_rate


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)
