"""Texts with a group each, as batches of tokens that say which positions count."""

import os
import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..measure.encodable import require_encodable
from ..measure.prompt_tokens import render_messages
from ..measure.rows import read_rows as read_json_rows


@dataclass(frozen=True)
class Text:
    """Token ids of one text, its group, and which of its tokens count."""

    group: str
    ids: tuple[int, ...]
    counted: tuple[bool, ...]


@dataclass(frozen=True)
class TextBatch:
    """
    Texts of about one length, padded on the right.

    Attributes:
        input_ids, attention_mask (`torch.Tensor` of shape `(B, T)`):
            As the model takes them.
        counted (`torch.Tensor` of shape `(B, T)`, bool):
            Tokens that count: no padding, no first position, no special token, nothing of a prompt.
        groups (`torch.Tensor` of shape `(B,)`):
            Number of each text's group.
    """

    input_ids: Tensor
    attention_mask: Tensor
    counted: Tensor
    groups: Tensor

    def to(self, device: torch.device) -> "TextBatch":
        return TextBatch(*(getattr(self, name).to(device) for name in self.__dataclass_fields__))


def read_rows(texts: str | os.PathLike | Iterable[Mapping[str, Any]], split: str = "train") -> list[Mapping[str, Any]]:
    """
    Rows of a JSON or JSONL file (`.gz` or plain), a folder of JSONL files, a `datasets` id, or an iterable of rows.

    Raises:
        FileNotFoundError: If it is neither on this machine nor named like a dataset of the Hub.
        ValueError: If a row of a file is not a JSON object, or a file's name does not end in one of these.
    """
    if not isinstance(texts, str | os.PathLike):
        return list(texts)
    path = Path(texts)
    if path.is_dir():
        files = sorted(file for file in path.iterdir() if file.name.endswith((".jsonl", ".jsonl.gz")))
        if not files:
            raise FileNotFoundError(f"The folder {path} holds no .jsonl or .jsonl.gz file.")
        return [row for file in files for row in read_json_rows(file)]
    if path.is_file():
        return list(read_json_rows(path))
    if isinstance(texts, os.PathLike) or path.suffix or texts.count("/") != 1 or texts.startswith((".", "/", "~")):
        raise FileNotFoundError(f"There is no file {texts}.")
    from datasets import load_dataset

    return list(load_dataset(texts, split=split))


def tokenize(
    rows: Sequence[Mapping[str, Any]],
    tokenizer: Any,
    *,
    group_column: str = "lang",
    text_column: str = "text",
    max_length: int = 512,
    chat_template_kwargs: Mapping[str, Any] | None = None,
) -> list[Text]:
    """
    Tokenize rows, each of one of three forms.

    - `{text, group}`: every token counts.
    - `{messages, group}`: the chat template is applied, and the last assistant turn counts.
    - `{prompt, completion, group}`: the completion counts.

    Never counted: the first position, whose residual is an outlier in most models, and special tokens.

    Args:
        rows (`Sequence[Mapping]`):
            The texts.
        tokenizer (`PreTrainedTokenizerBase`):
            The model's tokenizer.
        group_column, text_column (`str`):
            Names of the columns.
        max_length (`int`):
            Tokens kept of each text.
        chat_template_kwargs (`Mapping[str, Any]`, *optional*):
            Further variables of the chat template, e.g. `{"enable_thinking": False}`.

    Raises:
        ValueError: If there are no rows, a column is missing or of the wrong type, or the chat template refuses a
            conversation.
    """
    if not rows:
        raise ValueError("There are no texts to find features in.")
    specials = set(tokenizer.all_special_ids)
    texts = []
    for number, row in enumerate(rows, 1):
        group = row.get(group_column)
        if not isinstance(group, str):
            raise ValueError(
                f"Row {number} has no text in the group column {group_column!r}; its columns are "
                f"{', '.join(sorted(row))}. Name the right one with `group_column`."
            )
        prompt, ids = _prompt_and_ids(row, tokenizer, text_column, number, chat_template_kwargs or {})
        ids = ids[:max_length]
        counted = tuple(i > 0 and i >= prompt and token not in specials for i, token in enumerate(ids))
        texts.append(Text(group, tuple(ids), counted))
    return texts


def _prompt_and_ids(
    row: Mapping[str, Any], tokenizer: Any, text_column: str, number: int, template_kwargs: Mapping[str, Any]
) -> tuple[int, list[int]]:
    """Length of the prompt in tokens, and the ids of prompt and answer."""
    for column in (text_column, "prompt", "completion"):
        require_encodable(row.get(column), f"Row {number}: `{column}`")
    if isinstance(row.get(text_column), str):
        return 0, tokenizer(row[text_column])["input_ids"]
    if isinstance(row.get("messages"), list):
        turns = row["messages"]
        if not turns or turns[-1].get("role") != "assistant":
            raise ValueError(f"Row {number}: the last of its `messages` must be the assistant's.")
        if len(turns) == 1:  # a template does not render the empty conversation before it
            raise ValueError(
                f"Row {number}: its `messages` hold an answer alone. Add the turn that it answers, or give it as text."
            )
        where = f"Row {number} of the texts"
        ids = render_messages(tokenizer, turns, where, **template_kwargs)
        prompt = render_messages(tokenizer, turns[:-1], where, add_generation_prompt=True, **template_kwargs)
        return _common_prefix(prompt, ids), ids
    if isinstance(row.get("prompt"), str) and isinstance(row.get("completion"), str):
        ids = tokenizer(row["prompt"] + row["completion"])["input_ids"]
        return _common_prefix(tokenizer(row["prompt"])["input_ids"], ids), ids
    raise ValueError(
        f"Row {number} has no text in the column {text_column!r}, nor `messages`, nor `prompt` and `completion`; its "
        f"columns are {', '.join(sorted(row))}. Name the right one with `text_column`."
    )


def _common_prefix(first: Sequence[int], second: Sequence[int]) -> int:
    length = 0
    for one, other in zip(first, second):
        if one != other:
            break
        length += 1
    return length


def split_held_out(
    texts: Sequence[Text], fraction: float, max_per_group: int | None, seed: int
) -> tuple[list[Text], list[Text]]:
    """
    Shuffle, keep up to `max_per_group` texts of each group, and hold back a fraction of each group.

    Raises:
        ValueError: If a group has fewer than two texts with a token that counts, or `max_per_group` is below 2.
    """
    if max_per_group is not None and max_per_group < 2:
        raise ValueError(
            f"`max_texts` must be 2 or more: some texts are held out of the ranking. Got {max_per_group}."
        )
    by_group: dict[str, list[Text]] = {}
    for text in texts:
        members = by_group.setdefault(text.group, [])
        if any(text.counted):
            members.append(text)
    kept, held_out = [], []
    for group, members in by_group.items():
        random.Random(seed).shuffle(members)
        members = members[:max_per_group]
        if len(members) < 2:
            has = f"{len(members)} text{'' if len(members) == 1 else 's'}"
            raise ValueError(
                f"The group {group!r} has {has} with a token that counts (not the first, not special, not in a "
                "prompt); two or more are needed, a few hundred wanted."
            )
        num_held_out = min(max(1, round(fraction * len(members))), len(members) - 1)
        held_out += members[:num_held_out]
        kept += members[num_held_out:]
    return kept, held_out


def batches(texts: Sequence[Text], groups: Sequence[str], batch_size: int, pad_token_id: int) -> Iterator[TextBatch]:
    """Batches of texts sorted by length, the longest first: memory that lasts for the first lasts for all."""
    ordered = sorted(texts, key=lambda text: -len(text.ids))
    for start in range(0, len(ordered), batch_size):
        members = ordered[start : start + batch_size]
        length = len(members[0].ids)
        ids = torch.full((len(members), length), pad_token_id)
        attention = torch.zeros(len(members), length, dtype=torch.long)
        counted = torch.zeros(len(members), length, dtype=torch.bool)
        for i, text in enumerate(members):
            ids[i, : len(text.ids)] = torch.tensor(text.ids)
            attention[i, : len(text.ids)] = 1
            counted[i, : len(text.ids)] = torch.tensor(text.counted)
        yield TextBatch(ids, attention, counted, torch.tensor([groups.index(text.group) for text in members]))
