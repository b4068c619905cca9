"""
Which tokens of an engine's running step are pushed, and how far. Pure numpy: it knows no engine.

An engine packs the tokens of its running requests one after the other. A request is pushed from its first pushed
position to its end, whichever step computes a position, and as often as it is computed: prompts read in chunks,
prompts found in a cache, and requests that are preempted and computed again need no case of their own.

Legend of the shapes: R requests of a step, T its tokens, K pushes (the features of a set that share a name).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class SteeredRequest:
    """
    How one request is pushed.

    Attributes:
        strengths (`numpy.ndarray` of shape `(K,)`, float32):
            Strength of each push.
        start (`int`):
            First position that is pushed, counted from 0 in prompt and answer: the last of the prompt for
            `positions="generated"`, 0 for `"all"`.
    """

    strengths: np.ndarray
    start: int


class TokenTable:
    """
    The steered requests of an engine, and from them one coefficient for each token of a step and each push.

    Args:
        num_pushes (`int`):
            K, the number of pushes that the engine knows.
    """

    def __init__(self, num_pushes: int):
        self.num_pushes = num_pushes
        self._requests: dict[str, SteeredRequest] = {}

    def __len__(self) -> int:
        return len(self._requests)

    def add(self, request_id: str, request: SteeredRequest) -> None:
        """
        Push this request from now on. A request of the same id is replaced.

        Raises:
            ValueError: If there is not one strength for each push, or the start is negative.
        """
        if request.strengths.shape != (self.num_pushes,):
            raise ValueError(f"Got strengths of shape {request.strengths.shape}, for {self.num_pushes} pushes.")
        if request.start < 0:
            raise ValueError(f"The first pushed position is {request.start}; positions are counted from 0.")
        self._requests[request_id] = request

    def remove(self, request_id: str) -> None:
        """Forget a request, steered or not."""
        self._requests.pop(request_id, None)

    def coefficients(
        self, request_ids: Sequence[str], starts: np.ndarray, computed: np.ndarray, num_tokens: int
    ) -> np.ndarray | None:
        """
        Coefficients of the tokens of one step.

        Args:
            request_ids (`Sequence[str]`, R entries):
                The requests in the order of the batch, steered or not.
            starts (`numpy.ndarray` of shape `(R + 1,)`):
                First token of each request in the batch, and the end of the last.
            computed (`numpy.ndarray` of shape `(R,)`):
                Tokens of each request that were computed (or found in a cache) before this step: the position of its
                first token in it.
            num_tokens (`int`):
                T, without padding.

        Returns:
            `numpy.ndarray` of shape `(T, K)`, float32, or `None` if no token of the step is pushed.
        """
        if not self._requests:
            return None
        coefficients_TK = None
        for i, request_id in enumerate(request_ids):
            request = self._requests.get(request_id)
            if request is None:
                continue
            first = int(starts[i]) + max(0, request.start - int(computed[i]))
            end = int(starts[i + 1])
            if first >= end:
                continue
            if coefficients_TK is None:
                coefficients_TK = np.zeros((num_tokens, self.num_pushes), dtype=np.float32)
            coefficients_TK[first:end] = request.strengths
        return coefficients_TK
