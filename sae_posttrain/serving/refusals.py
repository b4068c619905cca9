"""Settings of an engine under which the wrong tokens would be pushed, or none: refused at its start."""

from typing import Any


def refuse_engine(config: Any) -> None:
    """
    Refuse settings of an engine that steering does not work with.

    Args:
        config (`vllm.config.VllmConfig`):
            The engine's configuration.

    Raises:
        ValueError: At the first such setting. The message says what to set instead.
    """
    parallel, passes = config.parallel_config, config.compilation_config.pass_config
    model = config.model_config
    if config.speculative_config is not None:
        _refuse("speculative decoding", "it computes tokens that it then rejects", "Remove the speculative config")
    if config.kv_transfer_config is not None:
        _refuse("a KV connector", "keys and values computed elsewhere are not pushed", "Remove `kv_transfer_config`")
    if parallel.pipeline_parallel_size > 1:
        _refuse("pipeline parallelism", "a stage holds only some of the blocks", "Use tensor parallelism")
    if parallel.prefill_context_parallel_size > 1 or parallel.decode_context_parallel_size > 1:
        _refuse("context parallelism", "each rank holds other tokens", "Set its sizes to 1")
    if parallel.use_ubatching:
        _refuse("micro-batches (DBO)", "they divide the tokens of a step", "Remove `enable_dbo` and `ubatch_size`")
    if passes.enable_sp:
        _refuse("the sequence-parallel pass", "each rank holds other tokens", "Set `pass_config.enable_sp` to false")
    if config.cache_config.kv_sharing_fast_prefill:
        _refuse(
            "fast prefill of shared KV caches",
            "later blocks see only some of the tokens",
            "Remove `kv_sharing_fast_prefill`",
        )
    if model.using_transformers_backend():
        _refuse("the Transformers backend", "it has not been compared with `steer`", "Set `model_impl='vllm'`")
    text = model.hf_text_config
    if "deepseek" in str(getattr(text, "model_type", "")).lower() and str(model.dtype) == "torch.float16":
        _refuse("DeepSeek in float16", "vLLM scales its residual stream down there", "Set `dtype='bfloat16'`")


def _refuse(what: str, why: str, instead: str) -> None:
    raise ValueError(f"Requests cannot be steered with {what}: {why}. {instead}.")
