"""
Did vLLM push what the trainer would have pushed? Its log-probabilities of steered rollouts, beside the trainer's own.

Shapes: R chosen rows, C completion positions.
"""

import logging
from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from ..hooks.row_sampling import RowSampling
from .config import SteeredGRPOConfig
from .rollouts import Rollouts, rows_in_step
from .vllm_rollouts import at_temperature, sampling_of

logger = logging.getLogger(__name__)

RELATIVE_LIMIT, ABSOLUTE_LIMIT = 5.0, 0.01
"""How much worse than plain rollouts (factor, and nat a token) steered ones may be explained by the trainer's pass."""

SMALLEST_EFFECT, LARGEST_SHARE = 0.005, 0.7
"""A push that changes log-probabilities by more than this (nat a token) must be explained by more than 1 - 0.7."""


class LogpsOf(Protocol):
    """Log-probabilities `(R, C)` of some rows' completions, under steering if a strength is given."""

    def __call__(self, rows: Tensor, strength: float | None = None, /) -> Tensor: ...


def compare_pushes(
    rollouts: Rollouts,
    logps: LogpsOf,
    args: SteeredGRPOConfig,
    *,
    sampling: RowSampling,
    model: Any,
    accelerator: Any,
    num_generations: int,
) -> None:
    """
    Compare vLLM's log-probabilities with those that the trainer computes, with and without steering.

    Args:
        rollouts ([`Rollouts`]):
            What vLLM generated, with the log-probabilities that it told.
        logps ([`LogpsOf`]):
            The trainer's own.
        args ([`SteeredGRPOConfig`]):
            Settings.
        sampling ([`RowSampling`]):
            How steered rows were sampled.
        model (`torch.nn.Module`):
            The trainer's model.
        accelerator (`accelerate.Accelerator`):
            The trainer's.
        num_generations (`int`):
            Rollouts of a prompt.

    Raises:
        ValueError: If vLLM did not push what the trainer pushes; see [`require_explained`].
    """
    assert rollouts.sampling_logps is not None and rollouts.logprobs is not None
    temperatures = told_temperatures(args, sampling)
    if temperatures is None:
        return
    of_steered, of_plain = temperatures
    place = (accelerator.process_index, accelerator.num_processes, num_generations, args.num_steered)
    rows = rows_in_step(rollouts.steered, *place)
    plain = (~rollouts.provoked).nonzero().flatten()[: len(rows)]
    plain = torch.cat([plain, rows[: len(rows) - len(plain)]])  # as many passes on every process
    cast = args.cast_lm_head_to_fp32
    with at_temperature(model, of_steered, cast_lm_head_to_fp32=cast):
        pushed, unpushed = logps(rows, rollouts.strength), logps(rows)
    with at_temperature(model, of_plain, cast_lm_head_to_fp32=cast):
        as_plain = logps(plain)
    told = told_logps(rollouts.sampling_logps, rows, pushed)  # NaN on rows that only keep in step
    told_plain = told_logps([row or [] for row in rollouts.logprobs], plain, as_plain)
    sums = torch.stack([distance(told, pushed), distance(told, unpushed), distance(told_plain, as_plain)])
    sums = accelerator.reduce(sums, reduction="sum")
    if bool((sums[:, 1] > 0).all()):
        steered, steered_as_plain, unsteered = (sums[:, 0] / sums[:, 1]).tolist()
        # Rounding of logits counts the more the colder rows are.
        require_explained(steered, steered_as_plain, unsteered * max(1.0, of_plain / of_steered))


def told_temperatures(args: SteeredGRPOConfig, steered: RowSampling) -> tuple[float, float] | None:
    """
    Temperatures of the log-probabilities that vLLM tells of steered and of plain rollouts.

    That is the temperature they are sampled at: a row's own, else that of `generation_kwargs`, else the policy's.
    Those of a greedy token are told at temperature 1.

    `None`, with a warning, if they cannot be compared with the model's: those of a truncated distribution (top-k,
    top-p, min-p) are higher.
    """
    overrides: Any = args.generation_kwargs or {}
    plain = {name: getattr(args, name) for name in ("temperature", "top_k", "top_p", "min_p")} | overrides
    told = [_told_temperature(plain | sampling_of(steered)), _told_temperature(plain)]
    if told[0] is not None and told[1] is not None:
        return told[0], told[1]
    logger.warning(
        "Whether vLLM pushes at the right place is not compared with the trainer's own steered pass: the %s rollouts "
        "are sampled from a truncated distribution. Its number of pushed positions is still checked. To compare once, "
        "run a step with `%stop_k=0` and `%stop_p=1.0`.",
        *(("plain", "", "") if told[1] is None else ("steered", "steer_", "steer_")),
    )
    return None


def _told_temperature(sampling: dict[str, Any]) -> float | None:
    if sampling["temperature"] == 0:
        return 1.0
    is_truncated = (sampling["top_k"] or 0) > 0 or sampling["top_p"] < 1 or (sampling["min_p"] or 0.0) > 0
    return None if is_truncated else float(sampling["temperature"])


def told_logps(told: Sequence[Sequence[float | None] | None], rows: Tensor, like: Tensor) -> Tensor:
    """
    Log-probabilities that an engine told of some rows, `(R, C)` as `like`; NaN on padding and where it told none.
    """
    logps_RC = torch.full_like(like, torch.nan)
    for number, row in enumerate(rows.tolist()):
        values = [torch.nan if value is None else value for value in told[row] or []]
        logps_RC[number, : len(values)] = torch.tensor(values, dtype=like.dtype)
    return logps_RC


def distance(told: Tensor, computed: Tensor) -> Tensor:
    """Sum of |told − computed| over the tokens that were told, and their number, `(2,)`."""
    differences = (told - computed).abs()
    known = ~differences.isnan()
    return torch.stack([differences[known].sum(), known.sum().to(differences)])


def require_explained(steered: float, steered_as_plain: float, plain: float) -> None:
    """
    Check that the engine pushed what the trainer would have pushed.

    The trainer's steered forward pass must explain the engine's log-probabilities of steered rollouts about as well as
    its plain pass explains those of plain rollouts. Both differ a little where the engine computes in another number
    type, so the two are compared with each other. A push at a wrong block, of a wrong length or from a wrong position
    on is far off.

    Args:
        steered, steered_as_plain (`float`):
            Mean |difference| on steered rollouts to the steered and to the plain pass, in nat a token.
        plain (`float`):
            The same on plain rollouts to the plain pass, at the temperature of the steered ones.

    Raises:
        ValueError: If the steered rollouts are not explained.
    """
    has_effect = steered_as_plain > 2 * plain + SMALLEST_EFFECT
    if steered <= RELATIVE_LIMIT * plain + ABSOLUTE_LIMIT and not (
        has_effect and steered > LARGEST_SHARE * steered_as_plain
    ):
        return
    raise ValueError(
        f"vLLM's log-probabilities of the steered rollouts differ by {steered:.4f} nat a token from those that the "
        f"trainer computes under steering (by {steered_as_plain:.4f} from those without), while plain rollouts differ "
        f"by {plain:.4f}: vLLM did not push where and as far as the trainer does. Set `use_vllm=False`, and report "
        "this with the model and the versions of vLLM and TRL."
    )
