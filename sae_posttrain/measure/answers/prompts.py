"""Prompts for an evaluation: checked rows of a file, a dataset or a list, each with the language of its answer."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any

from ...conversations import read_messages, read_row, text_of
from ...languages import language_hint
from ...row_checks import Copies, located, require_columns, require_question, require_text
from ..faults.scripts import can_measure, same_language, target_scripts_of
from .encodable import require_encodable
from .rows import read_rows

Message = dict[str, Any]


@dataclass(frozen=True)
class Prompt:
    """
    A prompt to answer.

    Attributes:
        id: Unique among the prompts of one language.
        lang: Language the answer should be in.
        text: Text of the prompt; for a conversation, the text of all its turns.
        messages: The conversation, if it is one.
        reference: A known answer; foreign text that it contains is excused.
    """

    id: str | int
    lang: str
    text: str
    messages: list[Message] | None
    reference: str | None


def read_prompts(
    data: Any, *, group_column: str, target_lang: str | None, limit: int | None = None, source: str | None = None
) -> list[Prompt]:
    """
    Read and check prompts from a file or rows; [`evaluate`] says what a row can hold. At least one must be able to
    show a switch into `target_lang` (`None`: any script). Errors name the data by `source`.
    """
    is_file = isinstance(data, (str, os.PathLike))
    source = source or (f"{data}" if is_file else "the data")
    prompts, copies = [], Copies()
    for index, (where, raw) in enumerate(located(islice(read_rows(data) if is_file else data, limit), source)):
        prompts.append(_read_prompt(raw, index, group_column, where))
        copies.add({name: value for name, value in raw.items() if name != "id"}, where)
    copies.say(source)
    if not prompts:
        raise ValueError(f"No prompts in {source}: it holds no rows.")

    for row, prompt in enumerate(prompts, 1):
        require_encodable(prompt.text, f"Row {row} of {source}: its prompt")
        require_encodable(prompt.reference, f"Row {row} of {source}: its reference")
        require_encodable(prompt.id, f"Row {row} of {source}: its id")
    seen: set[tuple[str | int, str]] = set()
    for prompt in prompts:
        if (prompt.id, prompt.lang) in seen:
            raise ValueError(
                f"The id {prompt.id!r} occurs twice with the language {prompt.lang!r} in {source}. Make ids unique "
                "within a language, or remove the column `id` to have the rows numbered; `num_samples` gives several "
                "answers."
            )
        seen.add((prompt.id, prompt.lang))
    languages = sorted({prompt.lang for prompt in prompts})
    others = [lang for lang in languages if target_lang is None or not same_language(lang, target_lang)]
    if others and not any(can_measure(lang, target_lang) for lang in others):
        raise ValueError(
            f"No row can show a switch into {target_lang!r}: the script of that language "
            f"({', '.join(sorted(target_scripts_of(str(target_lang))))}) is allowed in all languages of {source} "
            f"({', '.join(languages)}). Latin is allowed everywhere. Choose another `target_lang`, or None for any "
            "foreign script."
        )
    return prompts


def _read_prompt(raw: Any, index: int, group_column: str, where: str) -> Prompt:
    row = read_row(require_columns(raw, where), where)
    lang = language_of(row, group_column, where)
    reference = _text(row.get("reference") or row.get("completion"), "completion", where)
    name = "messages" if row.get("prompt") is None else "prompt"
    asked = row.get(name)
    if asked is None:
        raise ValueError(
            f"{where} has nothing to answer: it needs a column `prompt` (text or messages) or `messages`. It has: "
            f"{', '.join(map(str, row))}."
        )
    if not isinstance(asked, str):
        asked = [dict(message) for message in read_messages(asked, f"{where}: ", name)]
        if name == "messages":  # its closing answer is known, and never sent
            known: list[Message] = []
            while asked and asked[-1]["role"] == "assistant":
                known.insert(0, asked.pop())
            if not asked:
                raise ValueError(f"{where} has nothing to answer: its `messages` are the assistant's alone.")
            reference = reference or text_of(known) or None
    require_question(asked, name, where)
    messages = None if isinstance(asked, str) else asked
    text = asked if isinstance(asked, str) else text_of(asked)
    row_id = row.get("id")
    row_id = index if row_id is None else row_id
    return Prompt(row_id if isinstance(row_id, (str, int)) else str(row_id), lang, text, messages, reference)


def language_of(row: Mapping[str, Any], group_column: str, where: str) -> str:
    """The language of a row's answer. Raise a `ValueError` if the row does not say it, or it is not known."""
    if group_column not in row:
        raise ValueError(
            f"{where} does not say the language of its answer: no column `{group_column}`. It has: "
            f"{', '.join(map(str, row))}. Name another column with `group_column`."
        )
    lang = require_text(row, group_column, where)
    try:
        can_measure(lang, None)
    except ValueError:
        raise ValueError(
            f"{where} has the unknown language {lang!r} in `{group_column}`. {language_hint(lang)}"
        ) from None
    return lang


def _text(value: Any, column: str, where: str) -> str | None:
    """The text of a string or of all messages in a list; `None` if there is no text."""
    if value is None or isinstance(value, str):
        return value
    return text_of(read_messages(value, f"{where}: ", column)) or None
