"""
What each kind of trainer puts into its rows and batches: the tokens of its loss, and the forward they are in.

A batch carries the groups of its tokens as [`GROUP_IDS`], one number per row or one per token.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from .groups import GROUP_IDS, PADDING, RowGroups


def answer_tokens(batch: Mapping[str, Any], *, pairs: bool = False) -> Tensor:
    """
    The tokens that the trainer's loss is taken on.

    - Generated answers (GRPO, RLOO, distillation; `prompt_ids` and `completion_ids`): the answers, without what
      tools returned in them.
    - Preferences and unpaired preferences (DPO, KTO; `completion_mask`): the answers. A batch of pairs holds the
      chosen rows, then the rejected ones.
    - Token labels (SFT, transformers' `Trainer`; `labels`): where there is one.
    - Pairs without a mask (reward models): from the first token on in which the chosen row differs from the rejected
      one. The trainer scores whole conversations and does not say where the answer begins.

    Args:
        batch: What `compute_loss` gets.
        pairs: Whether the rows of the dataset are pairs of a chosen and a rejected answer.

    Returns `(B, T)`, bool, as long as what the model is given.
    """
    labels = batch.get("labels")
    if "prompt_ids" in batch and "completion_mask" in batch:
        answer = batch["completion_mask"].bool()
        if "tool_mask" in batch:
            answer = answer & batch["tool_mask"].bool()
        tokens = torch.cat([torch.zeros_like(batch["prompt_ids"], dtype=torch.bool), answer], dim=1)
    elif "completion_mask" in batch:
        tokens = batch["completion_mask"].bool()
    elif isinstance(labels, Tensor) and labels.dim() == 2:
        tokens = labels != -100
    elif pairs and "input_ids" in batch:
        chosen, rejected = batch["input_ids"].chunk(2)
        differs = (chosen != rejected).cumsum(dim=1) > 0
        tokens = differs.repeat(2, 1) & batch["attention_mask"].bool()
    else:
        raise ValueError(
            f"It is not known which tokens of this batch the loss is on; it holds {', '.join(map(repr, batch))}. "
            "Override `penalised_positions(self, inputs)` in your trainer: it returns a boolean tensor of the shape "
            "of the model's `input_ids`."
        )
    return tokens


def behind_the_first(batch: Mapping[str, Any], shape: torch.Size | tuple[int, int]) -> Tensor:
    """
    Positions `(B, T)` that are not the first of a document. Nothing predicts a first position, and its state is an
    attention sink.

    A document begins where `position_ids` begin again, where an attention mask says so (padding ends, or the number of
    the document rises), where the masks of prompts and answers say so, or where `cu_seq_lens_q` does. Rows that were
    cut out of a stream of documents (packing `"wrapped"`) are one document to the model.
    """
    real, positions, bounds = (batch.get(name) for name in ("attention_mask", "position_ids", "cu_seq_lens_q"))
    if real is None and "prompt_mask" in batch and "completion_mask" in batch:
        real = torch.cat([batch["prompt_mask"], batch["completion_mask"]], dim=1)
    parts = []
    if isinstance(positions, Tensor) and positions.shape == shape:
        parts.append(positions != 0)
    if isinstance(real, Tensor) and real.shape == shape:
        parts.append(torch.cat([torch.zeros_like(real[:, :1], dtype=torch.bool), real[:, 1:] <= real[:, :-1]], dim=1))
    if not parts:
        device = next((value.device for value in batch.values() if isinstance(value, Tensor)), None)
        parts.append(torch.ones(shape, dtype=torch.bool, device=device))
        if isinstance(bounds, Tensor) and shape[0] == 1:
            parts[0][0, bounds[:-1].long()] = False  # the last is the length
    behind = parts[0] if len(parts) == 1 else parts[0] & parts[1]
    behind[:, 0] = False
    return behind


def without_groups(batch: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of a batch without [`GROUP_IDS`]. The batch itself keeps them, since GRPO reads a batch again."""
    return {name: value for name, value in batch.items() if name != GROUP_IDS}


def split_groups(batch: Mapping[str, Any]) -> tuple[dict[str, Any], Tensor]:
    """A copy of a batch without the groups, and the groups."""
    if batch.get(GROUP_IDS) is None:
        raise ValueError(
            f"The batch has no `{GROUP_IDS}`, so the penalty cannot tell which tokens it applies to. "
            "Was the trainer's data collator replaced?"
        )
    return without_groups(batch), batch[GROUP_IDS]


def token_ids(batch: Mapping[str, Any]) -> Tensor:
    """The tokens that the model reads, `(B, T)`."""
    if "prompt_ids" in batch and "completion_ids" in batch:
        return torch.cat([batch["prompt_ids"], batch["completion_ids"]], dim=1)
    if "input_ids" in batch:
        return batch["input_ids"]
    raise ValueError(
        f"It is not known which tokens this batch holds, so those of `penalised_tokens` cannot be told; it holds "
        f"{', '.join(map(repr, batch))}."
    )


def earlier_forwards(batch: Mapping[str, Any]) -> int:
    """Number of forwards that the trainer makes before the one of its loss: KTO first scores other answers."""
    return 1 if "KL_input_ids" in batch else 0


def answer_ids(row: Mapping[str, Any]) -> Sequence[int] | None:
    """Token ids of the answer in a prepared row, in a pair of the chosen one; `None` for an unknown kind of row."""
    if "chosen_ids" in row and "prompt_ids" in row:  # DPO
        return row["chosen_ids"]
    if "chosen_ids" in row:  # reward models: prompt and answer in one
        same = 0
        for chosen, rejected in zip(row["chosen_ids"], row["rejected_ids"]):
            if chosen != rejected:
                break
            same += 1
        return row["chosen_ids"][same:]
    if "completion_ids" in row:  # KTO
        return row["completion_ids"]
    if "labels" in row and "input_ids" in row:
        return [token for token, label in zip(row["input_ids"], row["labels"]) if label != -100]
    if "input_ids" in row:  # the collator makes the labels
        return row["input_ids"]
    return None


def holds_pairs(row: Mapping[str, Any]) -> bool:
    """Whether a row of the dataset holds a chosen and a rejected answer."""
    return "chosen_ids" in row


def holds_preferences(row: Mapping[str, Any]) -> bool:
    """Whether the answers of a dataset are told apart as chosen and rejected, in pairs or one by one."""
    return holds_pairs(row) or ("completion_ids" in row and "label" in row)


def group_ids_of_row(row: Mapping[str, Any], groups: RowGroups, rows: str) -> list[int]:
    """
    Group number of each sequence that a row of the dataset becomes: [`PADDING`] for one that does not count. `rows`
    says whether rejected answers count (`"both"`) or not (`"chosen"`).
    """
    number = groups(row)
    if holds_pairs(row):
        return [number, number if rows == "both" else PADDING]
    if holds_preferences(row) and rows == "chosen" and not row["label"]:
        return [PADDING]
    return [number]


class RowGroupCollator:
    """
    The trainer's own data collator, which does not see the column with the groups, and [`GROUP_IDS`] beside it, one
    number per row. `rows` is that of [`group_ids_of_row`].
    """

    def __init__(self, collator: Callable[[list[dict[str, Any]]], Any], groups: RowGroups, rows: str):
        self.collator = collator
        self.groups = groups
        self.rows = rows

    def __call__(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        ids = [group_ids_of_row(example, self.groups, self.rows) for example in examples]
        own = [{name: value for name, value in row.items() if name != self.groups.column} for row in examples]
        group_ids = [number for sequence in zip(*ids) for number in sequence]  # all chosen rows, then all rejected
        return {**self.collator(own), GROUP_IDS: torch.tensor(group_ids)}
