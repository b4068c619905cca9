"""
Follow each forward pass through its text: which positions a context pushes, and which rows it has touched.

Legend of the shapes: B rows, T positions of one forward pass, D width, F features. A packed pass has one row, whose
positions belong to several rows of the user's.
"""

import threading
import weakref
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from .generation import Turn, drafted_or_chunked, refuse_paged
from .packed import PackedBatch
from .padding import last_real, real_tokens
from .sites import Place, describe_place
from .strength import Strengths

POSITIONS = ("generated", "all")


class SteeredPass:
    """
    Rows, positions and strengths that one forward pass is pushed with. Decoding steps share one object.

    Args:
        mask (`torch.Tensor` of shape `(B, T)`, bool):
            Rows and positions that are pushed.
        values (`torch.Tensor` of shape `(B or 1, F or 1)`, or `(B, T, F or 1)`):
            Strength of each row and feature, or of each position and feature.
        num_features (`int`):
            Number of features, F.
        is_whole (`bool`):
            Whether the pass has one token per row, and none of them is padding.
        packed ([`PackedBatch`], *optional*):
            The requests of a packed pass.

    Attributes:
        pushes (`dict`):
            What is added at each place, kept if it does not depend on the values there.
    """

    def __init__(
        self, mask: Tensor, values: Tensor, num_features: int, is_whole: bool, packed: PackedBatch | None = None
    ):
        self.mask, self.is_whole, self.packed = mask, is_whole, packed
        self.pushes: dict[Any, Tensor] = {}
        values_BTF = values if values.ndim == 3 else values[:, None, :]
        self._values = values_BTF.expand(mask.shape[0], -1, num_features)
        self._on_device: dict[torch.device, tuple[Tensor, Tensor]] = {}

    def on(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """Strength `(B, T or 1, F)` and mask `(B, T)` on the given device."""
        if device not in self._on_device:
            self._on_device[device] = self._values.to(device), self.mask.to(device)
        return self._on_device[device]


class SteeredPasses:
    """
    State of one armed context.

    Args:
        strengths ([`Strengths`]):
            How far the positions are pushed.
        rows (`Sequence[bool]` or `torch.Tensor` of shape `(B,)`, *optional*):
            Rows that are pushed; all by default.
        positions (`"generated"`, `"all"` or `torch.Tensor` of shape `(B, T)`):
            Positions that are pushed.
        places (`set[Place]`):
            Blocks and sites that are pushed.

    Attributes:
        rows, places:
            As above.
        positions (`str`):
            `"generated"`, `"all"` or, for a mask, `"mask"`.

    Raises:
        ValueError: If `positions` is neither a known word nor a mask.
    """

    def __init__(
        self,
        strengths: Strengths,
        rows: Tensor | Sequence[bool] | None,
        positions: str | Tensor,
        places: set[Place],
    ):
        self.rows = None if rows is None else torch.as_tensor(rows, dtype=torch.bool).cpu()
        self.positions = positions if isinstance(positions, str) else "mask"
        self._mask = positions.bool().cpu() if isinstance(positions, Tensor) and positions.ndim == 2 else None
        words = ", ".join(map(repr, POSITIONS))
        if isinstance(positions, str) and positions not in POSITIONS:
            raise ValueError(f"`positions` must be one of {words}, got {positions!r}.")
        if not isinstance(positions, str) and self._mask is None:
            shape = f" of shape {tuple(positions.shape)}" if isinstance(positions, Tensor) else ""
            raise ValueError(
                f"`positions` must be {words} or a mask of rows and positions, got {type(positions).__name__}{shape}."
            )
        self.strengths = strengths
        self.wants_any = self.rows is None or bool(self.rows.any())
        self.places = places
        self._reached: set[Place] = set()
        self._caches: weakref.WeakSet = weakref.WeakSet()
        self._passes: dict[int, SteeredPass] = {}  # by thread
        self._touched: dict[int, Tensor] = {}  # touched rows of each thread's text; no entry if all rows are
        self._missed: list[Tensor] = []  # rows of earlier texts without a position to push
        self._latest: SteeredPass | None = None
        self._refusal: tuple[int, ValueError] | None = None
        self._thread = threading.get_ident()

    def begin(self, given: Mapping[str, Any], tokens: Tensor, cache: Any, turn: Turn | None, attention: str) -> None:
        """
        Find the positions that are pushed in a forward pass, before it runs.

        Args:
            given (`Mapping[str, Any]`):
                Arguments of the decoder by name.
            tokens (`torch.Tensor` of shape `(B, T)` or `(B, T, D)`):
                Token ids or embeddings.
            cache (`transformers.Cache`, *optional*):
                The cache among the arguments.
            turn ([`Turn`], *optional*):
                The call of `generate` that the pass belongs to.
            attention (`str`):
                Name of the model's attention implementation.

        Raises:
            ValueError: If the batch does not fit, or it is unknown which positions are generated.
        """
        try:
            self._begin(given, tokens, cache, turn, attention)
        except ValueError as error:
            self.refuse(error)
            raise

    def begin_packed(self, batch: PackedBatch) -> None:
        """Find the positions that are pushed in a packed pass, before it runs."""
        mask_T = batch.mask if self.rows is None else batch.mask & self.rows[batch.rows]
        values = self.strengths.values
        values_TF = values[batch.rows] if len(values) > 1 else values.expand(len(mask_T), -1)
        packed = SteeredPass(mask_T[None], values_TF[None], len(self.strengths.asked), False, batch)
        self._passes[threading.get_ident()] = self._latest = packed

    def refuse(self, error: ValueError) -> None:
        """Keep an error that the calling thread may hide, to be raised when the context is left."""
        self._refusal = threading.get_ident(), error

    def see_cache(self, cache: Any) -> None:
        """Note a cache that a pass has written. A later pass of several tokens over it continues the same text."""
        if cache is not None:
            self._caches.add(cache)

    def here(self) -> SteeredPass:
        """The pass of this thread; the latest pass if this thread has none (backward can run in its own thread)."""
        found = self._passes.get(threading.get_ident(), self._latest)
        assert found is not None
        return found

    def reach(self, place: Place) -> None:
        self._reached.add(place)
        current = self._passes.get(threading.get_ident())
        if current is not None and current.packed is not None:
            current.packed.reach(place)

    def require_no_refusal(self) -> None:
        """Raise a `ValueError` if a pass in another thread was refused: that thread may have hidden the error."""
        if self._refusal is not None and self._refusal[0] != self._thread:
            raise ValueError(f"A forward pass in another thread was refused: {self._refusal[1]}")

    def require_touched(self) -> None:
        """Raise a `ValueError` if a requested row was not pushed, or a site was not reached."""
        if not self.wants_any:
            return
        missed = sorted(self.places - self._reached)
        if missed:
            raise ValueError(
                f"No forward pass of this model reached {describe_place(missed[0])}: nothing was steered."
            )
        for touched in [*self._missed, *self._touched.values()]:
            asked = torch.ones_like(touched) if self.rows is None else self.rows.to(touched.device)
            untouched = (asked & ~touched).nonzero().flatten().tolist()
            if untouched:
                raise ValueError(f"Row {untouched[0]} should be steered, but no position of it was touched.")

    def _begin(self, given: Mapping[str, Any], tokens: Tensor, cache: Any, turn: Turn | None, attention: str) -> None:
        if not self.wants_any:
            return
        refuse_paged(given, cache, attention)
        num_rows, num_tokens = tokens.shape[:2]
        self.require_rows(num_rows)
        if self._mask is not None:
            if tuple(self._mask.shape) != (num_rows, num_tokens):
                raise ValueError(
                    f"`positions` has shape {tuple(self._mask.shape)}, the batch ({num_rows}, {num_tokens}). "
                    "While generating, use 'generated' or 'all'."
                )
            real = _real_where_told(given, num_rows, num_tokens)
            self._new_text(self._mask, real)
            return
        # If all layers are recurrent, a dynamic cache says that it is compileable, but it is not compiled.
        if getattr(cache, "is_compileable", False) and type(cache).__name__ != "DynamicCache":
            raise ValueError(
                "Steering needs a dynamic cache: with a static one decoding may be compiled, and hooks would not fire."
                " Leave `cache_implementation` out, or set it to 'dynamic'."
            )
        num_cached = _num_cached(cache)
        if turn is not None and turn.num_prompt:
            self._decode(given, num_rows, num_tokens, num_cached, turn)
        elif turn is not None:
            self._read_prompt(given, num_rows, num_tokens, num_cached, turn, tokens.ndim == 3)
        elif num_cached and num_tokens > 1 and cache in self._caches:
            raise drafted_or_chunked(num_tokens)
        elif num_cached and num_tokens == 1 and cache in self._caches:
            self._step(_real_where_told(given, num_rows, 1), num_rows)
        else:
            real = self._real(given, num_rows, num_tokens)
            self._new_text(self._pushed(real, num_rows, num_tokens), real)
        self.see_cache(cache)

    def _read_prompt(
        self, given: Mapping[str, Any], num_rows: int, num_tokens: int, num_cached: int, turn: Turn, embedded: bool
    ) -> None:
        if turn.num_given is not None:
            left = (turn.num_given, turn.num_given - num_cached)
            if num_tokens not in left and (num_tokens < min(left) or not embedded):  # adapters add virtual tokens
                raise drafted_or_chunked(num_tokens)
        real = self._real(given, num_rows, num_tokens)
        if real is not None and not bool(real[:, -1].all()):
            row = int((~real[:, -1]).nonzero()[0])
            raise ValueError(
                f"The prompt in row {row} ends in padding, and its first token would be predicted from there. Pad on "
                "the left: `tokenizer.padding_side = 'left'`."
            )
        self._new_text(self._pushed(real, num_rows, num_tokens), real)
        turn.num_prompt = num_cached + num_tokens
        turn.num_seen = num_tokens

    def _decode(self, given: Mapping[str, Any], num_rows: int, num_tokens: int, num_cached: int, turn: Turn) -> None:
        if num_tokens == 1:
            self._step(None, num_rows)
        elif not num_cached and num_tokens == turn.num_seen + 1:  # without a cache, each step reads the whole text
            turn.num_seen = num_tokens
            mask = torch.ones(num_rows, num_tokens, dtype=torch.bool)
            if self.positions == "generated":
                mask[:, : turn.num_prompt - 1] = False
            self._set(self._of_rows(mask))
        else:
            raise drafted_or_chunked(num_tokens)

    def _real(self, given: Mapping[str, Any], num_rows: int, num_tokens: int) -> Tensor | None:
        """Real tokens. If all positions are pushed, a row without padding may hold several texts."""
        is_packed_whole = given.get("attention_mask") is None and self.positions == "all"
        return None if is_packed_whole else real_tokens(given, num_rows, num_tokens)

    def _step(self, real: Tensor | None, num_rows: int) -> None:
        """Begin a decoding step: one more token of the same text."""
        before = self._passes.get(threading.get_ident())
        if real is None and before is not None and before.is_whole and tuple(before.mask.shape) == (num_rows, 1):
            return  # every decoding step adds the same
        mask = self._of_rows(torch.ones(num_rows, 1, dtype=torch.bool) if real is None else real)
        self._set(mask, is_whole=real is None)
        touched = self._touched.get(threading.get_ident())
        if touched is not None and len(touched) == num_rows:
            self._touched[threading.get_ident()] = touched | mask.any(dim=1).to(touched.device)

    def _new_text(self, mask: Tensor, real: Tensor | None) -> None:
        """Begin a new text. `mask` marks the pushed positions, `real` the real tokens (`None`: all are real)."""
        thread = threading.get_ident()
        if thread in self._touched:
            self._missed.append(self._touched.pop(thread))
        mask = self._of_rows(mask)
        if real is not None or self._mask is not None:
            self._touched[thread] = (mask if real is None else mask.to(real.device) & real).any(dim=1)
        self._set(mask, is_whole=real is None and mask.shape[1] == 1)

    def _set(self, mask: Tensor, is_whole: bool = False) -> None:
        self._latest = SteeredPass(mask, self.strengths.values, len(self.strengths.asked), is_whole)
        self._passes[threading.get_ident()] = self._latest

    def _of_rows(self, mask: Tensor) -> Tensor:
        return mask if self.rows is None else mask & self.rows.to(mask.device)[:, None]

    def _pushed(self, real: Tensor | None, num_rows: int, num_tokens: int) -> Tensor:
        """Pushed positions `(B, T)` at the beginning of a text: all up to the last real token, or that token only."""
        if real is None:
            real = torch.ones(num_rows, num_tokens, dtype=torch.bool)
        positions, last = torch.arange(num_tokens, device=real.device), last_real(real)
        return positions == last if self.positions == "generated" else positions <= last

    def require_rows(self, num_rows: int) -> None:
        """Raise a `ValueError` if rows or strengths were given for another number of rows."""
        if self.rows is not None and len(self.rows) != num_rows:
            raise ValueError(
                f"`rows` names {len(self.rows)} rows, the batch has {num_rows}. Does `generate` repeat each prompt "
                "(beams, `num_return_sequences`)? Repeat the prompts yourself."
            )
        if len(self.strengths.values) not in (1, num_rows):
            raise ValueError(
                f"`strength` is given for {len(self.strengths.values)} rows, the batch has {num_rows}. Does "
                "`generate` repeat each prompt (beams, `num_return_sequences`)? Repeat the prompts yourself."
            )


def _num_cached(cache: Any) -> int:
    """Number of positions in a cache; 1 if it holds only states of recurrent layers, which do not count positions."""
    if not hasattr(cache, "get_seq_length"):
        return 0
    try:
        return int(cache.get_seq_length())
    except ValueError:
        return int(cache.has_previous_state())


def _real_where_told(given: Mapping[str, Any], num_rows: int, num_tokens: int) -> Tensor | None:
    """Real tokens if they can be recognised, else all tokens: here the user has said which positions are pushed."""
    try:
        return real_tokens(given, num_rows, num_tokens)
    except ValueError:
        return None
