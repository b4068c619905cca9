"""
[`ActivationBuffer`]: batches of activations, drawn from a buffer with the tokens of many texts.

Shape suffixes: N tokens, D width of the site.
"""

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from ..features.read.texts import Text
from ..hooks.sites import Place
from .activations import num_counted, recorded_passes, texts_of_passes
from .processes import ALONE, Processes


class ActivationBuffer(Iterator[dict[Place, Tensor]]):
    """
    Endless batches of activations of tokens, drawn from a buffer with the tokens of many texts.

    The texts are read repeatedly, each time in a new order. Whenever half of the buffer has been used, the model fills
    that half again. If all texts fit into the buffer, they are read once. Their tokens stay in the buffer and are
    drawn in a new order each time.

    A batch holds `(batch_size, D)` for each place, float32, on the model's device; a row is the same token at all
    places. With several processes, a batch holds the places that this process owns.

    Memory: `buffer_tokens` times the widths of these sites, in the model's dtype, on its device.

    Args:
        model (`torch.nn.Module`):
            A causal language model.
        texts (`Sequence[Text]`):
            The texts.
        places (`Sequence[Place]`):
            Blocks and sites to record.
        batch_size (`int`):
            Tokens in a batch.
        buffer_tokens (`int`):
            Tokens in the buffer.
        texts_per_pass (`int`):
            Texts in one forward pass.
        seed (`int`):
            Seed of the random orders.
        processes ([`Processes`], *optional*):
            The processes that divide the forward passes between them; this one alone by default.

    Raises:
        ValueError: If the texts hold fewer tokens than a batch, or the buffer fewer than two batches.
    """

    def __init__(
        self,
        model: nn.Module,
        texts: Sequence[Text],
        places: Sequence[Place],
        *,
        batch_size: int,
        buffer_tokens: int,
        texts_per_pass: int,
        seed: int,
        processes: Processes = ALONE,
    ):
        num_tokens = num_counted(texts)
        if num_tokens < batch_size:
            raise ValueError(
                f"The texts to train on hold {num_tokens} tokens that count, fewer than a batch of {batch_size}. Give "
                "more texts or a smaller `batch_size`."
            )
        if buffer_tokens < 2 * batch_size:
            raise ValueError(f"`buffer_tokens` must hold two batches of {batch_size} or more, got {buffer_tokens}.")
        self.device = next(model.parameters()).device
        owners = processes.owners(places)
        self.places = tuple(place for place in places if owners[place] == processes.index)
        self._capacity = min(buffer_tokens, num_tokens)
        self._refill = self._capacity < num_tokens
        handed_out = self._capacity // 2 if self._refill else self._capacity
        self._handed_out = handed_out - handed_out % batch_size
        self._batch_size = batch_size
        self._generator = torch.Generator().manual_seed(seed)
        self._begin_at = lambda first: recorded_passes(
            model, texts_of_passes(texts, texts_per_pass, seed, first), owners, processes
        )
        self._show = processes.is_main

        self._passes: Iterator[tuple[int, dict[Place, Tensor]]] | None = None
        self._num_passes = 0  # whose tokens are in the buffer or in `_unread`
        self._num_unread = 0
        self._unread: dict[Place, Tensor] = {}
        self._values: dict[Place, Tensor] = {}
        self._order_N: Tensor | None = None
        self._num_used = 0  # tokens of this order that were handed out

    def __next__(self) -> dict[Place, Tensor]:
        if self._order_N is None:
            self._fill(torch.arange(self._capacity, device=self.device), show=self._show)
            self._order_N = self._new_order()
        elif self._num_used == self._handed_out:
            if self._refill:
                self._fill(self._order_N[: self._handed_out])
            self._order_N = self._new_order()
        chosen_N = self._order_N[self._num_used : self._num_used + self._batch_size]
        self._num_used += self._batch_size
        return {place: values_ND[chosen_N].float() for place, values_ND in self._values.items()}

    def _new_order(self) -> Tensor:
        self._num_used = 0
        return torch.randperm(self._capacity, generator=self._generator).to(self.device)

    def _fill(self, free_N: Tensor, show: bool = False) -> None:
        """Put new tokens at these positions."""
        if self._passes is None:
            self._passes = self._begin_at(self._num_passes)
        with tqdm(
            total=len(free_N), unit="tok", unit_scale=True, desc="Filling the buffer", disable=not show
        ) as progress:
            while len(free_N):
                if not self._num_unread:
                    self._num_unread, self._unread = next(self._passes)
                    self._num_passes += 1
                num_new = min(len(free_N), self._num_unread)
                for place, unread_ND in self._unread.items():
                    if place not in self._values:
                        self._values[place] = unread_ND.new_empty(self._capacity, unread_ND.shape[1])
                    self._values[place][free_N[:num_new]] = unread_ND[:num_new]
                self._unread = {place: unread_ND[num_new:] for place, unread_ND in self._unread.items()}
                self._num_unread -= num_new
                free_N = free_N[num_new:]
                progress.update(num_new)

    def position(self) -> dict[str, int]:
        """Where the reading stands, as numbers for [`restore`]; to be asked for after the first batch."""
        return {"passes": self._num_passes, "unread": self._num_unread, "used": self._num_used}

    def order(self) -> dict[str, Tensor]:
        """The order in which the tokens are handed out, and the state of the random generator, for [`restore`]."""
        assert self._order_N is not None
        return {"order": self._order_N, "generator": self._generator.get_state()}

    def values(self, place: Place) -> dict[str, Tensor]:
        """The activations of a place of this process that are held, for [`restore`]."""
        return {"buffer": self._values[place], "unread": self._unread[place]}

    def restore(
        self,
        position: Mapping[str, int],
        order: Mapping[str, Tensor],
        values: Mapping[Place, Mapping[str, Tensor]],
    ) -> None:
        """
        Go on where another buffer with the same arguments stood. The number of processes may be another.

        Args:
            position, order:
                Its [`position`] and [`order`].
            values (`Mapping[Place, Mapping[str, torch.Tensor]]`):
                The [`values`] of each place of this process.

        Raises:
            ValueError: If these do not fit this buffer.
        """
        sizes = {len(order["order"]), *(len(held["buffer"]) for held in values.values())}
        unread = {position["unread"], *(len(held["unread"]) for held in values.values())}
        if sizes != {self._capacity} or len(unread) > 1 or not 0 <= position["used"] <= self._handed_out:
            raise ValueError(f"its buffer does not hold {self._capacity} tokens")
        self._num_passes, self._num_unread, self._num_used = (position[name] for name in ("passes", "unread", "used"))
        self._order_N = order["order"].to(self.device)
        self._generator.set_state(order["generator"].cpu())
        self._values = {place: held["buffer"].to(self.device) for place, held in values.items()}
        self._unread = {place: held["unread"].to(self.device) for place, held in values.items()}
        self._passes = None
