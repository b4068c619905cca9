"""
Rollouts of vLLM, some of them steered: what the trainer puts around TRL's two ways to vLLM.

TRL builds its engine (`vllm_mode="colocate"`) or its client (`"server"`) itself, with arguments of its own. While it
does so, [`engines_that_steer`] replaces the two names by which its module calls them; nothing of TRL's bodies is
copied, and all of its names that this rests on are in this file.

Log-probabilities of steered rollouts, as vLLM tells them, are those of the steered model. TRL must not see them: its
correction would weigh such a rollout by `π / μ`, which is near 0. It is given `None` for each of their tokens, which
it treats as a ratio of 1. They are kept as μ for `off_policy_weight="truncated"`.

Legend of the shapes: B rows of this process, R chosen rows, C completion positions.
"""

import logging
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import gather_object
from torch import Tensor
from trl.generation import vllm_generation
from trl.trainer.utils import add_fused_lm_head

from ..features.set.feature_set import FeatureSet
from ..hooks.blocks import unwrap
from ..hooks.row_sampling import RowSampling
from ..serving import RowSettings, SteeredClient, SteeredLLM, engine_arguments
from ..serving.pushes import fingerprint
from .config import SteeredGRPOConfig
from .rollouts import Logps

logger = logging.getLogger(__name__)

Turn = Callable[[], tuple[list[list[int]], list]]
"""One generation of TRL: completion ids, and the log-probability of each of their tokens."""

RELATIVE_LIMIT, ABSOLUTE_LIMIT = 5.0, 0.01
"""How much worse than plain rollouts (factor, and nat a token) steered ones may be explained by the trainer's pass."""

SMALLEST_EFFECT, LARGEST_SHARE = 0.005, 0.7
"""A push that changes log-probabilities by more than this (nat a token) must be explained by more than 1 - 0.7."""


@contextmanager
def engines_that_steer(args: SteeredGRPOConfig, feature_set: FeatureSet) -> Iterator[None]:
    """
    Inside, TRL's `VLLMGeneration` builds an engine or a client whose requests can be steered.

    Args:
        args ([`SteeredGRPOConfig`]):
            Settings.
        feature_set ([`FeatureSet`]):
            Features to push along. For an engine in this process they are written to `args.output_dir`.

    Raises:
        ValueError: If the features cannot be pushed inside an engine. On leaving, if TRL built neither.
    """
    built: list[Any] = []
    is_server = args.vllm_mode == "server"
    name = "VLLMClient" if is_server else "LLM"
    plain: Any = getattr(vllm_generation, name, None)
    if plain is None:  # vLLM is not installed, which TRL says better
        yield
        return
    fingerprint(feature_set)  # raises before any work
    given: dict[str, Any] = {}
    if not is_server:
        given = engine_arguments(_written(args, feature_set), allow_base_model=args.allow_base_model)

    def build(*positional: Any, **keywords: Any) -> Any:
        made = plain(*positional, **keywords, **given)
        built.append(SteeredClient(made, feature_set) if is_server else made)  # the client reads `/server_info`
        return built[0]

    setattr(vllm_generation, name, build)
    try:
        yield
    finally:
        setattr(vllm_generation, name, plain)
    asks_another_process = is_server and int(os.environ.get("RANK", "0")) > 0
    if not built and not asks_another_process:
        raise ValueError(
            f"TRL did not build its `{name}` where this version of `sae_posttrain` expects it, so that nothing would "
            "be steered. Install a version of TRL that it supports (docs/compatibility.md), or set `use_vllm=False`."
        )


class VLLMRollouts:
    """
    TRL's generation with vLLM, in which each row has settings of its own.

    Args:
        generation (`trl.generation.vllm_generation.VLLMGeneration`):
            Built inside [`engines_that_steer`] if rows are pushed.
        args ([`SteeredGRPOConfig`]):
            Settings.
        feature_set ([`FeatureSet`], *optional*):
            Features that rows are pushed along. Without it, rows differ in sampling only.

    Raises:
        ValueError: If the engine cannot steer along these features.
    """

    def __init__(self, generation: Any, args: SteeredGRPOConfig, feature_set: FeatureSet | None):
        self._is_server = args.vllm_mode == "server"
        self._engine: Any
        if self._is_server:
            client = getattr(generation, "vllm_client", None)  # the main process asks for all
            if client is not None and feature_set is None:
                client = generation.vllm_client = SteeredClient(client, None)
            self._engine = client
        else:
            tp_group = getattr(generation, "tp_group", None)
            self._engine = generation.llm = SteeredLLM(generation.llm, feature_set, tp_group=tp_group)

    def generate(self, turn: Turn, rows: Sequence[RowSettings]) -> tuple[list[list[int]], list, Logps]:
        """
        Generate one answer for each row. All processes call it together.

        Args:
            turn (`Callable`):
                TRL's generation of the prompts of this process; see [`Turn`].
            rows (`Sequence[RowSettings]`, B entries):
                Settings of the rows of this process.

        Returns:
            Completion ids; log-probabilities of their tokens for TRL, `None` where the row has settings of its own;
            and the log-probabilities of those rows under the distribution that they were drawn from, `None` for the
            others.

        Raises:
            ValueError: If a steered row was not pushed.
        """
        armed = gather_object(list(rows)) if self._is_server else rows
        with nullcontext() if self._engine is None else self._engine.armed(armed):
            completion_ids, logprobs = turn()
        is_own = [row.is_steered or bool(row.sampling) for row in rows]
        sampling_logps = [list(told) if own else None for own, told in zip(is_own, logprobs)]
        hidden = [[None] * len(told) if own else told for own, told in zip(is_own, logprobs)]
        return completion_ids, hidden, sampling_logps


def sampling_of(own: RowSampling) -> dict[str, Any]:
    """Settings of a row's own, by vLLM's names; what the row does not say is that of the batch."""
    if own.is_greedy:
        return {"temperature": 0.0, "top_p": 1.0, "top_k": 0, "min_p": 0.0}
    given = {"temperature": own.temperature, "top_p": own.top_p, "top_k": own.top_k}
    return {name: value for name, value in given.items() if value is not None}


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


@contextmanager
def at_temperature(model: Any, temperature: float, *, cast_lm_head_to_fp32: bool = False) -> Iterator[None]:
    """
    Inside, TRL's passes over completions tell log-probabilities at this temperature.

    TRL's own temperature is fixed in the head that it adds to the model once. Another head goes in front of it for a
    while.

    Args:
        model (`torch.nn.Module`):
            The trainer's model, wrapped or not.
        temperature (`float`):
            What logits are divided by.
        cast_lm_head_to_fp32 (`bool`, *optional*, defaults to `False`):
            The trainer's setting.
    """
    base = unwrap(model)
    own = vars(base).get("forward")
    add_fused_lm_head(base, temperature=temperature, cast_lm_head_to_fp32=cast_lm_head_to_fp32)
    try:
        yield
    finally:
        if own is None:
            del base.forward
        else:
            base.forward = own


def drawn_logps(told: Logps, greedy: Sequence[bool]) -> Logps:
    """Log-probabilities of the draws: as told, and 0 for the tokens of greedy rows, which had no alternative."""
    return [[0.0] * len(logps) if is_greedy and logps is not None else logps for logps, is_greedy in zip(told, greedy)]


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


def _written(args: SteeredGRPOConfig, feature_set: FeatureSet) -> Path:
    """A file of the features that the engine reads. Its name stays the same, so that compiled graphs are found."""
    folder = Path(str(args.output_dir))
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"steered-{fingerprint(feature_set)}.safetensors"
    unfinished = file.with_name(f"{file.stem}-{os.getpid()}.safetensors")
    feature_set.save(unfinished, overwrite=True)  # several processes write the same
    os.replace(unfinished, file)
    return file
