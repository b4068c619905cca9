"""What the first rows of a dataset must hold, checked before a model is loaded."""

from collections.abc import Iterable, Mapping
from itertools import islice
from typing import Any

NUM_CHECKED = 20
LAYOUTS = ("messages", "prompt", "text", "input_ids")
ROLES = ("system", "developer", "user", "assistant", "tool")


def require_training_rows(rows: Iterable[Mapping[str, Any]], group_column: str) -> None:
    """
    Check the first rows of a dataset for SFT: `messages`, `prompt` with `completion`, `text`, or `input_ids`.

    Args:
        rows (`Iterable[Mapping]`):
            The dataset; a stream is begun anew later.
        group_column (`str`):
            Column with each row's group. It may be missing; where it is there, each row has a text in it.

    Raises:
        ValueError: At the first row that cannot be trained on; the message says what it should hold.
    """
    for number, row in enumerate(_first(rows), start=1):
        layout = next((name for name in LAYOUTS if name in row), None)
        if layout is None:
            raise ValueError(
                f"Row {number} of the training data has the columns {', '.join(row)}, and none of "
                f"{', '.join(LAYOUTS)}. Write "
                '{"messages": [{"role": "user", "content": …}, {"role": "assistant", "content": …}], "lang": …}.'
            )
        if layout == "messages":
            _require_messages(row["messages"], number, "messages", last=("assistant",))
        elif layout == "prompt" and "completion" not in row:
            raise ValueError(f"Row {number} of the training data has a `prompt` and no `completion`, its answer.")
        if group_column in row:
            _require_text(row[group_column], number, group_column)


def require_prompt_rows(rows: Iterable[Mapping[str, Any]], columns: Iterable[str] = ()) -> None:
    """
    Check the first rows of a dataset for RL: a `prompt`, a text or messages, and the columns that rewards read.

    Args:
        rows (`Iterable[Mapping]`):
            The dataset.
        columns (`Iterable[str]`, *optional*):
            Columns that must hold a text in each row.

    Raises:
        ValueError: At the first row that cannot be answered; the message says what it should hold.
    """
    for number, row in enumerate(_first(rows), start=1):
        if "prompt" not in row:
            raise ValueError(
                f"Row {number} of the prompts has the columns {', '.join(row)}, and no `prompt`: a text, or messages."
            )
        if isinstance(row["prompt"], str):
            _require_text(row["prompt"], number, "prompt")
        else:
            _require_messages(row["prompt"], number, "prompt", last=("user", "tool"))
        for column in columns:
            if column not in row:
                raise ValueError(f"Row {number} of the prompts has no `{column}`, which a reward reads.")
            _require_text(row[column], number, column)


def _first(rows: Iterable[Mapping[str, Any]]) -> Iterable[Mapping[str, Any]]:
    first = list(islice(iter(rows), NUM_CHECKED))
    if not first:
        raise ValueError("The dataset holds no row.")
    return first


def _require_text(value: Any, number: int, column: str) -> None:
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"Row {number}: `{column}` must be a text that is not empty, got {_shown(value)}.")


def _require_messages(value: Any, number: int, column: str, last: tuple[str, ...]) -> None:
    if not isinstance(value, list) or not value:
        raise ValueError(f"Row {number}: `{column}` must be a list of messages, got {_shown(value)}.")
    for place, message in enumerate(value, start=1):
        if not isinstance(message, Mapping) or "role" not in message or "content" not in message:
            raise ValueError(
                f'Row {number}: message {place} of `{column}` must be {{"role": …, "content": …}}, got '
                f"{_shown(message)}."
            )
        if message["role"] not in ROLES:
            raise ValueError(
                f"Row {number}: message {place} of `{column}` has the role {_shown(message['role'])}; known are "
                f"{', '.join(ROLES)}."
            )
    if value[-1]["role"] not in last:
        raise ValueError(
            f"Row {number}: the last message of `{column}` is the {value[-1]['role']}'s; it must be the "
            f"{' or the '.join(last)}'s."
        )


def _shown(value: Any) -> str:
    return repr(value)[:80]
