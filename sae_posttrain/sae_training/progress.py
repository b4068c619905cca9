"""[`TrainingBar`]: one bar for the training of all SAEs, from its first step."""

import time
from collections.abc import Collection
from types import TracebackType
from typing import Any

import torch
from tqdm.auto import tqdm

_SECONDS_BETWEEN = 1.0  # the figures cost a little work


class TrainingBar:
    """
    Tokens trained on, tokens a second, and of the last step the FVU and L0 of each SAE.

    Args:
        num_tokens (`int`):
            Tokens of the whole training.
        done (`int`):
            Tokens that an earlier run was trained on already.
        show (`bool`):
            Whether to show anything.
    """

    def __init__(self, num_tokens: int, done: int, *, show: bool):
        self._bar = tqdm(
            total=num_tokens, initial=done, unit="tok", unit_scale=True, desc="Training", disable=not show
        )
        self._show = show
        self._shown_at = -_SECONDS_BETWEEN

    def __enter__(self) -> "TrainingBar":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.close()

    def add(self, num_tokens: int, outputs: Collection[Any]) -> None:
        """
        Count one step.

        Args:
            num_tokens (`int`):
                Tokens of the step.
            outputs (`Collection[sae_lens.saes.sae.TrainStepOutput]`):
                What the step of each SAE returned.
        """
        now = time.monotonic()
        if self._show and now - self._shown_at >= _SECONDS_BETWEEN:
            self._shown_at = now
            self._bar.set_postfix_str(describe_step(outputs), refresh=False)
        self._bar.update(num_tokens)


@torch.no_grad()
def describe_step(outputs: Collection[Any]) -> str:
    """
    Loss, FVU and L0 of a step, one figure for each SAE: `loss 0.31, FVU 0.12/0.17, L0 32/32`.

    The FVU of a batch is `Σ‖x - x̂‖² / Σ‖x - mean(x)‖²` over its tokens.
    """
    losses, fvus, l0s = [], [], []
    for output in outputs:
        x_ND = output.sae_in.float()
        unexplained = (x_ND - output.sae_out.float()).square().sum()
        losses.append(f"{float(output.loss):.3g}")
        fvus.append(f"{float(unexplained / (x_ND - x_ND.mean(dim=0)).square().sum()):.3f}")
        l0s.append(f"{float(output.feature_acts.bool().float().sum()) / len(x_ND):.3g}")
    return f"loss {'/'.join(losses)}, FVU {'/'.join(fvus)}, L0 {'/'.join(l0s)}"
