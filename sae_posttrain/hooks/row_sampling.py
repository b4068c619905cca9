"""
Sample the rows of one call of `generate` with settings of their own: temperature, top-p, top-k.

`generate` builds one list of logits processors for all rows. While a context is open, it is built once for each of the
different settings, by transformers itself, and each row goes through the list of its settings. So a row is sampled as
in a call of its own. Rows without settings of their own go through the list of the call.

Each step draws as many random numbers as without the context, and each row gets the same ones: the other rows are
sampled bit for bit as before, as long as `generate` runs. Where rows of their own settings end earlier or later, it
stops after another number of steps, and a later call begins elsewhere in the random stream.

Legend of the shapes: B rows of a call, R rows with settings of their own, V tokens of the vocabulary.
"""

import copy
import functools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .blocks import unwrap


@dataclass(frozen=True)
class RowSampling:
    """
    How one row is sampled. What is `None` is as in the rest of the call.

    Attributes:
        temperature (`float`, *optional*):
            0 is greedy: the most likely token at each position, whatever `top_p` and `top_k` are.
        top_p (`float`, *optional*):
            Probability of the nucleus, above 0 and up to 1.
        top_k (`int`, *optional*):
            Number of tokens to choose from; 0 is all of them.
    """

    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None

    def __post_init__(self) -> None:
        if self.temperature is not None and not 0 <= self.temperature < float("inf"):
            raise ValueError(f"`temperature` must be 0 or more, got {self.temperature!r}.")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise ValueError(f"`top_p` must be above 0 and at most 1, got {self.top_p!r}.")
        if self.top_k is not None and (not isinstance(self.top_k, int) or self.top_k < 0):
            raise ValueError(f"`top_k` must be a whole number, 0 or more, got {self.top_k!r}.")

    @property
    def is_greedy(self) -> bool:
        """Whether the same row would come out twice."""
        return self.temperature == 0

    def applied_to(self, generation_config: Any) -> Any:
        """A copy of a `GenerationConfig` with these settings; a greedy one does not sample."""
        changed = copy.copy(generation_config)
        if self.is_greedy:
            changed.do_sample = False
            return changed
        if self.temperature is not None:
            changed.temperature = float(self.temperature)
        if self.top_p is not None:
            changed.top_p = float(self.top_p)
        if self.top_k is not None:
            changed.top_k = int(self.top_k)
        return changed


SAME_AS_CALL = RowSampling()
"""A row that is sampled as the call says."""


class SamplingRecord:
    """
    Log-probability of each sampled token under the distribution it was drawn from: steering, temperature, top-p, top-k
    and all other processors included. A greedy token has log-probability 0.

    Args:
        rows (`Sequence[int]`):
            Rows that are recorded.
    """

    def __init__(self, rows: Sequence[int]):
        self._rows = torch.tensor(list(rows), dtype=torch.long)
        self._before: Tensor | None = (
            None  # (R, V), log-probabilities of the latest step, whose tokens are not known yet
        )
        self._steps: list[Tensor] = []  # (R,) each

    def see(self, input_ids: Tensor, scores: Tensor) -> None:
        """Take in one step: the tokens so far, `(B, T)`, and the scores the next ones are drawn from, `(B, V)`."""
        rows = self._rows.to(scores.device)
        if self._before is not None:
            self._steps.append(_logps_of(self._before, input_ids[rows, -1]))
        self._before = torch.log_softmax(scores[rows].float(), dim=-1)

    def logps(self, completion_ids: Sequence[Sequence[int]]) -> list[list[float] | None]:
        """
        What was recorded of each row, once `generate` is through.

        Args:
            completion_ids (`Sequence[Sequence[int]]`):
                Tokens of all B rows as they were generated, cut behind the end token.

        Returns:
            `list`: for each row its log-probabilities, one a token; `None` for rows that are not recorded.
        """
        told: list[list[float] | None] = [None] * len(completion_ids)
        if not len(self._rows) or self._before is None:
            return told
        seen = [*self._steps]
        lengths = [len(completion_ids[row]) for row in self._rows.tolist()]
        if max(lengths) > len(seen):  # the tokens of the last step, which no further step has shown
            last = [completion_ids[row][-1] for row in self._rows.tolist()]
            seen.append(_logps_of(self._before, torch.tensor(last, device=self._before.device)))
        assert max(lengths) <= len(seen), "more tokens than steps were recorded"
        logps_RC = torch.stack(seen, dim=1).cpu()
        for number, row in enumerate(self._rows.tolist()):
            told[row] = logps_RC[number, : lengths[number]].tolist()
        return told


@contextmanager
def sample_rows(model: Any, rows: Sequence[RowSampling], *, record: Sequence[int] = ()) -> Iterator[SamplingRecord]:
    """
    Sample each row of the calls of `generate` inside with its own settings.

    Args:
        model (`torch.nn.Module`):
            A model of transformers, wrapped or not.
        rows (`Sequence[RowSampling]`):
            Settings of each row, B of them, in the order of the batch.
        record (`Sequence[int]`, *optional*):
            Rows whose log-probabilities are recorded, of one call.

    Yields:
        [`SamplingRecord`]: what is recorded of those rows.

    Raises:
        ValueError: If a call has another number of rows, or does not sample (`do_sample=False`); if `generate` was not
            called when the context exits.
    """
    base = unwrap(model)
    build = base._get_logits_processor
    recorded = SamplingRecord(record)
    num_calls = 0

    @functools.wraps(build)
    def build_by_row(generation_config: Any, *args: Any, **kwargs: Any) -> list:
        nonlocal num_calls
        num_calls += 1
        if not generation_config.do_sample or (generation_config.num_beams or 1) > 1:
            raise ValueError(
                "Rows can be given a temperature of their own only where `generate` samples: set `do_sample=True` and "
                "`num_beams=1`."
            )
        lists = {each: build(each.applied_to(generation_config), *args, **kwargs) for each in dict.fromkeys(rows)}
        # A list of one processor, which `generate` calls like any other.
        kind = type(next(iter(lists.values())))
        return kind([_ByRow(lists, rows, recorded)])

    own = vars(base).get("_get_logits_processor")
    base._get_logits_processor = build_by_row
    try:
        yield recorded
    finally:
        if own is None:
            del base._get_logits_processor
        else:
            base._get_logits_processor = own
    if not num_calls:
        raise ValueError("No call of `generate` on this model was made, so no row was sampled with its own settings.")


class _ByRow:
    """A logits processor that takes each row through the processors of its settings."""

    def __init__(self, lists: dict[RowSampling, Any], rows: Sequence[RowSampling], record: SamplingRecord):
        self._num_rows = len(rows)
        self._parts = [
            (settings, processors, torch.tensor([row for row, each in enumerate(rows) if each == settings]))
            for settings, processors in lists.items()
        ]
        self._record = record

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        if len(scores) != self._num_rows:
            raise ValueError(
                f"`generate` has {len(scores)} rows, and settings were given for {self._num_rows}. Give one for each "
                "row, and leave `num_return_sequences` at 1."
            )
        processed = torch.empty_like(scores)
        for settings, processors, rows in self._parts:
            rows = rows.to(scores.device)
            own = processors(input_ids[rows], scores[rows])
            processed[rows] = _one_hot(own) if settings.is_greedy else own
        self._record.see(input_ids, processed)
        return processed


def _one_hot(scores: Tensor) -> Tensor:
    """Scores that leave the best token alone; of equal ones the first, as greedy decoding takes it."""
    best = scores.argmax(dim=-1, keepdim=True)
    return torch.full_like(scores, -torch.inf).scatter(-1, best, 0.0)


def _logps_of(logps_RV: Tensor, tokens_R: Tensor) -> Tensor:
    return logps_RV.gather(1, tokens_R[:, None]).squeeze(1)
