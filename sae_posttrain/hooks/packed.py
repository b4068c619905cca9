"""
Follow continuous batching for steering: which token of a packed pass belongs to which request, and is it pushed.

Continuous batching of transformers runs a manager in a thread of its own. Each of its passes holds one row of tokens,
some of each request: a whole prompt, a chunk of one, or one decoded token. A request that lost its place in the cache
is read again, prompt and answer so far. So a token is pushed by its position in its own text, which is the same
whatever pass it comes in. Two settings of the manager are changed, because steering would be wrong under the usual
ones: shared blocks of the cache would carry what was steered into requests that are not, and a captured graph runs no
hooks.

Legend of the shapes: T tokens of one packed pass.
"""

import copy
import functools
import threading
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from .blocks import unwrap
from .sites import Place, describe_place


@dataclass
class PackedRequest:
    """
    One request of a manager.

    Attributes:
        row (`int`):
            Row that it stands for: its number among the prompts.
        num_prompt (`int`):
            Number of tokens in its prompt.
        first (`int`):
            First position that is pushed, counted from the beginning of its text.
        pushed (`Counter[Place]`):
            Number of tokens that the hook at each place was given to push.
        state (`Any`):
            The manager's own record of it; `None` until it is in a pass.
    """

    row: int
    num_prompt: int
    first: int
    pushed: Counter = field(default_factory=Counter)
    state: Any = None

    def num_due(self) -> int:
        """Tokens that had to be pushed so far. The last generated token is never read."""
        if self.state is None:
            return 0
        # A request that lost its place in the cache carries its answer so far as a part of its initial tokens.
        length = len(self.state.initial_tokens) + len(self.state.generated_tokens)
        return max(0, length - 1 - self.first) if length > self.num_prompt else 0


@dataclass(frozen=True)
class PackedBatch:
    """
    The tokens of one pass.

    Attributes:
        rows (`torch.Tensor` of shape `(T,)`, int):
            Row of each token's request.
        mask (`torch.Tensor` of shape `(T,)`, bool):
            Tokens that are pushed if their row is.
    """

    rows: Tensor
    mask: Tensor
    _requests: tuple[PackedRequest, ...]
    _nums_pushed: tuple[int, ...]

    def reach(self, place: Place) -> None:
        """Count the tokens of each request at a place, from inside its hook: a hook that never runs counts none."""
        for request, num in zip(self._requests, self._nums_pushed):
            request.pushed[place] += num


def pack(requests: list[PackedRequest], lengths: list[int], num_read: list[int]) -> PackedBatch:
    """
    Which tokens of a packed pass are pushed.

    Args:
        requests (`list[PackedRequest]`):
            The requests in the order of the pass.
        lengths (`list[int]`):
            Number of tokens that each has in this pass.
        num_read (`list[int]`):
            Number of tokens of each that lie in the cache before this pass.
    """
    spans = list(zip(requests, lengths, num_read))
    rows = [torch.full((length,), request.row) for request, length, _ in spans]
    masks = [torch.arange(read, read + length) >= request.first for request, length, read in spans]
    nums = tuple(int(mask.sum()) for mask in masks)
    return PackedBatch(torch.cat(rows), torch.cat(masks), tuple(requests), nums)


class PackingWatch:
    """
    Knows the requests of the managers of continuous batching that are made inside a context.

    Args:
        model (`torch.nn.Module`):
            The model, wrapped or not.
    """

    def __init__(self, model: Any):
        self._model = unwrap(model)
        self._managers: list[Any] = []
        self._requests: dict[tuple[int, str], PackedRequest] = {}  # by the manager's place in the list, and its id
        self._next_row = 0
        self._positions = "generated"
        self._require_rows: Callable[[int], None] | None = None
        self._undo: ExitStack | None = None

    @property
    def requests(self) -> list[PackedRequest]:
        """Requests of the latest context, in the order in which they were added."""
        return list(self._requests.values())

    @contextmanager
    def watching(self, positions: str, require_rows: Callable[[int], None]) -> Iterator[None]:
        """
        Watch until the context exits.

        Args:
            positions (`str`):
                `"generated"` or `"all"`, as in [`steer`]; for anything else continuous batching is refused.
            require_rows (`Callable[[int], None]`):
                Raises a `ValueError` if a batch cannot have this many rows.

        Raises:
            ValueError: If a manager runs on this model when the context is entered or left, or one is asked for whose
                requests cannot be steered.
        """
        if _running_on(self._model):
            raise ValueError(
                "A manager of continuous batching runs on this model, and its requests are not known here. Make it "
                "inside the context: call `generate_batch`, or `continuous_batching_context_manager`, there."
            )
        self._managers, self._requests, self._next_row = [], {}, 0
        self._positions, self._require_rows = positions, require_rows
        with ExitStack() as self._undo:
            for name, watched in (("generate_batch", self._one_row_each), ("init_continuous_batching", self._made)):
                if hasattr(self._model, name):
                    wrapped = functools.partial(watched, getattr(self._model, name))
                    self._undo.enter_context(replaced(self._model, name, wrapped))
            yield
            if any(manager.is_running() for manager in self._managers):
                raise ValueError(
                    "A manager of continuous batching still runs, and the rest of its answers would not be steered. "
                    "Stop it before the context is left: `manager.stop(block=True)`."
                )

    def batch(self) -> PackedBatch | None:
        """The tokens of the pass that the calling thread is about to make; `None` outside of a manager's thread."""
        thread = threading.current_thread()
        for number, manager in enumerate(self._managers):
            if getattr(manager, "_generation_thread", None) is thread:
                return self._batch_of(number, manager)
        return None

    def require_served(self) -> None:
        """Raise a `RuntimeError` if a request failed: `generate_batch` only logs it, and returns what there is."""
        for request in self._requests.values():
            if getattr(request.state, "error", None):
                raise RuntimeError(f"Continuous batching failed at row {request.row}: {request.state.error}")

    def require_pushed(self, places: Collection[Place], rows: Tensor | None) -> None:
        """
        Check that the hooks saw every token that had to be pushed.

        Args:
            places (`Collection[Place]`):
                Places that are pushed.
            rows (`torch.Tensor` of shape `(B,)`, bool, *optional*):
                Rows that are pushed; all by default.

        Raises:
            ValueError: If a hook saw fewer tokens of a request than the request has generated, or there was none.
        """
        if not self._managers:
            return
        asked = None if rows is None else set(rows.nonzero().flatten().tolist())
        for request in self._requests.values():
            if asked is not None and request.row not in asked:
                continue
            if request.state is None:
                raise ValueError(f"Row {request.row} should be steered, but no pass of its request was made.")
            for place in places:
                if request.pushed[place] < request.num_due():
                    raise ValueError(
                        f"Row {request.row} should be steered at {request.num_due()} positions, but the hook at "
                        f"{describe_place(place)} saw {request.pushed[place]} of them."
                    )
        missing = sorted((asked or set()) - {request.row for request in self._requests.values()})
        if missing:
            raise ValueError(f"Row {missing[0]} should be steered, but no request was added for it.")

    def _one_row_each(self, generate_batch: Callable[..., Any], inputs: Any, *args: Any, **kwargs: Any) -> Any:
        # Checked here, because `generate_batch` only logs an error that its manager meets.
        self._refuse_mask()
        if inputs and self._require_rows is not None:
            config = args[0] if args else kwargs.get("generation_config") or self._model.generation_config
            self._require_rows(len(inputs) * (getattr(config, "num_return_sequences", None) or 1))
        return generate_batch(inputs, *args, **kwargs)

    def _made(
        self,
        init_continuous_batching: Callable[..., Any],
        generation_config: Any = None,
        continuous_batching_config: Any = None,
        *args: Any,
        **kwargs: Any,
    ) -> Any:
        self._refuse_mask()
        config = steerable(continuous_batching_config)
        manager = init_continuous_batching(generation_config, config, *args, **kwargs)
        _require_steerable(manager.continuous_batching_config)
        number = len(self._managers)
        self._managers.append(manager)
        self._next_row = 0
        assert self._undo is not None
        add_request = functools.partial(self._added, number, manager.add_request)
        self._undo.enter_context(replaced(manager, "add_request", add_request))
        return manager

    def _added(
        self,
        number: int,
        add_request: Callable[..., Any],
        input_ids: list[int],
        request_id: str | None = None,
        *args: Any,
        **kwargs: Any,
    ) -> Any:
        row, num_prompt = self._next_row, len(input_ids)
        self._next_row += 1
        if request_id is None:  # it must be known before the manager's thread can see the request
            request_id = f"steered_{number}_{row}"
        first = 0 if self._positions == "all" else num_prompt - 1
        self._requests[number, request_id] = PackedRequest(row, num_prompt, first)
        return add_request(input_ids, request_id, *args, **kwargs)

    def _batch_of(self, number: int, manager: Any) -> PackedBatch:
        running = manager.batch_processor.inputs_and_outputs
        if hasattr(running, "io_pairs"):  # asynchronous batching prepares the next batch in the other pair
            running = running.io_pairs[running.current_pair].host_io
        requests, lengths, num_read = [], [], []
        for scheduled in running.requests_in_batch:
            state, length = scheduled.state, scheduled.query_length
            request = self._request(number, state.request_id)
            request.state = state
            requests.append(request)
            lengths.append(length)
            num_read.append(state.position_offset - length)  # the offset counts this pass already
        return pack(requests, lengths, num_read)

    def _request(self, number: int, request_id: str) -> PackedRequest:
        known = self._requests.get((number, request_id))
        if known is not None:
            return known
        parent = self._requests.get((number, request_id.partition("__child#")[0]))
        if parent is None:
            raise ValueError(
                f"The request {request_id!r} was not added inside this context, so it is not known which of its "
                "tokens are generated. Add requests by `generate_batch`, `add_request` or `add_requests`."
            )
        # A further answer to the same prompt begins where the prompt was read: the manager copies its cache.
        child = PackedRequest(parent.row, parent.num_prompt, parent.first, Counter(parent.pushed))
        self._requests[number, request_id] = child
        return child

    def _refuse_mask(self) -> None:
        if self._positions not in ("generated", "all"):
            raise ValueError(
                "A mask of positions is for forward passes of its length, not for generating. Set `positions` to "
                "'generated' or 'all'."
            )


def steerable(config: Any) -> Any:
    """
    A copy of a configuration of continuous batching under which steering is exact: no shared blocks, no CUDA graphs.

    Raises:
        ValueError: If CUDA graphs or compilation are asked for. Shared blocks cannot be told from the default.
    """
    if config is None:
        from transformers import ContinuousBatchingConfig

        config = ContinuousBatchingConfig()
    config = copy.copy(config)
    config.allow_block_sharing = False
    graphs = config.use_cuda_graph
    if graphs is None:
        config.use_cuda_graph = False
    _require_steerable(config)
    return config


def _require_steerable(config: Any) -> None:
    graphs = config.use_cuda_graph
    if any(graphs) if isinstance(graphs, tuple) else graphs:
        raise ValueError(
            "`use_cuda_graph` is set in the configuration of continuous batching. A captured graph runs no hooks, so "
            "nothing would be steered. Set `use_cuda_graph=False`."
        )
    for name in ("varlen_compile_config", "decode_compile_config", "default_compile_level"):
        if getattr(config, name, None):
            raise ValueError(
                f"`{name}` is set in the configuration of continuous batching. Compiled passes need not run the "
                f"hooks that steer. Leave `{name}` out."
            )
    if config.allow_block_sharing:
        raise ValueError(
            "The manager of continuous batching that is kept on this model shares blocks of its cache, so that "
            "requests would read what was computed under steering. Call "
            "`model.destroy_cached_continuous_batching_manager()` first."
        )


def _running_on(model: Any) -> bool:
    """Whether a manager of continuous batching runs this model in a thread."""
    for thread in threading.enumerate():
        manager = getattr(getattr(thread, "_target", None), "__self__", None)
        if type(manager).__name__ == "ContinuousBatchingManager" and getattr(manager, "model", None) is model:
            return True
    return False


@contextmanager
def replaced(owner: Any, name: str, replacement: Callable[..., Any]) -> Iterator[None]:
    """Replace a method of one object until the context exits. Contexts on one object must be nested."""
    own = vars(owner).get(name)
    setattr(owner, name, replacement)
    try:
        yield
    finally:
        if own is None:
            delattr(owner, name)
        else:
            setattr(owner, name, own)
