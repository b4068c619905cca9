"""
What a server does with a request before vLLM reads it: refuse what cannot be steered, and keep its cache apart.

An answer without the push that was asked for would look like any other, so a mistake is answered with status 400. The
cached prefix of a steered request holds pushed values; it must serve only requests that are pushed in the same way.
"""

import hashlib
import json
from collections.abc import Callable
from typing import Any

from .engine_steering import strengths_of
from .pushes import Pushes
from .row_settings import FEATURES, POSITIONS, SALT_PREFIX, STEER
from .worker_mixin import read_pushes

_PROMPT = ("prompt", "messages", "input", "system", "instructions", "tools", "documents", "chat_template_kwargs")
_XARGS = "vllm_xargs"


class SteerRequests:
    """
    Middleware (ASGI) of a vLLM server: `--middleware sae_posttrain.serving.http_requests.SteerRequests`.

    A request with a `steer` in `vllm_xargs` that cannot be read is answered with status 400 and what is wrong with it.
    One without a `cache_salt` gets one, made of the steering and the prompt. All others pass as they are.

    Args:
        app (`Callable`):
            The server's application.
    """

    def __init__(self, app: Callable):
        self._app = app
        self._pushes: Pushes | None = None

    async def __call__(self, scope: dict[str, Any], receive: Callable, send: Callable) -> None:
        if scope["type"] != "http" or scope["method"] != "POST":
            await self._app(scope, receive, send)
            return
        body, more = b"", True
        while more:
            message = await receive()
            if message["type"] != "http.request":
                return
            body, more = body + message.get("body", b""), message.get("more_body", False)
        try:
            body = steered_body(body, lambda: self._of(scope))
        except ValueError as error:
            await _refuse(send, str(error))
            return
        was_read = False

        async def again() -> dict[str, Any]:
            nonlocal was_read
            if was_read:
                return await receive()
            was_read = True
            return {"type": "http.request", "body": body, "more_body": False}

        await self._app(_with_length(scope, len(body)), again, send)

    def _of(self, scope: dict[str, Any]) -> Pushes:
        if self._pushes is None:
            self._pushes = read_pushes(scope["app"].state.vllm_config)
        return self._pushes


def steered_body(body: bytes, pushes: Callable[[], Pushes]) -> bytes:
    """
    A request's body with a `cache_salt`, if it asks to be steered and has none; any other body as it is.

    Args:
        body (`bytes`):
            JSON, as the client sent it.
        pushes (`Callable`):
            Gives what the server knows; called for requests that ask to be steered.

    Raises:
        ValueError: If it cannot be steered as it asks.
    """
    if STEER.encode() not in body:
        return body
    try:
        request = json.loads(body)
    except ValueError:
        return body  # the server says what is wrong with it
    if not isinstance(request, dict):
        return body
    misplaced = sorted(name for name in request if name in (STEER, POSITIONS, FEATURES))
    if misplaced:
        raise ValueError(f'`{misplaced[0]}` stands beside the prompt. Put it into `vllm_xargs`: {{"{STEER}": 0.8}}.')
    xargs = request.get(_XARGS)
    if not isinstance(xargs, dict) or strengths_of(xargs, pushes()) is None or request.get("cache_salt"):
        return body
    said: list[Any] = [{name: xargs.get(name) for name in (STEER, POSITIONS, FEATURES)}]
    said += [[name, request.get(name)] for name in _PROMPT]
    salt = hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()[:32]
    return json.dumps({**request, "cache_salt": f"{SALT_PREFIX}:{salt}"}).encode()


def _with_length(scope: dict[str, Any], length: int) -> dict[str, Any]:
    headers = [(name, value) for name, value in scope["headers"] if name.lower() != b"content-length"]
    return {**scope, "headers": [*headers, (b"content-length", str(length).encode())]}


async def _refuse(send: Callable, message: str) -> None:
    error = {"error": {"message": message, "type": "BadRequestError", "param": _XARGS, "code": 400}}
    body = json.dumps(error).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": 400, "headers": headers})
    await send({"type": "http.response.body", "body": body})
