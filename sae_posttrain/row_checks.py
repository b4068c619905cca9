"""Checks that every reader of rows uses, with the same messages: `Row 3 of train.jsonl: …`, counted from 1."""

import hashlib
import json
import logging
import os
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from .conversations import read_messages
from .shown import shown

logger = logging.getLogger(__name__)


def located(rows: Iterable[Any], source: str, start: int = 1) -> Iterator[tuple[str, Any]]:
    """Rows with their names in errors; `start` is the number of the first row."""
    return ((f"Row {number} of {source}", row) for number, row in enumerate(rows, start=start))


def require_columns(row: Any, where: str) -> Mapping[str, Any]:
    """Raise a `ValueError` if a row is not a dictionary of columns."""
    if not isinstance(row, Mapping):
        raise ValueError(f"{where} is a {type(row).__name__}, not a dictionary of columns.")
    return row


def require_text(row: Mapping[str, Any], column: str, where: str) -> str:
    """The text in a column. Raise a `ValueError` if it is missing, null, empty, or not a text."""
    if column not in row:
        raise ValueError(f"{where} has no column `{column}`; it has {', '.join(map(str, row))}.")
    value = row[column]
    if value is None:
        raise ValueError(f"{where}: `{column}` is null. Give it a text, or leave the row out.")
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"{where}: `{column}` must be a text that is not empty, got {shown(value)}.")
    return value


def require_group(row: Mapping[str, Any], column: str, where: str) -> str:
    """The group of a row."""
    if column not in row:
        raise ValueError(
            f"{where} has no group column `{column}`; it has {', '.join(sorted(map(str, row)))}. Name the right one "
            "with `group_column`."
        )
    if row[column] is None:
        raise ValueError(f"{where}: `{column}` is null. Give the group, or leave the row out.")
    return require_text(row, column, where)


def require_answer(value: Any, column: str, where: str) -> None:
    """Raise a `ValueError` if an answer is empty: a text, or messages as [`read_messages`] returns them."""
    if isinstance(value, str):
        if not value.strip():
            raise ValueError(f"{where} has an empty answer: `{column}` is {shown(value)}. Leave the row out.")
        return
    messages = read_messages(value, f"{where}: ", column)
    last = messages[-1]
    if last["role"] != "assistant":
        raise ValueError(
            f"{where}: the last message of `{column}` is the {last['role']}'s; it must be the assistant's."
        )
    if not (last.get("content") or "").strip() and not last.get("tool_calls"):
        raise ValueError(
            f"{where} has an empty answer: message {len(messages)} of `{column}` is {shown(last)}. Leave the row out."
        )


def require_question(value: Any, column: str, where: str) -> None:
    """Raise a `ValueError` if a prompt (text or messages) is empty or does not end where an answer begins."""
    if isinstance(value, str):
        if not value.strip():
            raise ValueError(f"{where} has an empty prompt: `{column}` must be a text that is not empty.")
        return
    messages = read_messages(value, f"{where}: ", column)
    if messages[-1]["role"] not in ("user", "tool"):
        raise ValueError(
            f"{where}: the last message of `{column}` is the {messages[-1]['role']}'s; it must be the user's or the "
            "tool's. A known answer belongs into `completion`."
        )
    if not any((message.get("content") or "").strip() for message in messages):
        raise ValueError(f"{where} has an empty prompt: no message of `{column}` holds text.")


class Copies:
    """Count rows that are exact copies of an earlier row."""

    def __init__(self) -> None:
        self._seen: set[bytes] = set()
        self.num_rows = 0
        self.num_copies = 0
        self.first = ""

    def add(self, row: Any, where: str) -> None:
        """Look at the next row."""
        text = json.dumps(row, sort_keys=True, default=str)
        digest = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest()
        self.num_rows += 1
        if digest in self._seen:
            self.num_copies += 1
            self.first = self.first or where
        self._seen.add(digest)

    def say(self, source: str) -> None:
        """Warn if there are copies; with several processes, only the first process warns."""
        if self.num_copies and os.environ.get("RANK", "0") == "0":
            logger.warning(
                "%s: %d of %d rows %s of an earlier row (the first: %s). Each counts as often as it stands there.",
                source,
                self.num_copies,
                self.num_rows,
                "is an exact copy" if self.num_copies == 1 else "are exact copies",
                self.first,
            )
