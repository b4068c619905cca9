"""Texts with a group each, as batches of tokens that say which positions count."""

import logging
import os
import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...conversations import read_row
from ...measure.answers.encodable import require_encodable
from ...measure.answers.prompt_tokens import render_messages
from ...measure.answers.prompts import read_prompts
from ...measure.answers.rows import DATA_ENDINGS, is_data_file
from ...measure.answers.rows import read_rows as read_file_rows
from ...row_checks import Copies, located, require_answer, require_columns, require_group
from .duplicates import hold_out, text_key
from .text_options import ALL_TEXTS, TextOptions

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Text:
    """
    Token ids of one text, its group, which of its tokens count, what its copies have in common, and whether its end
    lies beyond `max_length`.
    """

    group: str
    ids: tuple[int, ...]
    counted: tuple[bool, ...]
    key: str = ""
    cut: bool = False


POSITIONS = ("response", "prompt", "all", "last")
"""Which tokens of a text can count."""


@dataclass(frozen=True)
class TextBatch:
    """
    Texts of about one length, padded on the right: token ids and attention mask `(B, T)`, number of each text's group
    `(B,)`, and which tokens count `(B, T)`: no padding, no first position, no special token, nothing of a prompt.
    """

    input_ids: Tensor
    attention_mask: Tensor
    counted: Tensor
    groups: Tensor

    def to(self, device: torch.device) -> "TextBatch":
        return TextBatch(*(getattr(self, name).to(device) for name in self.__dataclass_fields__))


def read_rows(texts: str | os.PathLike | Iterable[Mapping[str, Any]], split: str = "train") -> list[Mapping[str, Any]]:
    """
    Rows of a JSON, JSONL, CSV or Parquet file, a folder of such files, a `datasets` id, or an iterable of rows. Their
    conversations are read into TRL's messages.
    """
    return [row for _, row in located_rows(texts, split)]


def located_rows(
    texts: str | os.PathLike | Iterable[Mapping[str, Any]], split: str = "train"
) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """The rows of [`read_rows`], each with what errors call it: `Row 3 of texts.jsonl`."""
    for source, rows in _sources(texts, split):
        for where, row in located(rows, source):
            yield where, read_row(require_columns(row, where), where)


def _sources(texts: Any, split: str) -> Iterator[tuple[str, Iterable[Any]]]:
    if not isinstance(texts, str | os.PathLike):
        yield "the texts", texts
        return
    path = Path(texts)
    if path.is_dir():
        files = sorted(file for file in path.iterdir() if is_data_file(file.name))
        if not files:
            raise FileNotFoundError(f"The folder {path} holds no data file ({', '.join(DATA_ENDINGS)}).")
        yield from ((f"{file}", read_file_rows(file)) for file in files)
    elif path.is_file():
        yield f"{path}", read_file_rows(path)
    elif isinstance(texts, os.PathLike) or path.suffix or texts.count("/") != 1 or texts.startswith((".", "/", "~")):
        raise FileNotFoundError(f"There is no file {texts}.")
    else:
        yield texts, _hub_rows(texts, split)


def _hub_rows(name: str, split: str) -> Iterable[Any]:
    from datasets import load_dataset
    from datasets.exceptions import DatasetNotFoundError

    try:
        return load_dataset(name, split=split)
    except (DatasetNotFoundError, ConnectionError) as error:
        raise FileNotFoundError(
            f"There is no file or folder {name}, and the Hub has no dataset of that name or cannot be reached "
            f"({str(error).splitlines()[0]})."
        ) from error


def check_texts(
    texts: str | os.PathLike | Iterable[Mapping[str, Any]],
    split: str,
    *,
    group_column: str | None,
    text_column: str = "text",
) -> list[Mapping[str, Any]]:
    """
    Rows of texts, every one checked before a model is loaded: its group, and a text in one of the forms that
    [`tokenize`] takes. Exact copies are counted, and said.

    Args:
        texts, split: As [`read_rows`] takes them.
        group_column: Column with the group; `None` where there are no groups.
    """
    rows, copies = [], Copies()
    for where, row in located_rows(texts, split):
        if group_column is not None:
            require_group(row, group_column, where)
        require_form(row, text_column, where)
        copies.add(row, where)
        rows.append(row)
    copies.say(f"{texts}" if isinstance(texts, str | os.PathLike) else "The texts")
    return rows


def check_prompts(prompts: Any) -> None:
    """
    Check every row of a file of prompts, before a model is loaded to answer them. Anything but a file or the id of a
    dataset is left to be checked when it is read.
    """
    if isinstance(prompts, str | os.PathLike):
        rows = [{**row, "id": number, "lang": "en"} for number, row in enumerate(read_rows(prompts))]
        read_prompts(rows, group_column="lang", target_lang=None, source=f"{prompts}")


def require_form(row: Mapping[str, Any], text_column: str, where: str) -> None:
    """Raise a `ValueError` unless a row holds a text in one of the forms that [`tokenize`] takes."""
    if isinstance(row.get(text_column), str):
        if not row[text_column].strip():
            raise ValueError(f"{where}: `{text_column}` is an empty text. Leave the row out.")
        return
    if isinstance(row.get("messages"), list):
        require_answer(row["messages"], "messages", where)
        if len(row["messages"]) == 1:  # a template does not render the empty conversation before it
            raise ValueError(
                f"{where}: its `messages` hold an answer alone. Add the turn that it answers, or give it as text."
            )
        return
    if isinstance(row.get("prompt"), str) and isinstance(row.get("completion"), str):
        require_answer(row["completion"], "completion", where)
        return
    if isinstance(row.get("prompt"), list) and isinstance(row.get("completion"), list):
        require_answer(row["completion"], "completion", where)
        return
    if text_column in row and row[text_column] is None:
        raise ValueError(f"{where}: `{text_column}` is null. Give it a text, or leave the row out.")
    raise ValueError(
        f"{where} has no text in the column `{text_column}`, nor `messages`, nor `prompt` and `completion`; its "
        f"columns are {', '.join(sorted(row))}. Name the right one with `text_column`."
    )


def tokenize(
    rows: Sequence[Mapping[str, Any]],
    tokenizer: Any,
    options: TextOptions = ALL_TEXTS,
    *,
    positions: str = "response",
    first_row: int = 1,
) -> list[Text]:
    """
    Tokenize rows, each of one of three forms.

    - `{text, group}`: every token counts.
    - `{messages, group}`: the chat template is applied, and the last assistant turn counts.
    - `{prompt, completion, group}`: the completion counts; of messages through the chat template.

    Never counted: the first position, whose residual is an outlier in most models, and special tokens. `positions`
    changes what counts: `"prompt"` takes what precedes the answer, `"all"` both, `"last"` the last token of both.

    Args:
        options: Names of the columns, length and variables of the chat template. An empty group is that of texts that
            have none.
        positions: Tokens that count: one of [`POSITIONS`].
        first_row: Number of the first row in errors.
    """
    if not rows:
        raise ValueError("There are no texts to find features in.")
    if positions not in POSITIONS:
        raise ValueError(f"`positions` must be one of {', '.join(map(repr, POSITIONS))}, got {positions!r}.")
    specials = set(tokenizer.all_special_ids)
    texts = []
    for where, given in located(rows, "the texts", first_row):
        row = read_row(given, where)
        column = options.group_column
        group = "" if row.get(column) == "" else require_group(row, column, where)
        require_form(row, options.text_column, where)
        prompt, ids = _prompt_and_ids(row, tokenizer, options.text_column, where, options.chat_template_kwargs or {})
        key = text_key(tokenizer.decode(ids))  # of the whole text: tokens differ where only the case does
        if positions == "prompt" and not prompt:
            raise ValueError(
                f"{where} has no prompt to read: it holds a text alone. Give `prompt` and `completion`, or "
                "`messages`; or read the text, with `positions='response'`."
            )
        cut = len(ids) > options.max_length
        ids = ids[: options.max_length]
        first, end = {"response": (prompt, len(ids)), "prompt": (0, prompt)}.get(positions, (0, len(ids)))
        counted = [i > 0 and first <= i < end and token not in specials for i, token in enumerate(ids)]
        if positions == "last" and any(counted):
            last = max(i for i, counts in enumerate(counted) if counts)
            counted = [i == last for i in range(len(ids))]
        texts.append(Text(group, tuple(ids), tuple(counted), key, cut))
    return texts


def _prompt_and_ids(
    row: Mapping[str, Any], tokenizer: Any, text_column: str, where: str, template_kwargs: Mapping[str, Any]
) -> tuple[int, list[int]]:
    """Length of the prompt in tokens, and the ids of prompt and answer."""
    for column in (text_column, "prompt", "completion"):
        require_encodable(row.get(column), f"{where}: `{column}`")
    if isinstance(row.get(text_column), str):
        return 0, tokenizer(row[text_column])["input_ids"]
    if isinstance(row.get("messages"), list) or isinstance(row.get("prompt"), list):
        turns = row["messages"] if isinstance(row.get("messages"), list) else [*row["prompt"], *row["completion"]]
        if not getattr(tokenizer, "chat_template", None):
            raise ValueError(
                "The texts hold messages, and the model's tokenizer has no chat template to render them. Give the "
                "texts as `text` or as `prompt` and `completion`."
            )
        ids = render_messages(tokenizer, turns, where, **template_kwargs)
        prompt = render_messages(tokenizer, turns[:-1], where, add_generation_prompt=True, **template_kwargs)
        return _common_prefix(prompt, ids), ids
    ids = tokenizer(row["prompt"] + row["completion"])["input_ids"]
    return _common_prefix(tokenizer(row["prompt"])["input_ids"], ids), ids


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

    Copies of a text, up to case and spaces, stay on one side; how many there are is logged.
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
    for group, members in by_group.items():
        num_given = sum(text.group == group for text in texts)
        if len(members) < num_given:
            logger.warning(
                "%d of %d texts of the group %r are left out: within `max_length` tokens none of theirs counts.",
                num_given - len(members),
                num_given,
                group,
            )
    for group, members in by_group.items():
        random.Random(seed).shuffle(members)
        if max_per_group is not None:
            del members[max_per_group:]
        if len(members) < 2:
            has = f"{len(members)} text{'' if len(members) == 1 else 's'}"
            raise ValueError(
                f"The group {group!r} has {has} with a token that counts (not the first, not special, not in a "
                "prompt); two or more are needed, a few hundred wanted."
            )
    kept, held_out = hold_out(by_group, fraction)
    return [text for texts in kept.values() for text in texts], [text for texts in held_out.values() for text in texts]


def batches(texts: Sequence[Text], groups: Sequence[str], batch_size: int) -> Iterator[TextBatch]:
    """
    Batches of texts sorted by length, the longest first: if the first fits in memory, all do.

    Padding is token 0 on the right, whatever the tokenizer's: no real token attends to it.
    """
    ordered = sorted(texts, key=lambda text: -len(text.ids))
    for start in range(0, len(ordered), batch_size):
        members = ordered[start : start + batch_size]
        length = len(members[0].ids)
        ids = torch.zeros(len(members), length, dtype=torch.long)
        attention = torch.zeros(len(members), length, dtype=torch.long)
        counted = torch.zeros(len(members), length, dtype=torch.bool)
        for i, text in enumerate(members):
            ids[i, : len(text.ids)] = torch.tensor(text.ids)
            attention[i, : len(text.ids)] = 1
            counted[i, : len(text.ids)] = torch.tensor(text.counted)
        yield TextBatch(ids, attention, counted, torch.tensor([groups.index(text.group) for text in members]))
