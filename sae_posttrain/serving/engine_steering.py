"""
What a worker of an engine does to steer single requests, apart from the names of the engine.

Legend of the shapes: N tokens of the largest step, K pushes, D width.
"""

import hashlib
import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from .pushes import Pushes
from .row_settings import FEATURES, POSITIONS, STEER
from .steer_op import SITES, SteeredSite, steer_tokens
from .token_table import SteeredRequest, TokenTable

MAX_ERRORS = 100
"""Errors that are kept; the number of all is counted."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class NewRequest:
    """
    A request that an engine begins.

    Attributes:
        request_id (`str`):
            The engine's id.
        extra (`Mapping[str, Any]`):
            What the request says beside the engine's own parameters.
        prompt_length (`int`, *optional*):
            Tokens of its prompt, also if the request is computed again later. `None` if the engine does not say it.
    """

    request_id: str
    extra: Mapping[str, Any]
    prompt_length: int | None


class EngineSteering:
    """
    Buffers, hooks and requests of one worker.

    Args:
        pushes ([`Pushes`]):
            What requests can ask for.
        max_tokens (`int`):
            N, the tokens of the engine's largest step, with padding.
        device (`torch.device`):
            Where the model is.
    """

    def __init__(self, pushes: Pushes, max_tokens: int, device: torch.device):
        self.pushes = pushes
        self.coefficients = torch.zeros(max_tokens, len(pushes.pushes), device=device)
        self._table = TokenTable(len(pushes.pushes))
        self._sites: dict[int, SteeredSite] = {}
        self._num_written = 0
        self._errors: list[str] = []
        self._num_errors = 0

    def attach(self, blocks: Sequence[nn.Module]) -> None:
        """
        Push at the output of the blocks. To be called before anything of the model is traced or captured.

        A block that returns a pair returns what it adds last and the stream before it, whose sum the next block
        reads: adding to the first adds to the sum.
        """
        for block, vectors_KD in self.pushes.vectors.items():
            device = self.coefficients.device
            counts_K = torch.zeros(len(vectors_KD), dtype=torch.int64, device=device)
            site = SteeredSite(self.coefficients, vectors_KD.to(device), counts_K)
            number = self._number(block)
            SITES[number] = self._sites[block] = site
            blocks[block].register_forward_hook(_push_at(number))

    def begin(self, new: Iterable[NewRequest], finished: Iterable[str]) -> None:
        """Take up the requests that a step begins, and forget those that have finished."""
        for request_id in finished:
            self._table.remove(request_id)
        for request in new:
            self._table.remove(request.request_id)
            try:
                steered = self._read(request)
            except ValueError as error:  # raised here, it would end the engine
                self._note(f"request {request.request_id}: {error}")
                continue
            if steered is not None:
                self._table.add(request.request_id, steered)

    def fill(self, request_ids: Sequence[str], starts: np.ndarray, computed: np.ndarray, num_tokens: int) -> None:
        """Write the coefficients of a step: see [`TokenTable.coefficients`]."""
        self._write(self._table.coefficients(request_ids, starts, computed, num_tokens))

    def clear(self) -> None:
        """Push nothing in the next step."""
        self._write(None)

    def report(self) -> dict[str, Any]:
        """
        What the worker has pushed: see [`read_reports`]. It waits for the device.

        Returns:
            `dict`: `counts` (a row for each block and push that has features there), `errors`, `num_errors`.
        """
        rows = []
        for block, site in self._sites.items():
            present = site.vectors.ne(0).any(dim=1).tolist()
            for push, count, is_here in zip(self.pushes.pushes, site.counts.tolist(), present):
                if is_here:
                    rows.append({"features": push.fingerprint, "name": push.name, "block": block, "count": count})
        return {"counts": rows, "errors": list(self._errors), "num_errors": self._num_errors}

    def _read(self, request: NewRequest) -> SteeredRequest | None:
        strengths = strengths_of(request.extra, self.pushes)
        if strengths is None:
            return None
        start = 0
        if request.extra.get(POSITIONS, "generated") == "generated":
            if not request.prompt_length:
                raise ValueError("the engine does not say how long its prompt is. Give the prompt as text or tokens.")
            start = request.prompt_length - 1
        return SteeredRequest(np.array(strengths, dtype=np.float32), start)

    def _note(self, error: str) -> None:
        logger.error("Not steered: %s", error)
        self._num_errors += 1
        self._errors = [*self._errors, error][-MAX_ERRORS:]

    def _write(self, coefficients_TK: np.ndarray | None) -> None:
        num_tokens = 0 if coefficients_TK is None else len(coefficients_TK)
        num_rows = max(num_tokens, self._num_written)
        if num_rows == 0:
            return
        rows = np.zeros((num_rows, self._table.num_pushes), dtype=np.float32)
        if coefficients_TK is not None:
            rows[:num_tokens] = coefficients_TK
        self.coefficients[:num_rows].copy_(self._on_host(rows), non_blocking=True)
        self._num_written = num_tokens

    def _on_host(self, rows: np.ndarray) -> Tensor:
        """A tensor of its own for each step, so that a copy under way is not overwritten by the next step."""
        host = torch.from_numpy(rows)
        return host.pin_memory() if self.coefficients.device.type == "cuda" else host

    def _number(self, block: int) -> int:
        """Equal for equal pushes, since compiled graphs with the number in them are kept over runs."""
        sets = dict.fromkeys((push.set_name, push.fingerprint) for push in self.pushes.pushes)
        return int(hashlib.sha256(repr(list(sets)).encode()).hexdigest()[:12], 16) * 4096 + block


def strengths_of(extra: Mapping[str, Any], pushes: Pushes) -> list[float] | None:
    """
    Strength of each push for what a request says; `None` if it does not ask to be steered.

    Args:
        extra (`Mapping[str, Any]`):
            `vllm_xargs` of the request, or `extra_args` of its sampling parameters.
        pushes ([`Pushes`]):
            What the engine knows.

    Raises:
        ValueError: If something in it cannot be read or is unknown.
    """
    ours = {name for name in extra if name.startswith(STEER)}
    unknown = sorted(ours - {STEER, POSITIONS, FEATURES})
    if unknown:
        raise ValueError(f"{unknown[0]!r} is unknown. A request says {STEER!r}, {POSITIONS!r} and {FEATURES!r}.")
    if not ours:
        return None
    if STEER not in ours:
        raise ValueError(f"it says {sorted(ours)[0]!r}, but not how far to push: {STEER!r} is missing.")
    if extra.get(POSITIONS, "generated") not in ("generated", "all"):
        raise ValueError(f"{POSITIONS!r} must be 'generated' or 'all', got {extra[POSITIONS]!r}.")
    strengths = pushes.of(extra[STEER], extra.get(FEATURES))
    return strengths if any(strengths) else None


def _push_at(number: int):
    def push(_block: nn.Module, _args: Any, output: Any) -> Any:
        if isinstance(output, tuple):
            return (steer_tokens(output[0], number), *output[1:])
        return steer_tokens(output, number)

    return push
