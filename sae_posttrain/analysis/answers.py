"""Bad and good answers, in any form in which they are at hand, and where the fault is in them."""

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..features.read.texts import located_rows, require_form
from ..measure.answers.folder import ANSWERS_FILE, SETTINGS_FILE, read_json

FAULTS = ("any", "switching", "loops")

Answers = str | os.PathLike | Iterable[Mapping[str, Any]]


@dataclass(frozen=True)
class Answer:
    """
    An answer, whether it shows the fault, and where.

    Attributes:
        row (`dict`):
            The answer as [`read_activations`] takes it: a text, `messages`, or `prompt` and `completion`.
        bad (`bool`):
            Whether it shows the fault.
        pair (`str`):
            The same for answers to one prompt; empty where no prompt is known.
        spans (`tuple[tuple[int, int], ...]`):
            Where the fault is: first character in the answer, and the character after its last.
        token_spans (`tuple[tuple[int, int], ...]`):
            The same for faults that were found among tokens, such as loops: counted in tokens of the answer.
    """

    row: dict[str, Any]
    bad: bool
    pair: str
    spans: tuple[tuple[int, int], ...] = ()
    token_spans: tuple[tuple[int, int], ...] = ()

    @property
    def text(self) -> str:
        """The answer alone."""
        if "completion" in self.row:
            completion = self.row["completion"]
            return completion if isinstance(completion, str) else completion[-1]["content"] or ""
        return self.row["text"] if "text" in self.row else self.row["messages"][-1]["content"] or ""


def read_answers(bad: Answers, good: Answers | None, *, fault: str = "any", text_column: str = "text") -> list[Answer]:
    """
    Bad and good answers, one after the other.

    Args:
        bad, good (path or iterable of rows):
            Folder that `evaluate` wrote, a file of such lines, or texts as [`find_features`] takes them. Judged
            answers go where they belong: of `bad` those that show the fault are taken, of `good` those that do not; if
            `good` is left out, `bad` gives both. Other rows are taken as they are; they may say where the fault is, in
            `spans`: a list of `[first character, character after the last]`.
        fault (`str`, *optional*, defaults to `"any"`):
            What makes a judged answer bad: unexpected `"switching"`, endless `"loops"`, or `"any"` of the two.
        text_column (`str`, *optional*, defaults to `"text"`):
            Column of plain texts.

    Raises:
        ValueError: If a row cannot be read, or one side has no answer.
    """
    if fault not in FAULTS:
        raise ValueError(f"`fault` must be one of {', '.join(map(repr, FAULTS))}, got {fault!r}.")
    given = _read(bad, True, fault, text_column)
    if good is None:
        found = given
    else:
        found = [each for each in given if each.bad]
        found += [each for each in _read(good, False, fault, text_column) if not each.bad]
    num_bad = sum(each.bad for each in found)
    for kind, number in (("bad", num_bad), ("good", len(found) - num_bad)):
        if not number:
            of_what = "" if fault == "any" else f" (fault: {fault})"
            more = " Give `good` too." if kind == "good" and good is None else ""
            raise ValueError(
                f"There are no {kind} answers{of_what}, and {len(found)} others. Both kinds are needed to tell them "
                f"apart, a hundred of each wanted.{more}"
            )
    return sorted(found, key=lambda each: not each.bad)


def _read(answers: Answers, bad: bool, fault: str, text_column: str) -> list[Answer]:
    as_messages = False
    if isinstance(answers, str | os.PathLike) and (Path(answers) / ANSWERS_FILE).is_file():
        settings = read_json(Path(answers) / SETTINGS_FILE) or {}
        as_messages = settings.get("prompt_form") in ("messages", "mixed")
        answers = Path(answers) / ANSWERS_FILE
    found = []
    for where, row in located_rows(answers):
        if isinstance(row.get("answer"), str) and "loop" in row:
            if row["answer"].strip() and (judged := _judged(row, fault, as_messages)) is not None:
                found.append(judged)
        else:
            require_form(row, text_column, where)
            kept = {name: row[name] for name in ("messages", "prompt", "completion") if row.get(name) is not None}
            if isinstance(row.get(text_column), str):
                kept = {"text": row[text_column]}
            found.append(Answer(kept, bad, _pair(row), _spans(row.get("spans"), where) if bad else ()))
    return found


def _judged(row: Mapping[str, Any], fault: str, as_messages: bool) -> Answer | None:
    """A line of `answers.jsonl`; `None` if it shows only part of the fault, and is neither bad nor good."""
    loop = row["loop"]
    switches = fault in ("any", "switching") and bool(row.get("unexpected"))
    loops = fault in ("any", "loops") and bool(loop.get("endless"))
    half = fault in ("any", "loops") and bool(loop.get("loop_any") or loop.get("near_loop"))
    if not switches and not loops and half:
        return None
    spans = [
        (span["start"], span["start"] + len(span["text"]))
        for span in row.get("spans", ())
        if switches and span.get("excused") is None
    ]
    token_spans = [(loop["onset"], loop["onset"] + loop["span"])] if loops and loop["onset"] is not None else []
    prompt: Any = [{"role": "user", "content": row["prompt"]}] if as_messages else row["prompt"]
    answer: Any = [{"role": "assistant", "content": row["answer"]}] if as_messages else row["answer"]
    kept = {"prompt": prompt, "completion": answer}
    return Answer(kept, switches or loops, _pair(kept), tuple(spans), tuple(token_spans))


def _pair(row: Mapping[str, Any]) -> str:
    prompt = row.get("prompt") or (row["messages"][:-1] if row.get("messages") else "")
    return json.dumps(prompt, sort_keys=True, ensure_ascii=False) if prompt else ""


def _spans(spans: Any, where: str) -> tuple[tuple[int, int], ...]:
    if spans is None:
        return ()
    if not isinstance(spans, Sequence) or not all(
        isinstance(span, Sequence) and len(span) == 2 and all(isinstance(end, int) for end in span) for span in spans
    ):
        raise ValueError(
            f"{where}: `spans` says where the fault is, as a list of [first character, character after the last]."
        )
    return tuple((first, end) for first, end in spans)
