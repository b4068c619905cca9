"""
Watch calls of `generate` for steering: which forward passes belong to a call, and which generation modes are refused.

A forward pass of several tokens over a cache looks the same in three cases: a conversation continues, a prompt is read
in chunks, or tokens drafted by an assistant are checked. Only the call of `generate` distinguishes them. So while a
context is open, the model's `generate` is wrapped: each call begins a new turn, and its passes must be those of plain
decoding. Calls are distinguished by their thread, because a streamed answer is generated in its own thread.
"""

import functools
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from .blocks import unwrap
from .packed import replaced

_PAGED = ("block_table", "read_index", "write_index")
"""Arguments that only a pass over a paged cache has."""

_DRAFTING = ("assistant_model", "prompt_lookup_num_tokens", "assistant_early_exit", "use_mtp", "is_assistant")


@dataclass
class Turn:
    """
    One running call of `generate`.

    Attributes:
        num_given (`int`, *optional*):
            Number of positions in the prompt as it was given; `None` if unknown.
        num_prompt (`int`):
            Number of positions in the prompt, including those in the cache, once it is read.
        num_seen (`int`):
            Number of positions up to the end of the latest pass, in decoding without a cache.
    """

    num_given: int | None = None
    num_prompt: int = 0
    num_seen: int = 0


class GenerationWatch:
    """
    Knows on which threads a model's `generate` runs.

    Args:
        model (`torch.nn.Module`):
            The model, wrapped or not.
    """

    def __init__(self, model: Any):
        self._model = unwrap(model)
        self._turns: dict[int, list[Turn]] = {}

    def turn(self) -> Turn | None:
        """The innermost call of `generate` on the calling thread; `None` outside of any call."""
        turns = self._turns.get(threading.get_ident())
        return turns[-1] if turns else None

    @contextmanager
    def watching(self) -> Iterator[None]:
        """
        Watch until the context exits.

        Raises:
            ValueError: If a requested generation mode cannot be steered, or if `generate` still runs at the end.
        """
        wrapped: Any = nullcontext()
        if hasattr(self._model, "generate"):
            wrapped = replaced(self._model, "generate", self._watched(self._model.generate))
        with wrapped:
            yield
        if self._turns:
            raise ValueError(
                "`generate` still runs in another thread, and the rest of its answer would not be steered. Join the "
                "thread, or read its streamer to the end, before the context is left."
            )

    def _watched(self, generate: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(generate)
        def watched(*args: Any, **kwargs: Any) -> Any:
            given = dict(zip(("inputs", "generation_config"), args)) | kwargs
            configs = (given.get("generation_config"), getattr(self._model, "generation_config", None))
            _refuse_drafts_and_chunks(given, *configs)
            has_own_prompt = bool(_setting("token_healing", given, *configs)) or self._model.config.is_encoder_decoder
            turns = self._turns.setdefault(thread := threading.get_ident(), [])
            turns.append(Turn(None if has_own_prompt else _num_given(given)))
            try:
                return generate(*args, **kwargs)
            finally:
                turns.pop()
                if not turns:
                    del self._turns[thread]

        return watched


def refuse_paged(given: Mapping[str, Any], cache: Any, attention: str) -> None:
    """
    Refuse a pass of continuous batching whose manager is unknown: several texts in one row, over a paged cache.

    Args:
        given (`Mapping[str, Any]`):
            Arguments of the decoder by name.
        cache (`transformers.Cache`, *optional*):
            The cache among these arguments.
        attention (`str`):
            Name of the model's attention implementation.

    Raises:
        ValueError: If the pass belongs to continuous batching.
    """
    is_paged = any(given.get(name) is not None for name in _PAGED) or attention.startswith("paged|")
    caches = (cache, given.get("cache"))
    if is_paged or any("paged" in type(each).__name__.lower() for each in caches):
        raise ValueError(
            "This forward pass reads a paged cache, and its manager of continuous batching was not made inside this "
            "context: it is not known which of its tokens are generated. Call `generate_batch`, or make the manager, "
            "inside the context."
        )


def drafted_or_chunked(num_tokens: int) -> ValueError:
    """The error about a pass of several tokens that is not the beginning of a text or turn."""
    return ValueError(
        f"A pass of {num_tokens} tokens cannot be steered here: it is not known which of them are generated. A prompt "
        "read in chunks, tokens drafted by an assistant and a new turn over a cache look the same. Switch off "
        "`prefill_chunk_size` and assisted generation. For a new turn over a kept cache call `generate` again with "
        "its `past_key_values`, or leave this context and enter another."
    )


def _refuse_drafts_and_chunks(given: Mapping[str, Any], *configs: Any) -> None:
    if given.get("cache_implementation") == "paged":
        raise ValueError(
            "`generate` with `cache_implementation='paged'` hands padded prompts to continuous batching, where "
            "padding counts as text. Call `generate_batch` with prompts of their own lengths."
        )
    for name in _DRAFTING:
        if _setting(name, given, *configs) not in (None, False):
            raise ValueError(
                f"Assisted generation cannot be steered (`{name}` is set): drafted tokens are read several at a time, "
                f"and it is not known which of them are kept. Leave `{name}` out."
            )
    if _setting("prefill_chunk_size", given, *configs):
        raise ValueError(
            "A prompt read in chunks cannot be steered: a pass does not say which chunk is the last. Leave "
            "`prefill_chunk_size` out."
        )


def _setting(name: str, given: Mapping[str, Any], *configs: Any) -> Any:
    """A setting of `generate`, looked up as it does: in its arguments, then its configuration, then the model's."""
    values = (given.get(name), *(getattr(config, name, None) for config in configs))
    return next((value for value in values if value is not None), None)


def _num_given(given: Mapping[str, Any]) -> int | None:
    prompts = (given.get(name) for name in ("inputs_embeds", "inputs", "input_ids"))
    prompt = next((each for each in prompts if isinstance(each, Tensor) and each.ndim > 1), None)
    return None if prompt is None else prompt.shape[1]
