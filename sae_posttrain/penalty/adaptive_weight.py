"""A penalty weight that adapts itself: dual ascent on an allowed excess rate within a limit on the loss."""

import math
from typing import Any

import torch
from torch import Tensor
from transformers import TrainerCallback

from ..precision import widest_float

_RATE_MEMORY = 0.9  # weight of the past in the mean excess rate: about ten steps
_LOSS_MEMORY = 0.98  # in the mean loss, which is noisier: about fifty
_RANGE = 1000  # the weight stays within this factor of where it starts, or is 0
_ALLOWED_NOISE = 2.0  # standard errors: the lowest of many noisy means lies about this far below their middle
_FIRST_REFERENCE = 10  # steps before which the noise of the loss is not known well enough
_TINY = 1e-12


class AdaptiveWeight:
    """
    A weight that dual ascent raises and lowers: the Lagrange multiplier of "at most `target` of the excesses".

    Training minimises `loss + weight · penalty`. A multiplier rises while its constraint is violated and falls while
    there is slack, to 0 if the constraint holds by itself (dual ascent: Boyd et al. 2011, section 2.1,
    https://doi.org/10.1561/2200000016; for a penalty in deep learning https://huggingface.co/papers/1805.11074). It is
    done on the logarithm, as in multiplicative updates, since the right weight is not known to a factor of ten. After
    each optimizer step, with the means of excess rate and loss smoothed over about ten and fifty steps:

        rate_error = (rate − target) / (rate + target)
        loss_room  = (limit − loss) / (limit − reference), at least −1;   limit = reference · (1 + max_loss_increase)
        log weight ← log weight + gain · min(rate_error, loss_room)

    Nobody knows the loss that plain training would have at this step. The reference is the lowest level that the
    smoothed loss of this training has reached so far, from its tenth step on: the lowest of `loss + 2 · standard
    error`, so that noise does not count (in simulations with a limit of 2 %, a loss that varies by 5 % from step to
    step leaves the weight alone; one that varies by 15 % does not). So the limit keeps the penalty from *undoing* what
    was learned. It cannot tell that the loss would have fallen further without it, and it takes a loss that rises for
    another reason (harder data later in the run) for the penalty's doing.

    Below a thousandth of its start the weight is 0; it comes back when the rate exceeds the target. All processes that
    feed it the same figures keep the same weight.

    Args:
        weight: Weight at the start; above 0.
        target: Excess rate to hold: share of penalised tokens and features above level and margin, between 0 and 1.
        max_loss_increase: Share of the reference by which the loss may rise, 0.02 for 2 %. It has priority over the
            target. There is no limit if it is left out.
        gain: Largest change of the logarithm in one step: the weight grows tenfold in 46 steps or more.

    Attributes:
        weight: The weight of the next step.
    """

    def __init__(self, weight: float, *, target: float, max_loss_increase: float | None = None, gain: float = 0.05):
        if not (0 < weight < math.inf):
            raise ValueError(
                f"An adaptive weight starts above 0, got {weight}. The penalty weight is its start: set it to 1."
            )
        if not 0 < target < 1:
            raise ValueError(
                f"The target is an excess rate between 0 and 1 (both excluded), got {target}. To hold features down "
                "as far as possible, set a fixed weight."
            )
        if max_loss_increase is not None and not (0 < max_loss_increase < math.inf):
            raise ValueError(
                f"The largest increase of the loss is a share above 0 (0.02 for 2 %), got {max_loss_increase}."
            )
        if not (0 < gain < math.inf):
            raise ValueError(f"`gain` must be above 0, got {gain}.")
        self._target = target
        self._max_loss_increase = max_loss_increase
        self._gain = gain
        self._smallest = math.log(weight / _RANGE)
        self._largest = math.log(weight * _RANGE)
        self._log_weight = math.log(weight)
        self.weight = float(weight)
        self._num_updates = 0
        self._mean_rate = 0.0
        self._mean_loss = 0.0
        self._last_loss = 0.0
        self._loss_noise = 0.0
        self._lowest_loss = math.inf
        self._step_sums: Tensor | None = None  # of the micro-batches of the optimizer step so far

    def add(self, above: Tensor, possible: Tensor, loss: Tensor, accelerator: Any, *, mean_of_batches: bool) -> None:
        """
        Take in one micro-batch: numerator and denominator of the excess rate, and the trainer's loss without the
        penalty. At the last one of an optimizer step, add up all processes and adapt the weight. `mean_of_batches`:
        the loss of a step is the mean over its micro-batches, and not their sum.
        """
        device = accelerator.device
        parts = (above, possible, loss.detach(), torch.ones_like(possible))
        sums = torch.stack([part.to(device, widest_float(device)) for part in parts])
        self._step_sums = sums if self._step_sums is None else self._step_sums + sums
        if not accelerator.sync_gradients:
            return
        num_above, num_possible, loss_sum, num_batches = accelerator.reduce(self._step_sums, "sum").tolist()
        self._step_sums = None
        if num_possible:
            divisor = num_batches if mean_of_batches else accelerator.num_processes
            self.update(num_above / num_possible, loss_sum / divisor)

    def update(self, excess_rate: float, loss: float) -> float:
        """
        Take in one optimizer step, over all processes, and return the weight of the next one. The loss is without the
        penalty. A step without a penalised token has no excess rate: do not call this for it.
        """
        if not 0 <= excess_rate <= 1:
            raise ValueError(f"An excess rate lies between 0 and 1, got {excess_rate}.")
        if not math.isfinite(loss):
            raise ValueError(
                f"The loss is {loss}; an adaptive weight cannot go on from it. Training has diverged: lower the "
                "learning rate or the starting weight."
            )
        self._num_updates += 1
        rate_share, loss_share = self._share_of_new(_RATE_MEMORY), self._share_of_new(_LOSS_MEMORY)
        if self._num_updates > 1:  # noise from differences, so that the fall of the loss does not count as noise
            self._loss_noise += loss_share * ((loss - self._last_loss) ** 2 / 2 - self._loss_noise)
        self._last_loss = loss
        self._mean_rate += rate_share * (excess_rate - self._mean_rate)
        self._mean_loss += loss_share * (loss - self._mean_loss)

        error = (self._mean_rate - self._target) / (self._mean_rate + self._target)
        wanted = self._log_weight + self._gain * min(error, self._loss_room())
        self._log_weight = min(max(wanted, self._smallest), self._largest)
        self.weight = 0.0 if self._log_weight == self._smallest else math.exp(self._log_weight)
        return self.weight

    def _share_of_new(self, memory: float) -> float:
        """Share of the newest value in a mean. The mean is the plain one until its values fill the memory."""
        return max(1 - memory, 1 / self._num_updates)

    def _loss_room(self) -> float:
        if self._max_loss_increase is None or self._num_updates < _FIRST_REFERENCE:
            return 1.0
        share = self._share_of_new(_LOSS_MEMORY)
        standard_error = math.sqrt(self._loss_noise * share / (2 - share))
        self._lowest_loss = min(self._lowest_loss, self._mean_loss + _ALLOWED_NOISE * standard_error)
        room = self._lowest_loss + self._max_loss_increase * abs(self._lowest_loss) - self._mean_loss
        return max(-1.0, room / max(self._max_loss_increase * abs(self._lowest_loss), _TINY))

    def state(self) -> dict[str, float | int | None]:
        """Everything that changes in training, in a form that JSON holds."""
        return {
            "log_weight": self._log_weight,
            "num_updates": self._num_updates,
            "mean_rate": self._mean_rate,
            "mean_loss": self._mean_loss,
            "last_loss": self._last_loss,
            "loss_noise": self._loss_noise,
            "lowest_loss": self._lowest_loss if math.isfinite(self._lowest_loss) else None,
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Go on from a state that `state()` returned, with the settings of this object."""
        known = self.state()
        if set(state) != set(known):
            raise ValueError(
                f"The state of an adaptive weight holds {', '.join(known)}; this one holds "
                f"{', '.join(map(repr, sorted(state))) or 'nothing'}."
            )
        values = {name: math.inf if value is None else float(value) for name, value in state.items()}
        wrong = [name for name, value in values.items() if not math.isfinite(value) and name != "lowest_loss"]
        if wrong:
            raise ValueError(f"The state of an adaptive weight has {state[wrong[0]]!r} as {wrong[0]!r}.")
        self._log_weight = min(max(values["log_weight"], self._smallest), self._largest)
        self._num_updates = int(values["num_updates"])
        self._mean_rate, self._mean_loss = values["mean_rate"], values["mean_loss"]
        self._last_loss, self._loss_noise = values["last_loss"], values["loss_noise"]
        self._lowest_loss = values["lowest_loss"]
        self.weight = 0.0 if self._log_weight == self._smallest else math.exp(self._log_weight)


class KeepWeightInCheckpoints(TrainerCallback):
    """
    Keeps the state of an adaptive weight in `trainer_state.json`.

    It is not an `ExportableState`: transformers restores those only with `restore_callback_states_from_checkpoint`,
    and as new objects that the trainer does not know. Update the weight before `on_step_end`, or the checkpoint of a
    step lacks that step.
    """

    _KEY = "AdaptiveWeight"

    def __init__(self, adaptive_weight: AdaptiveWeight):
        self._adaptive_weight = adaptive_weight

    def on_train_begin(self, args, state, control, **kwargs):
        saved = state.stateful_callbacks.get(self._KEY)
        if saved is not None:
            self._adaptive_weight.load_state(saved["attributes"])

    def on_step_end(self, args, state, control, **kwargs):
        state.stateful_callbacks[self._KEY] = {"args": {}, "attributes": self._adaptive_weight.state()}
