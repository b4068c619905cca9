"""
Rollouts of vLLM, some of them steered: what the trainer puts around TRL's two ways to vLLM.

TRL builds its engine (`vllm_mode="colocate"`) or its client (`"server"`) itself, with arguments of its own. While it
does so, [`engines_that_steer`] replaces the two names by which its module calls them; nothing of TRL's bodies is
copied, and all of its names that this rests on are in this file.

Log-probabilities of steered rollouts, as vLLM tells them, are those of the steered model. TRL must not see them: its
correction would weigh such a rollout by `π / μ`, which is near 0. It is given `None` for each of their tokens, which
it treats as a ratio of 1. They are kept as μ for `off_policy_weight="truncated"`.

Shapes: B rows of this process.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

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

Turn = Callable[[], tuple[list[list[int]], list]]
"""One generation of TRL: completion ids, and the log-probability of each of their tokens."""


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


def row_settings(
    steered: Tensor, sampling: Sequence[RowSampling], strength: float, positions: str
) -> list[RowSettings]:
    """
    How vLLM generates each row.

    Args:
        steered (`torch.Tensor` of shape `(B,)`, bool):
            Rows that are pushed.
        sampling (`Sequence[RowSampling]`, B entries):
            How each row is sampled.
        strength (`float`), positions (`str`):
            How far rows are pushed, and at which positions.
    """
    settings = []
    for is_steered, own in zip(steered.tolist(), sampling, strict=True):
        given = sampling_of(own)
        settings.append(
            RowSettings(strength, positions, sampling=given) if is_steered else RowSettings(sampling=given)
        )
    return settings


def sampling_of(own: RowSampling) -> dict[str, Any]:
    """Settings of a row's own, by vLLM's names; what the row does not say is that of the batch."""
    if own.is_greedy:
        return {"temperature": 0.0, "top_p": 1.0, "top_k": 0, "min_p": 0.0}
    given = {"temperature": own.temperature, "top_p": own.top_p, "top_k": own.top_k}
    return {name: value for name, value in given.items() if value is not None}


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


def _written(args: SteeredGRPOConfig, feature_set: FeatureSet) -> Path:
    """A file of the features that the engine reads. Its name stays the same, so that compiled graphs are found."""
    folder = Path(str(args.output_dir))
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"steered-{fingerprint(feature_set)}.safetensors"
    unfinished = file.with_name(f"{file.stem}-{os.getpid()}.safetensors")
    feature_set.save(unfinished, overwrite=True)  # several processes write the same
    os.replace(unfinished, file)
    return file
