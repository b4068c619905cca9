"""When a training stops because the watched rate gets no better."""

from dataclasses import dataclass

from .rates import HIGHER_IS_BETTER


@dataclass
class Patience:
    """
    Counts the watches in a row that bring no better rate.

    Attributes:
        name: The rate that is followed.
        patience: Number of such watches at which the training stops.
        max_loss_increase: A rate counts as better only if the evaluation's loss is at most this much above the lowest
            so far; `None` does not ask for the loss.
    """

    name: str
    patience: int
    max_loss_increase: float | None = None
    best: float | None = None
    lowest_loss: float | None = None
    num_worse: int = 0

    def add(self, rate: float, loss: float | None) -> bool:
        """Take in a watch. Return whether the training should stop."""
        sign = -1 if self.name in HIGHER_IS_BETTER else 1
        better = self.best is None or sign * rate < sign * self.best
        if self.max_loss_increase is not None:
            if loss is None:
                raise ValueError(
                    "`max_loss_increase` needs `eval_loss` among the evaluation's metrics, and this evaluation has "
                    "none. Leave it out, or evaluate on one data set."
                )
            self.lowest_loss = loss if self.lowest_loss is None else min(loss, self.lowest_loss)
            better = better and loss <= self.lowest_loss + self.max_loss_increase
        if better:
            self.best = rate
        self.num_worse = 0 if better else self.num_worse + 1
        return self.num_worse >= self.patience
