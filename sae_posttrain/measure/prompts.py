"""Prompts to evaluate on: rows of a file, a dataset or a list, each checked and with the language of its answer."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

from .encodable import require_encodable
from .rows import read_rows
from .scripts import OWN_SCRIPTS, TARGET_SCRIPTS, can_measure, same_language

Message = dict[str, Any]


@dataclass(frozen=True)
class Prompt:
    """
    A prompt to answer.

    Attributes:
        id (`str` or `int`):
            Tells the prompts of one language apart.
        lang (`str`):
            Language the answer should be in.
        text (`str`):
            What is asked; of a conversation, all its turns.
        messages (`list[dict]`, *optional*):
            The conversation, if it is one.
        reference (`str`, *optional*):
            A known answer; what it holds is excused.
    """

    id: str | int
    lang: str
    text: str
    messages: list[Message] | None
    reference: str | None


def read_prompts(data: Any, *, group_column: str, target_lang: str | None, limit: int | None = None) -> list[Prompt]:
    """
    Reads and checks prompts; [`evaluate`] says what a row can hold.

    Args:
        data (path or iterable of `Mapping`):
            A `.json` or `.jsonl` file (`.gz` or plain), or the rows themselves.
        group_column (`str`):
            Column that holds the language the answer should be in.
        target_lang (`str`, *optional*):
            Language that answers may switch into; at least one prompt must be able to show it. `None` for any script.
        limit (`int`, *optional*):
            Read the first so many rows only.

    Raises:
        ValueError: If there are no rows, or one has no prompt, no known language, or the id of another.
    """
    source = f"{data}" if isinstance(data, (str, os.PathLike)) else "the data"
    raw_rows = read_rows(data) if isinstance(data, (str, os.PathLike)) else data
    prompts = [
        _read_prompt(raw, index, group_column, f"Row {index} of {source}")
        for index, raw in enumerate(islice(raw_rows, limit))
    ]
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
            f"({', '.join(TARGET_SCRIPTS.get(str(target_lang), ()))}) is allowed in all languages of {source} "
            f"({', '.join(languages)}). Latin is allowed everywhere. Choose another `target_lang`, or None for any "
            "foreign script."
        )
    return prompts


def _read_prompt(raw: Any, index: int, group_column: str, where: str) -> Prompt:
    if not isinstance(raw, Mapping):
        raise ValueError(f"{where} is a {type(raw).__name__}, not a dictionary of columns.")
    lang = raw.get(group_column)
    if lang is None:
        raise ValueError(
            f"{where} does not say the language of its answer: no column `{group_column}`. It has: "
            f"{', '.join(map(str, raw))}. Name another column with `group_column`."
        )
    try:
        can_measure(lang, None)
    except ValueError:
        raise ValueError(
            f"{where} has the unknown language {lang!r} in `{group_column}`. Known: {', '.join(sorted(OWN_SCRIPTS))}."
        ) from None

    reference = _content(raw.get("reference") or raw.get("completion"), where)
    prompt = raw.get("prompt")
    messages = raw.get("messages") if prompt is None else prompt
    text = ""
    if isinstance(messages, str):
        text, messages = messages, None
    elif isinstance(messages, Sequence) and messages:
        messages = [dict(message) for message in messages]
        if messages[-1].get("role") == "assistant" and prompt is None:
            reference = reference or _content([messages.pop()], where)
        text = _content(messages, where) or ""
    else:
        raise ValueError(
            f"{where} has nothing to answer: it needs a column `prompt` (text or messages) or `messages`. It has: "
            f"{', '.join(map(str, raw))}."
        )
    if not text.strip():
        raise ValueError(f"{where} has an empty prompt.")
    row_id = raw.get("id")
    row_id = index if row_id is None else row_id
    return Prompt(row_id if isinstance(row_id, (str, int)) else str(row_id), lang, text, messages, reference)


def _content(value: Any, where: str) -> str | None:
    """The text of a string or of all messages of a list."""
    if value is None or isinstance(value, str):
        return value
    contents: list[Any] = [message.get("content") if isinstance(message, Mapping) else message for message in value]
    if not all(isinstance(content, str) for content in contents):
        raise ValueError(f"{where} has a message whose `content` is not text; only text can be evaluated.")
    return "\n".join(contents)
