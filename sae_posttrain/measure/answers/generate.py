"""
Sampling answers from a model: loading it, and generating in batches that can be repeated.

torch and transformers load on first use.
"""

import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .end_of_turn import answer_end_ids
from .generation_settings import own_settings_aside

if TYPE_CHECKING:
    from transformers import LogitsProcessorList, PreTrainedTokenizerBase

_PRIVATE_KWARGS = ("cache_dir", "offload_folder", "proxies", "token")
"""Arguments of `from_pretrained` that stay out of the records: they belong to a machine or a person."""


def generate_answers(
    model: Any,
    tokenizer: "PreTrainedTokenizerBase",
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int = 512,
    temperature: float = 1.0,
    top_p: float = 0.8,
    seed: int = 0,
    repetition_penalty: float = 1.0,
    logits_processor: "LogitsProcessorList | None" = None,
) -> tuple[list[list[int]], list[bool]]:
    """
    Samples one answer to each prompt, all in one batch.

    The same batch and seed give the same answers on the same hardware and versions. The random state of the caller,
    the model's mode and its generation settings are left as they were. Of the latter only the end tokens are used,
    together with that of the tokenizer and the one that closes a turn in the chat template.

    Args:
        model (`PreTrainedModel` or `PeftModel`):
            A causal language model.
        tokenizer (`PreTrainedTokenizerBase`):
            Gives the padding token and an end token.
        prompts (`Sequence[Sequence[int]]`):
            Token ids of each prompt, of any lengths from 1 up.
        max_new_tokens (`int`, *optional*, defaults to `512`):
            Longest answer, in tokens.
        temperature (`float`, *optional*, defaults to `1.0`):
            Sampling temperature; 0 takes the likeliest token each time.
        top_p (`float`, *optional*, defaults to `0.8`):
            Probability mass of the tokens that are sampled from.
        seed (`int`, *optional*, defaults to `0`):
            Seed of this batch.
        repetition_penalty (`float`, *optional*, defaults to `1.0`):
            What logits of tokens that stand in the prompt or the answer are divided by; 1 leaves them.
        logits_processor (`LogitsProcessorList`, *optional*):
            Further changes to the logits before sampling.

    Returns:
        `tuple[list[list[int]], list[bool]]`: the token ids of each answer up to its end token, without it, and whether
        there was one. `False` means that the answer was cut at `max_new_tokens`.

    Raises:
        ValueError: If a prompt is empty or does not fit the model together with its answer.
    """
    import torch
    from transformers import GenerationConfig

    if not prompts:
        return [], []
    if any(len(ids) == 0 for ids in prompts):
        raise ValueError("A prompt has no tokens; a model needs at least one to begin from.")
    longest = max(map(len, prompts))
    check_length(model, longest, max_new_tokens)

    end_ids = answer_end_ids(getattr(model, "generation_config", None), tokenizer)
    pad_id = tokenizer.pad_token_id
    if pad_id is None:
        pad_id = end_ids[0] if end_ids else 0
    sampling = {"do_sample": False, "temperature": 1.0, "top_p": 1.0, "top_k": 50}
    if temperature > 0:
        sampling = {"do_sample": True, "temperature": temperature, "top_p": top_p, "top_k": 0, "min_p": 0.0}
    config = GenerationConfig(
        max_new_tokens=max_new_tokens,
        num_beams=1,
        repetition_penalty=repetition_penalty,
        no_repeat_ngram_size=0,
        use_cache=True,
        eos_token_id=end_ids or None,
        pad_token_id=pad_id,
        **sampling,
    )

    device = model.device
    input_ids = torch.full((len(prompts), longest), pad_id, dtype=torch.long)
    attention_mask = torch.zeros_like(input_ids)
    for row, ids in enumerate(prompts):
        input_ids[row, longest - len(ids) :] = torch.tensor(ids, dtype=torch.long)
        attention_mask[row, longest - len(ids) :] = 1
    with eval_mode(model), own_settings_aside(model), _seeded(seed), torch.inference_mode():
        output = model.generate(
            input_ids=input_ids.to(device),
            attention_mask=attention_mask.to(device),
            generation_config=config,
            logits_processor=logits_processor,
        )

    answers, finished = [], []
    for ids in output[:, longest:].tolist():
        end = next((position for position, token in enumerate(ids) if token in end_ids), None)
        answers.append(ids if end is None else ids[:end])
        finished.append(end is not None)
    return answers, finished


def check_length(model: Any, num_prompt_tokens: int, max_new_tokens: int) -> None:
    """Raises a `ValueError` if a prompt and an answer of so many tokens do not fit the positions of the model."""
    config: Any = getattr(model, "config", None)
    config = config.get_text_config() if hasattr(config, "get_text_config") else config
    longest = getattr(config, "max_position_embeddings", None)
    if longest is not None and num_prompt_tokens + max_new_tokens > longest:
        advice = "Shorten the prompt, or leave it out"
        if num_prompt_tokens < longest:
            advice = f"Set `max_new_tokens` to {longest - num_prompt_tokens} or less, or shorten the prompt"
        raise ValueError(
            f"A prompt of {num_prompt_tokens} tokens and an answer of {max_new_tokens} do not fit the {longest} "
            f"positions of the model. {advice}."
        )


@contextmanager
def eval_mode(model: Any) -> Iterator[None]:
    """Without dropout inside the context, then every module back in the mode it was in."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    import torch

    accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    kind = accelerator.type if accelerator is not None else "cuda"
    keeps_state = accelerator is not None and hasattr(getattr(torch, kind), "get_rng_state_all")
    devices = range(torch.accelerator.device_count()) if keeps_state else ()
    with torch.random.fork_rng(devices=devices, device_type=kind):
        torch.manual_seed(seed)  # seeds every device
        yield


def load_model(model: Any, device: str | None, model_kwargs: Mapping[str, Any]) -> Any:
    """The model or adapter of a folder or Hub id, on a device; a loaded model is returned as it is."""
    if not _is_path(model):
        return model
    import torch
    from transformers import AutoModelForCausalLM

    kwargs = {"dtype": "auto", **model_kwargs}
    if (Path(model) / "adapter_config.json").is_file():
        from peft import AutoPeftModelForCausalLM

        loaded = AutoPeftModelForCausalLM.from_pretrained(os.fspath(model), **kwargs)
    else:
        loaded = AutoModelForCausalLM.from_pretrained(os.fspath(model), **kwargs)
    if "device_map" in kwargs:
        return loaded
    if device is None:
        accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
        device = accelerator.type if accelerator is not None else "cpu"
    return loaded.to(device)


def load_tokenizer(tokenizer: Any, model: Any) -> tuple[Any, str]:
    """
    A tokenizer and its name for the records: the one given, or that of the model, or of an adapter's base model.

    Raises:
        ValueError: If the model has none.
    """
    from transformers import AutoTokenizer

    if tokenizer is not None and not _is_path(tokenizer):
        return tokenizer, recorded_name(getattr(tokenizer, "name_or_path", "") or "") or type(tokenizer).__name__
    names = [os.fspath(tokenizer)] if tokenizer is not None else []
    if not names and _is_path(model):
        names.append(os.fspath(model))
        adapter = Path(model) / "adapter_config.json"
        if adapter.is_file() and not (Path(model) / "tokenizer_config.json").is_file():
            names = [json.loads(adapter.read_text(encoding="utf-8"))["base_model_name_or_path"]]
    elif not names:
        names.append(getattr(getattr(model, "config", None), "_name_or_path", ""))
    try:
        if not names[0]:
            raise OSError("the model does not say where it was loaded from")
        return AutoTokenizer.from_pretrained(names[0]), recorded_name(names[0])
    except (OSError, ValueError, KeyError) as error:
        name = os.fspath(model) if _is_path(model) else model_name(model)
        raise ValueError(f"No tokenizer for the model {name!r}: {error}. Pass `tokenizer=`.") from error


def model_name(model: Any) -> str:
    """Name of a model for the records: its Hub id, or the last part of the folder it came from."""
    if _is_path(model):
        return recorded_name(model)
    return recorded_name(getattr(getattr(model, "config", None), "_name_or_path", "") or "") or type(model).__name__


def recorded_name(name: str | os.PathLike[str]) -> str:
    """A Hub id as it is; of a path on this machine its last part only, since records are shared."""
    text = os.fspath(name)
    if text and (isinstance(name, os.PathLike) or os.path.isabs(text) or os.path.exists(text)):
        return Path(os.path.abspath(text)).name
    return text


def recorded_kwargs(model_kwargs: Mapping[str, Any]) -> dict[str, str]:
    """Arguments of `from_pretrained` for the records: without tokens and folders, paths by their last part."""
    return {key: str(value) for key, value in sorted(_without_private(model_kwargs).items())}


def _without_private(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _without_private(item) for key, item in value.items() if key not in _PRIVATE_KWARGS}
    return recorded_name(value) if _is_path(value) else value


def fingerprint(model: Any) -> str | None:
    """Tells two sets of weights apart that have the same name: a sample of them, hashed. `None` for a Hub id."""
    digest = hashlib.sha256()
    if _is_path(model):
        if not Path(model).is_dir():
            return None
        for path in sorted(Path(model).iterdir()):
            if path.suffix in (".safetensors", ".bin", ".pt") and path.is_file():
                digest.update(f"{path.name} {path.stat().st_size}".encode())
                with path.open("rb") as file:
                    digest.update(file.read(2**20))
                    file.seek(max(0, path.stat().st_size - 2**20))
                    digest.update(file.read())
        return digest.hexdigest()[:16]
    import torch

    for name, parameter in model.named_parameters():
        digest.update(f"{name} {tuple(parameter.shape)} {parameter.dtype}".encode())
        if parameter.device.type != "meta":
            values = parameter.detach().flatten()
            values = values[:: max(1, values.numel() // 1024)]
            digest.update(values.contiguous().view(torch.uint8).cpu().numpy().tobytes())
    return digest.hexdigest()[:16]


def _is_path(model: Any) -> bool:
    return isinstance(model, (str, os.PathLike))
