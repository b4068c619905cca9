"""The form that rows of a data set have, so that made rows have the same: what is asked in a row, and what it says."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

FORMS = ("text", "messages", "conversation", "prompt and completion")
"""A text; `messages`; `prompt` and `completion` made of messages; `prompt` and `completion` that are texts."""


@dataclass(frozen=True)
class RowForm:
    """
    How the rows of a data set are written.

    Attributes:
        kind (`str`):
            One of [`FORMS`].
        text_column (`str`):
            Column of a text.
        label_column (`str`, *optional*):
            Column of the label, where rows have one.
    """

    kind: str
    text_column: str = "text"
    label_column: str | None = None

    @property
    def has_question(self) -> bool:
        """Whether a row asks something before it says something."""
        return self.kind != "text"

    def question(self, row: Mapping[str, Any]) -> str:
        """What is asked last before the answer; empty where rows are texts."""
        if self.kind == "text":
            return ""
        if self.kind == "prompt and completion":
            return str(row["prompt"])
        turns = row["messages"][:-1] if self.kind == "messages" else row["prompt"]
        return next((turn.get("content") or "" for turn in reversed(turns) if turn["role"] == "user"), "")

    def answer(self, row: Mapping[str, Any]) -> str:
        """The text, or the answer."""
        if self.kind == "text":
            return str(row[self.text_column])
        if self.kind == "prompt and completion":
            return str(row["completion"])
        turns = row["messages"] if self.kind == "messages" else row["completion"]
        return turns[-1].get("content") or ""

    def whole(self, row: Mapping[str, Any]) -> str:
        """Question and answer as one text, to compare rows by."""
        return "\n".join(part for part in (self.question(row), self.answer(row)) if part)

    def label(self, row: Mapping[str, Any]) -> str:
        """The label; empty where rows have none."""
        return "" if self.label_column is None else str(row.get(self.label_column) or "")

    def make(self, question: str, answer: str, label: str = "") -> dict[str, Any]:
        """A row of this form."""
        asked, said = {"role": "user", "content": question}, {"role": "assistant", "content": answer}
        row: dict[str, Any]
        if self.kind == "text":
            row = {self.text_column: answer}
        elif self.kind == "messages":
            row = {"messages": [asked, said]}
        elif self.kind == "conversation":
            row = {"prompt": [asked], "completion": [said]}
        else:
            row = {"prompt": question, "completion": answer}
        return row if self.label_column is None else {**row, self.label_column: label}


def form_of(rows: Sequence[Mapping[str, Any]], text_column: str, label_column: str | None) -> RowForm:
    """
    The form that all rows have.

    Raises:
        ValueError: If rows have different forms.
    """
    kinds = {_kind(row, text_column) for row in rows}
    if len(kinds) > 1:
        raise ValueError(
            f"The seeds have different forms: {', '.join(sorted(kinds))}. Made rows have the form of the seeds, so "
            "give seeds of one form."
        )
    return RowForm(kinds.pop(), text_column, label_column)


def _kind(row: Mapping[str, Any], text_column: str) -> str:
    if isinstance(row.get(text_column), str):
        return "text"
    if isinstance(row.get("messages"), list):
        return "messages"
    return "prompt and completion" if isinstance(row.get("prompt"), str) else "conversation"
