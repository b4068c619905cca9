"""Refuses settings that would undo the steering silently, and settings that are not supported yet."""

from typing import TYPE_CHECKING, Any

from ..measure.faults.loops import MIN_TOKENS
from .rewards import EndlessRepetitionReward

if TYPE_CHECKING:
    from .config import SteeredGRPOConfig

_HIDE_LOOPS = {
    "repetition_penalty": 1.0,
    "encoder_repetition_penalty": 1.0,
    "no_repeat_ngram_size": 0,
    "encoder_no_repeat_ngram_size": 0,
    "frequency_penalty": 0.0,
    "presence_penalty": 0.0,
}
"""Generation settings that prevent repeated tokens, each with the value that does nothing."""

_ASSISTED = ("assistant_model", "prompt_lookup_num_tokens", "assistant_early_exit", "use_mtp")


def refuse_settings(args: "SteeredGRPOConfig", generation_config: Any = None, *, detects_loops: bool = True) -> None:
    """
    Refuse what would undo steering, or take the steered rollouts out of the loss, if `num_steered` is above 0.

    Args:
        args ([`SteeredGRPOConfig`]):
            Settings with `num_steered` or `num_cold` above 0.
        generation_config (`transformers.GenerationConfig`, *optional*):
            Generation settings of the model. `generate` falls back on them for whatever TRL leaves open.
        detects_loops (`bool`, *optional*, defaults to `True`):
            Whether `find_loop` tells the fault. It needs answers of `MIN_TOKENS` tokens or more.

    Raises:
        ValueError: At the first such setting. The message says what to set instead.
    """
    if args.use_vllm:
        _refuse_vllm(args)
    if args.use_transformers_continuous_batching:
        _refuse_continuous_batching(args.transformers_continuous_batching_config or {})
    if args.mask_truncated_completions:
        raise ValueError(
            "`mask_truncated_completions=True` takes rollouts without an end token out of the loss, and an endless "
            "repetition is one. Set `mask_truncated_completions=False`."
        )
    if args.off_policy_mask_threshold is not None:
        raise ValueError(
            f"`off_policy_mask_threshold={args.off_policy_mask_threshold}` drops rollouts that have a negative "
            "advantage and are unlikely under the policy, which is what steered ones are. Leave it unset; "
            "`off_policy_weight` weighs them token by token."
        )
    if args.top_entropy_quantile < 1:
        raise ValueError(
            f"`top_entropy_quantile={args.top_entropy_quantile}` leaves tokens of low entropy out of the loss, and "
            "repeated tokens have the lowest. Set `top_entropy_quantile=1.0`."
        )
    length = args.max_completion_length
    if detects_loops and length is not None and length < MIN_TOKENS:
        raise ValueError(
            f"`max_completion_length={length}` is too short to tell a loop, which takes "
            f"{MIN_TOKENS} tokens: no rollout would show the fault. Set it to {MIN_TOKENS} or more."
        )
    _refuse_generation(args, None if args.use_vllm else generation_config)  # vLLM is told all of its settings


def refuse_own_sampling(args: "SteeredGRPOConfig") -> None:
    """
    Refuse ways to generate in which rollouts cannot be sampled with settings of their own.

    Raises:
        ValueError: If continuous batching generates, or transformers makes the policy's rollouts greedily.
    """
    own = "Rollouts with a temperature, top-p or top-k of their own (`num_cold`, `steer_temperature`, …)"
    if args.use_vllm:
        return
    if args.use_transformers_continuous_batching:
        raise ValueError(
            f"{own} are not supported with continuous batching yet. Set `use_transformers_continuous_batching=False`."
        )
    if not samples(args):
        raise ValueError(
            f"{own} need sampling, and `generation_kwargs` has `do_sample=False`. Leave that out: then the policy "
            "samples at `temperature`."
        )


def samples(args: "SteeredGRPOConfig") -> bool:
    """Whether the policy's rollouts are sampled, as TRL has it unless told otherwise; not if they are greedy."""
    given: Any = args.generation_kwargs or {}
    return given.get("do_sample") is not False


def refuse_short_completions(reward_funcs: Any, max_completion_length: int | None) -> None:
    """Refuse a completion length at which an `EndlessRepetitionReward` is 0 whatever the model does."""
    for reward in reward_funcs if isinstance(reward_funcs, list | tuple) else [reward_funcs]:
        least = reward.min_tokens if isinstance(reward, EndlessRepetitionReward) else 0
        if max_completion_length is not None and max_completion_length < least:
            raise ValueError(
                f"`EndlessRepetitionReward` counts loops of {least} tokens or more, `max_completion_length` is "
                f"{max_completion_length}: the reward would always be 0. Set `max_completion_length` to {least} or "
                "more, or give the reward a smaller `min_tokens`."
            )


def refuse_arguments(rollout_func: Any, tools: Any, environment_factory: Any) -> None:
    """Refuse arguments of the trainer whose way to generate cannot be steered."""
    if rollout_func is not None:
        raise ValueError(
            "`rollout_func` generates by itself, so its rollouts would not be steered. Leave it out, or set "
            "`num_steered=0`."
        )
    for name, value in (("tools", tools), ("environment_factory", environment_factory)):
        if value:
            raise ValueError(
                f"`{name}` makes rollouts of several turns, whose later turns would not be steered. Leave it out, or "
                "set `num_steered=0`."
            )


def refuse_several_turns(rollout_func: Any, tools: Any, environment_factory: Any) -> None:
    """Refuse arguments of the trainer whose rollouts dynamic sampling cannot replace."""
    given = {"rollout_func": rollout_func, "tools": tools, "environment_factory": environment_factory}
    for name, value in given.items():
        if value:
            raise ValueError(
                f"`{name}` makes rollouts that hold more than one answer of the model, and dynamic sampling keeps "
                "only answers. Leave it out, or set `dynamic_sampling='none'`."
            )


def refuse_images(row: dict[str, Any]) -> None:
    """Refuse rows with images, which dynamic sampling cannot sample again."""
    for column in ("image", "images"):
        if column in row:
            raise ValueError(
                f"The dataset has a column {column!r}, and rows with images cannot be sampled again yet. Set "
                "`dynamic_sampling='none'`."
            )


def refuse_sharded_resampling(args: "SteeredGRPOConfig", *, is_sharded: bool) -> None:
    """Refuse to generate some rollouts again if all processes must make the same forward passes."""
    if is_sharded and args.on_miss == "resample":
        raise ValueError(
            "`on_miss='resample'` lets processes generate a different number of times, and a model sharded by "
            "DeepSpeed ZeRO-3 or FSDP would hang. Set `on_miss` to 'keep' or 'drop'."
        )


def _refuse_vllm(args: "SteeredGRPOConfig") -> None:
    given: Any = args.generation_kwargs or {}
    if args.vllm_model_impl == "transformers":
        raise ValueError(
            "`vllm_model_impl='transformers'` runs the model in a way that has not been compared with `steer`. Set "
            "`vllm_model_impl='vllm'`."
        )
    if args.vllm_structured_outputs_regex is not None or given.get("structured_outputs") is not None:
        raise ValueError(
            "Structured outputs forbid tokens, so that steered rollouts cannot show the fault freely, and vLLM's "
            "log-probabilities are no longer those of the model. Leave out `vllm_structured_outputs_regex` and "
            "`structured_outputs` in `generation_kwargs`."
        )
    if given.get("n", 1) != 1:
        raise ValueError("`n` in `generation_kwargs` makes several answers to each rollout. Leave it out.")
    for name in ("extra_args", "vllm_xargs"):
        if any(str(key).startswith("steer") for key in given.get(name) or {}):
            raise ValueError(
                f"`{name}` in `generation_kwargs` steers all rollouts, evaluation included. Leave it out: the "
                "trainer steers the rollouts that `num_steered` names."
            )
    is_divided = args.vllm_mode == "colocate" and args.vllm_tensor_parallel_size > 1
    if args.on_miss == "resample" and (args.vllm_mode == "server" or is_divided):
        where = "vllm_mode='server'" if args.vllm_mode == "server" else "vllm_tensor_parallel_size"
        raise ValueError(
            f"`on_miss='resample'` with `{where}` would have processes ask vLLM a different number of times, for "
            "parts of the prompts' rollouts. Set `on_miss` to 'keep' or 'drop'."
        )


def _refuse_continuous_batching(config: Any) -> None:
    if config.get("allow_block_sharing"):
        raise ValueError(
            "`allow_block_sharing` in `transformers_continuous_batching_config` lets plain rollouts read what was "
            "computed under steering. Leave it out: it is switched off for steered generations."
        )
    graphs = config.get("use_cuda_graph")
    if any(graphs) if isinstance(graphs, list | tuple) else graphs:
        raise ValueError(
            "`use_cuda_graph` in `transformers_continuous_batching_config` replays a graph that runs no hooks, so "
            "that nothing would be steered. Leave it out: it is switched off for steered generations."
        )
    for name in ("varlen_compile_config", "decode_compile_config", "default_compile_level"):
        if config.get(name):
            raise ValueError(
                f"`{name}` in `transformers_continuous_batching_config` compiles the passes, which then need not run "
                "the hooks that steer. Leave it out."
            )


def _refuse_generation(args: "SteeredGRPOConfig", generation_config: Any) -> None:
    given: Any = args.generation_kwargs or {}
    chosen: dict[str, Any] = {
        "repetition_penalty": args.repetition_penalty,
        "cache_implementation": args.cache_implementation,
        **given,
    }

    def setting(name: str) -> tuple[Any, str]:
        """The value that `generate` will use, and where it comes from."""
        if chosen.get(name) is not None:
            return chosen[name], "`generation_kwargs`" if name in given else "the settings"
        return getattr(generation_config, name, None), "the model's `generation_config`"

    for name, neutral in _HIDE_LOOPS.items():
        value, where = setting(name)
        if value is not None and value != neutral:
            raise ValueError(
                f"`{name}={value}` in {where} keeps tokens from being repeated and so hides the fault. Set it to "
                f"{neutral}, in `generation_kwargs` if it comes from the model."
            )
    value, where = setting("num_beams")
    if value is not None and value > 1:
        raise ValueError(
            f"`num_beams={value}` in {where} lets steered and plain beams compete in one row. Set `num_beams` to 1."
        )
    for name in _ASSISTED:
        value, where = setting(name)
        if value not in (None, False):
            raise ValueError(
                f"`{name}` in {where} has tokens drafted and read several at a time, so that steering does not know "
                "which positions are generated. Leave it out."
            )
    value, where = setting("prefill_chunk_size")
    if value is not None:
        raise ValueError(
            f"`prefill_chunk_size={value}` in {where} reads the prompt in chunks, so that steering does not know "
            "where it ends. Leave it out."
        )
    value, where = setting("cache_implementation")
    from_model = "cache_implementation" not in chosen or chosen["cache_implementation"] is None
    if from_model and value == "hybrid":  # in a model's own configuration transformers takes it for a dynamic one
        return
    if value is not None and value not in ("dynamic", "offloaded", "quantized"):
        raise ValueError(
            f"`cache_implementation={value!r}` in {where} is a static cache: decoding may be compiled, and the hooks "
            "that steer would not fire. Leave it out, or set it to 'dynamic'."
        )
