"""Checks every row of the training data before a model is loaded."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import islice
from typing import Any

from ..conversations import read_messages, read_row
from ..measure.faults.scripts import known_language
from ..row_checks import (
    Copies,
    located,
    require_answer,
    require_columns,
    require_group,
    require_question,
    require_text,
)

ROWS_READ_FROM_A_STREAM = 1000
"""Number of rows of a stream that are checked beforehand. The rest are checked as they are read."""

LAYOUTS = ("messages", "prompt", "input_ids")

Check = Callable[[Mapping[str, Any], str], Any]
"""Takes a row and its name in errors, and raises a `ValueError` if the row does not fit."""


def require_training_rows(
    rows: Iterable[Mapping[str, Any]],
    group_column: str = "lang",
    *,
    source: str = "the training data",
    start: int = 1,
    text_field: str = "text",
    check_group: Callable[[str], Any] | None = None,
) -> bool:
    """
    Check every row of a dataset for SFT: `messages` (in any common form), `prompt` with `completion`, `text`
    (`text_field`), or `input_ids`. A warning counts exact copies. Only the first thousand rows of a stream are read.

    All rows have a text in the column of groups, or none has that column. `check_group` raises a `ValueError` at a
    group that cannot be used, e.g. one without statistics. Returns whether a row holds messages in another form than
    TRL's, which [`with_messages`] converts.
    """
    return _pass(rows, TrainingRows(group_column, text_field, check_group), source, start)


def require_prompt_rows(
    rows: Iterable[Mapping[str, Any]],
    columns: Iterable[str] = (),
    *,
    source: str = "the prompts",
    start: int = 1,
    check_language: Callable[[str], Any] | None = None,
) -> bool:
    """
    Check every row of a dataset for RL: a `prompt` (a text or messages), and the columns with texts that rewards read,
    where `check_language` raises a `ValueError` at a text that names no known language. A warning counts exact copies.
    Only the first thousand rows of a stream are read.

    Returns whether a row holds messages in another form than TRL's, which [`with_messages`] converts.
    """
    return _pass(rows, PromptRows(tuple(columns), check_language), source, start)


def _pass(rows: Iterable[Any], check: Check, source: str, start: int) -> bool:
    copies, changed = Copies(), False
    for where, row in located(rows if hasattr(rows, "__len__") else islice(rows, _limit(rows)), source, start):
        changed = check(row, where) is not row or changed
        copies.add(row, where)
    if not copies.num_rows:
        raise ValueError(f"{source[:1].upper()}{source[1:]}: the dataset holds no row.")
    copies.say(source)
    return changed


def _limit(rows: Any) -> int | None:
    """Number of rows to read: `None` (all) for a file, the first ones for a stream."""
    return ROWS_READ_FROM_A_STREAM if hasattr(rows, "map") else None


class TrainingRows:
    """Checks rows one by one, as [`require_training_rows`] says, and returns each row as it is trained on."""

    def __init__(self, group_column: str, text_field: str, check_group: Callable[[str], Any] | None):
        self.group_column, self.text_field, self.check_group = group_column, text_field, check_group
        self._layout: tuple[str, str] | None = None  # of the first row, and what errors call it
        self._grouped: bool | None = None
        self._groups: set[str] = set()

    def __call__(self, row: Any, where: str) -> Mapping[str, Any]:
        row = read_row(require_columns(row, where), where)
        self._check_layout(row, where)
        if self._grouped is None:
            self._grouped = self.group_column in row
        if self._grouped:
            self._check_group(row, where)
        elif row.get(self.group_column) is not None:
            raise ValueError(
                f"{where} has a `{self.group_column}`, and the rows before it have none. Give it to all rows, or to "
                "none."
            )
        return row

    def _check_layout(self, row: Mapping[str, Any], where: str) -> None:
        layouts = (*LAYOUTS, self.text_field)
        layout = next((name for name in layouts if row.get(name) is not None), None)
        if layout is None:
            null = next((name for name in layouts if name in row), None)
            if null is not None:
                raise ValueError(f"{where}: `{null}` is null. Give it, or leave the row out.")
            raise ValueError(
                f"{where} has the columns {', '.join(map(str, row))}, and none of {', '.join(layouts)}. Write "
                '{"messages": [{"role": "user", "content": …}, {"role": "assistant", "content": …}], "lang": …}.'
            )
        if layout == "messages":
            require_answer(read_messages(row["messages"], f"{where}: ", "messages"), "messages", where)
        elif layout == "prompt":
            if row.get("completion") is None:
                raise ValueError(f"{where} has a `prompt` and no `completion`, its answer.")
            if isinstance(row["prompt"], str) != isinstance(row["completion"], str):
                kinds = ["a text" if isinstance(row[name], str) else "messages" for name in ("prompt", "completion")]
                raise ValueError(
                    f"{where}: `prompt` is {kinds[0]} and `completion` is {kinds[1]}. Give both in one form."
                )
            require_answer(row["completion"], "completion", where)
        elif layout == self.text_field:
            require_text(row, self.text_field, where)
        elif not len(row["input_ids"]):
            raise ValueError(f"{where}: `input_ids` is empty. Leave the row out.")
        if self._layout is None:
            self._layout = (layout, where)
        elif self._layout[0] != layout:
            raise ValueError(
                f"{where} holds `{layout}`, and {self._layout[1]} holds `{self._layout[0]}`. Give all rows in one "
                "form."
            )

    def _check_group(self, row: Mapping[str, Any], where: str) -> None:
        group = require_group(row, self.group_column, where)
        if group in self._groups or self.check_group is None:
            return
        try:
            self.check_group(group)
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from error
        self._groups.add(group)


class PromptRows:
    """Checks rows one by one, as [`require_prompt_rows`] says, and returns each row as it is answered."""

    def __init__(self, columns: tuple[str, ...], check_language: Callable[[str], Any] | None):
        self.columns, self.check_language = columns, check_language

    def __call__(self, row: Any, where: str) -> Mapping[str, Any]:
        row = read_row(require_columns(row, where), where)
        if "prompt" not in row:
            raise ValueError(
                f"{where} has the columns {', '.join(map(str, row))}, and no `prompt`: a text, or messages."
            )
        if row["prompt"] is None:
            raise ValueError(f"{where}: `prompt` is null. Give it, or leave the row out.")
        require_question(row["prompt"], "prompt", where)
        for column in self.columns:
            if column not in row:
                raise ValueError(f"{where} has no `{column}`, which a reward reads.")
            language = require_text(row, column, where)
            if self.check_language is not None:
                try:
                    self.check_language(language)
                except ValueError as error:
                    raise ValueError(f"{where}: {error}") from error
        return row


def rows_of_rewards(names: Sequence[str]) -> tuple[tuple[str, ...], Any]:
    """Columns that the named rewards read, and a check that raises a `ValueError` at a value that they do not know."""
    return (("lang",), known_language) if "language_consistency" in names else ((), None)
