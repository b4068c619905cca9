"""The penalty on a set of tokens: their probability where answers of other groups are written."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..measure.faults.script_tokens import script_tokens
from .groups import GroupTable
from .output_head import OutputHead
from .token_mass import tile_size, token_mass


@dataclass(frozen=True)
class TokenReading:
    """
    What one micro-batch gave.

    Attributes:
        mass_sum (`torch.Tensor` of shape `()`):
            Sum over the counted positions of the probability of the penalised tokens; attached to the graph.
        num_counted (`torch.Tensor` of shape `()`):
            Positions that were counted.
    """

    mass_sum: Tensor
    num_counted: Tensor


class TokenPenalty:
    """
    The penalty on one set of tokens: `p(S | what stands before)`, at the positions that predict an answer's token.

    "SFT+Penalty" of SASFT (https://huggingface.co/papers/2507.14894), its baseline without an SAE. Positions that
    predict a token of a target group do not count, nor do those whose true next token is itself in the set: the
    trainer's own loss wants it there.

    Args:
        ids (`Sequence[int]`):
            The set.
        groups ([`GroupTable`]):
            Numbers of the groups in the batches.
    """

    def __init__(self, ids: Sequence[int], groups: GroupTable):
        self.ids = frozenset(ids)
        self.groups = groups
        self._ids_K = torch.tensor(sorted(self.ids))

    def __call__(
        self, hidden: Tensor, head: OutputHead, token_ids: Tensor, group_ids: Tensor, mask: Tensor
    ) -> TokenReading:
        """
        Measure one micro-batch.

        Args:
            hidden (`torch.Tensor` of shape `(B, T, D)`):
                What goes into the LM head.
            head ([`OutputHead`]):
                The head.
            token_ids (`torch.Tensor` of shape `(B, T)`):
                The tokens.
            group_ids (`torch.Tensor` of shape `(B, T)`):
                Number of each token's group in the group table; −1 on padding.
            mask (`torch.Tensor` of shape `(B, T)`, bool):
                The answers' tokens. Those of the target groups and of the set are taken out here.
        """
        self._ids_K = self._ids_K.to(token_ids.device)
        mask_BT = mask & self.groups.is_penalised(group_ids) & ~torch.isin(token_ids, self._ids_K)
        predicting_BT = mask_BT[:, 1:]  # of token t, by the state at t - 1
        hidden_ND = hidden[:, :-1][predicting_BT.to(hidden.device)]
        mass_N = token_mass(hidden_ND, head.logits, self._ids_K, tokens_per_tile=tile_size(head.vocab_size))
        return TokenReading(mass_N.sum(), predicting_BT.sum())


def read_token_ids(penalised_tokens: str, tokenizer: Any, vocab_size: int) -> tuple[int, ...]:
    """
    The set that the settings name, sorted.

    Args:
        penalised_tokens (`str`):
            A language, whose script's tokens are meant, or the path of a `.json` file with a list of token ids.
        tokenizer (`PreTrainedTokenizerBase`, *optional*):
            The model's; a file needs none.
        vocab_size (`int`):
            Tokens that the model's head knows.

    Raises:
        ValueError: If the language is unknown, the file holds no list of ids, or the set is empty, out of the
            vocabulary or all of it.
    """
    if penalised_tokens.endswith(".json"):
        ids: Sequence[int] = _read_file(Path(penalised_tokens))
    elif not hasattr(tokenizer, "convert_ids_to_tokens"):
        raise ValueError(
            f"`penalised_tokens={penalised_tokens!r}` means the tokens of that language's script, and the trainer has "
            "no tokenizer to find them. Pass `processing_class`, or name a .json file with a list of token ids."
        )
    else:
        ids = script_tokens(tokenizer, penalised_tokens).ids
    chosen = tuple(sorted(set(ids)))
    outside = [number for number in chosen if not 0 <= number < vocab_size]
    if outside:
        raise ValueError(
            f"`penalised_tokens` ({penalised_tokens}) holds the token {outside[0]}, and the model has {vocab_size}: 0 "
            f"to {vocab_size - 1}. Is it of another model's tokenizer?"
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
