"""The penalty on a set of tokens: their probability where answers of other groups are predicted."""

import json
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..measure.faults.script_tokens import script_tokens
from .groups import GroupTable
from .output_head import OutputHead
from .term import PenalisedBatch, PenaltyTerm, TermReading, summable
from .token_mass import tile_size, token_mass


class TokenReading(NamedTuple):
    """
    What [`TokenPenalty`] measured on one micro-batch.

    Attributes:
        mass_sum (`()`): Sum over the counted positions of the probability of the penalised tokens; attached to the
            graph.
        num_counted (`()`): Number of positions that were counted.
    """

    mass_sum: Tensor
    num_counted: Tensor


class TokenPenalty(PenaltyTerm):
    """
    The penalty on one set of tokens: `p(S | the tokens before)`, at the positions that predict an answer's token.

    It is "SFT+Penalty" of SASFT (https://huggingface.co/papers/2507.14894), the baseline without an SAE. Two kinds of
    positions do not count: those that predict a token of a target group, and those whose true next token is itself in
    the set, since the trainer's own loss teaches it there. `head` is made from the model where it is left out.
    """

    def __init__(
        self, ids: Sequence[int], groups: GroupTable, *, weight: float = 10.0, head: OutputHead | None = None
    ):
        self.ids = frozenset(ids)
        self.groups = groups
        self.weight = weight
        self._head = head
        self._ids_K = torch.tensor(sorted(self.ids))

    def __call__(
        self, hidden: Tensor, head: OutputHead, token_ids: Tensor, group_ids: Tensor, mask: Tensor
    ) -> TokenReading:
        """
        Measure one micro-batch, given the input of the LM head `(B, T, D)` and the tokens `(B, T)`.

        `group_ids` `(B, T)` are numbers of the group table, −1 on padding. `mask` `(B, T)` marks tokens of the
        answers; those of the target groups and of the set are removed here.
        """
        self._ids_K = self._ids_K.to(token_ids.device)
        mask_BT = mask & self.groups.is_penalised(group_ids) & ~torch.isin(token_ids, self._ids_K)
        predicting_BT = mask_BT[:, 1:]  # of token t, by the state at t - 1
        hidden_ND = hidden[:, :-1][predicting_BT.to(hidden.device)]
        mass_N = token_mass(hidden_ND, head.logits, self._ids_K, tokens_per_tile=tile_size(head.vocab_size))
        return TokenReading(mass_N.sum(), predicting_BT.sum())

    # As a term of a trainer's loss

    def attach(self, model: nn.Module) -> None:
        self._head = self._head or OutputHead(model)
        self._head.listen()

    def arm(self) -> AbstractContextManager[list[Tensor]]:
        assert self._head is not None
        return self._head.armed()

    def measure(self, captured: list[Tensor], batch: PenalisedBatch) -> TermReading:
        assert self._head is not None
        hidden = batch.aligned(self._head.training_input(batch.of_loss(captured)))
        reading = self(hidden, self._head, batch.token_ids, batch.group_ids, batch.mask)
        return TermReading(reading.mass_sum, summable(*reading))

    def metrics(self, sums: Tensor) -> dict[str, float]:
        mass_sum, num_counted = sums.tolist()
        return {"tokens/mass": mass_sum / num_counted} if num_counted else {}


def read_token_ids(penalised_tokens: str, tokenizer: Any, vocab_size: int) -> tuple[int, ...]:
    """
    The sorted ids of the tokens that a setting names: by a language, which stands for the tokens of its script, or by
    the path of a `.json` file with a list of token ids, which needs no tokenizer.
    """
    if penalised_tokens.endswith(".json"):
        ids: Sequence[int] = _read_file(Path(penalised_tokens))
    elif not hasattr(tokenizer, "convert_ids_to_tokens"):
        raise ValueError(
            f"`penalised_tokens={penalised_tokens!r}` stands for the tokens of that language's script, and the "
            "trainer has no tokenizer to find them. Pass `processing_class`, or name a .json file with a list of "
            "token ids."
        )
    else:
        ids = script_tokens(tokenizer, penalised_tokens).ids
    chosen = tuple(sorted(set(ids)))
    outside = [number for number in chosen if not 0 <= number < vocab_size]
    if outside:
        raise ValueError(
            f"`penalised_tokens` ({penalised_tokens}) holds the token {outside[0]}, and the model knows {vocab_size}: "
            f"0 to {vocab_size - 1}. Was the list made with another model's tokenizer?"
        )
    if not chosen or len(chosen) == vocab_size:
        what = "no token" if not chosen else "every token of the vocabulary"
        raise ValueError(f"`penalised_tokens` ({penalised_tokens}) holds {what}, so a penalty would change nothing.")
    return chosen


def _read_file(path: Path) -> list[int]:
    try:
        ids = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(
            f"`penalised_tokens` names {path}, which cannot be read as JSON ({type(error).__name__}). Write a list of "
            "token ids into it, or name a language, e.g. 'zh'."
        ) from error
    if not isinstance(ids, list) or any(isinstance(each, bool) or not isinstance(each, int) for each in ids):
        raise ValueError(f"`penalised_tokens` names {path}, which holds no list of token ids: whole numbers.")
    return ids
