"""[`EndpointGenerator`]: a server with OpenAI's interface writes the texts."""

import logging
import math
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import urlsplit, urlunsplit

from .generator import Aim, Messages
from .unfinished import STOP, check_unfinished, usable_part

logger = logging.getLogger(__name__)


class EndpointGenerator:
    """
    Any server that speaks OpenAI's chat completions, or its completions for base models: OpenAI itself, `vllm serve`,
    llama.cpp, Ollama and others.

    ```python
    generator = EndpointGenerator("Qwen/Qwen3-8B", base_url="http://localhost:8000/v1")
    ```

    Requests that fail for a moment (no connection, too many requests, an error of the server) are repeated. A single
    request that is refused counts as no answer; if all of a batch are, the run ends with the server's message. The
    key is in no record.

    Args:
        model (`str`):
            Name of the model, as the server knows it.
        base_url (`str`, *optional*):
            Address of the server, with `/v1`; by default that of OpenAI, or the variable `OPENAI_BASE_URL`.
        api_key (`str`, *optional*):
            The key; by default the variable `OPENAI_API_KEY`. A server of your own usually needs none.
        max_tokens (`int`, *optional*, defaults to `512`):
            Longest answer, in tokens.
        temperature (`float`, *optional*, defaults to `1.0`), top_p (`float`, *optional*, defaults to `1.0`):
            How answers are sampled.
        unfinished (`"drop"` or `"trim"`, *optional*, defaults to `"drop"`):
            What becomes of an answer that reaches `max_tokens`: it counts as no answer, or is cut after its last whole
            sentence.
        completions (`bool`, *optional*, defaults to `False`):
            For a base model: it is given a list of examples as plain text, and writes the next one, up to the end of
            the line.
        concurrency (`int`, *optional*, defaults to `8`):
            Requests at once.
        timeout (`float`, *optional*, defaults to `120.0`):
            Seconds until a request counts as failed.
        max_retries (`int`, *optional*, defaults to `4`):
            How often a failed request is repeated, after longer and longer waits.
        extra_body (`dict`, *optional*):
            Further fields of each request, e.g. `{"chat_template_kwargs": {"enable_thinking": False}}`.

    Raises:
        ImportError: If the package openai is not installed.
        ValueError: If a setting is out of range, or there is neither a key nor a server of your own.
    """

    def __init__(
        self,
        model: str,
        *,
        base_url: str | None = None,
        api_key: str | None = None,
        max_tokens: int = 512,
        temperature: float = 1.0,
        top_p: float = 1.0,
        unfinished: str = "drop",
        completions: bool = False,
        concurrency: int = 8,
        timeout: float = 120.0,
        max_retries: int = 4,
        extra_body: dict[str, Any] | None = None,
    ):
        if max_tokens < 1 or concurrency < 1:
            raise ValueError(f"`max_tokens` and `concurrency` must be 1 or more, got {max_tokens}, {concurrency}.")
        if not 0 <= temperature < math.inf or not 0 < top_p <= 1:
            raise ValueError(f"`temperature` must be 0 or more and `top_p` in (0, 1], got {temperature}, {top_p}.")
        check_unfinished(unfinished)
        self._openai = _openai()
        base_url = base_url or os.environ.get("OPENAI_BASE_URL") or None
        key = api_key or os.environ.get("OPENAI_API_KEY")
        if base_url is not None and urlsplit(base_url).scheme not in ("http", "https"):
            raise ValueError(
                f"`base_url` is the address of a server, such as http://localhost:8000/v1; got {base_url!r}."
            )
        if key is None and base_url is None:
            raise ValueError(
                "There is no key for OpenAI's server: set the variable OPENAI_API_KEY, or give the `base_url` of "
                "another server."
            )
        self._client = self._openai.OpenAI(
            base_url=base_url, api_key=key or "none", timeout=timeout, max_retries=max_retries
        )
        self.model = model
        self.base_url = base_url
        self.max_tokens = max_tokens
        self.temperature = temperature
        self.top_p = top_p
        self.unfinished = unfinished
        self.completions = completions
        self.concurrency = concurrency
        self.extra_body = dict(extra_body or {})

    @property
    def settings(self) -> dict[str, Any]:
        """What the records say of it: without the key, and without a password in the address."""
        parts = urlsplit(self.base_url or "")
        host = f"{parts.hostname or ''}{f':{parts.port}' if parts.port else ''}"
        return {
            "model": self.model,
            "base_url": urlunsplit((parts.scheme, host, parts.path, "", "")) or None,
            **{
                name: getattr(self, name)
                for name in ("max_tokens", "temperature", "top_p", "unfinished", "completions", "extra_body")
            },
        }

    def __call__(self, conversations: Sequence[Messages], *, seed: int, aim: Aim | None = None) -> list[str | None]:
        """
        Answer conversations, several requests at once. See [`Generator`]; nothing is steered.

        Raises:
            ConnectionError: If the server cannot be reached.
            ValueError: If it refuses every request.
        """
        with ThreadPoolExecutor(self.concurrency) as pool:
            found = list(pool.map(self._ask, conversations, range(seed, seed + len(conversations))))
        failures = [each for each in found if isinstance(each, Exception)]
        where = self.settings["base_url"] or "OpenAI's server"
        if failures and len(failures) == len(found):
            first = failures[0]
            said = " ".join(str(getattr(first, "message", "") or first).split())
            if isinstance(first, self._openai.APIConnectionError):
                raise ConnectionError(
                    f"The server {where} cannot be reached ({said}). Start it, or check `base_url`."
                ) from first
            raise ValueError(
                f"The server {where} refused all {len(found)} requests: {said}. Check the key, the name of the model "
                f"({self.model}) and the settings."
            ) from first
        if failures:
            logger.warning("%d of %d requests failed (%s).", len(failures), len(found), type(failures[0]).__name__)
        return [None if isinstance(each, Exception) else each for each in found]

    def _ask(self, messages: Messages, seed: int) -> str | Exception | None:
        asked = {
            "model": self.model,
            "max_tokens": self.max_tokens,
            "temperature": self.temperature,
            "top_p": self.top_p,
            "seed": seed % 2**31,
            "extra_body": self.extra_body or None,
        }
        try:
            if self.completions:
                reply: Any = self._client.completions.create(prompt=messages[-1]["content"], stop=STOP, **asked)
            else:
                reply = self._client.chat.completions.create(messages=list(messages), **asked)
        except self._openai.OpenAIError as error:
            return error
        if not reply.choices or reply.choices[0].finish_reason not in ("stop", "length", None):
            return None  # withheld
        choice = reply.choices[0]
        content = choice.text if self.completions else choice.message.content
        return None if content is None else usable_part(content, choice.finish_reason != "length", self.unfinished)


def _openai() -> Any:
    try:
        import openai
    except ImportError as error:
        raise ImportError(
            "Servers of OpenAI's interface are asked with the package openai: pip install 'sae_posttrain[synthesis]'."
        ) from error
    return openai
