"""What is asked, with the language that each answer should be in: given, or guessed from the script of the prompt."""

import os
from collections.abc import Mapping, Sequence
from typing import Any

from ..features.find.answers import Question, read_questions
from ..features.read.texts import read_rows
from ..languages import OWN_SCRIPTS
from ..measure.faults.scripts import count_scripts

_USUAL = {"Latin": "en", "Han": "zh", "Cyrillic": "ru", "Arabic": "ar", "Devanagari": "hi"}
"""The language that a script is taken for, where several languages are written in it."""


def guess_language(text: str) -> str:
    """
    The language whose script most letters of a text are in; `"en"` for Latin script and for a text without letters.

    Languages that share a script cannot be distinguished here, and need not be: a switch between them does not show in
    the script.
    """
    counts = count_scripts(text)
    if counts.get("Hiragana", 0) + counts.get("Katakana", 0) > 0 and next(iter(counts)) != "Latin":
        return "ja"
    script = next((script for script in counts if script != "Other"), "Latin")
    own = (code for code, scripts in OWN_SCRIPTS.items() if scripts[0] == script)
    return _USUAL.get(script) or next(own, "en")


def as_rows(texts: Sequence[str], tokenizer: Any, *, plain: bool = False) -> list[dict[str, Any]]:
    """Rows of texts that a person typed: turns of a user where the tokenizer has a chat template, else as they are."""
    if plain or not getattr(tokenizer, "chat_template", None):
        return [{"prompt": text} for text in texts]
    return [{"prompt": [{"role": "user", "content": text}]} for text in texts]


def read_asked(
    prompts: str | os.PathLike | Sequence[Mapping[str, Any]],
    tokenizer: Any,
    *,
    lang: str | None = None,
    group_column: str = "lang",
    chat_template_kwargs: Mapping[str, Any] | None = None,
) -> list[Question]:
    """
    Tokenized prompts, each with a language.

    Args:
        prompts (`str`, `os.PathLike` or rows):
            A file that `evaluate` reads, or its rows.
        tokenizer (`PreTrainedTokenizerBase`):
            The model's.
        lang (`str`, *optional*):
            Language of all answers. By default, a row's own, or that of the prompt's script ([`guess_language`]).
        group_column (`str`, *optional*, defaults to `"lang"`):
            Column with the language of the answer.
        chat_template_kwargs (`Mapping[str, Any]`, *optional*):
            Further variables of the chat template.

    Raises:
        ValueError: If a row has nothing to answer or its language is unknown.
    """
    rows = read_rows(prompts) if isinstance(prompts, str | os.PathLike) else list(prompts)
    with_language = [
        {**row, group_column: lang or row.get(group_column) or guess_language(_asked(row))} for row in rows
    ]
    return read_questions(
        with_language, tokenizer, chat_template_kwargs=chat_template_kwargs, group_column=group_column
    )


def _asked(row: Mapping[str, Any]) -> str:
    asked = row.get("prompt") or row.get("messages") or ""
    if isinstance(asked, str):
        return asked
    turns = [turn for turn in asked if isinstance(turn, Mapping)]
    users = [turn for turn in turns if turn.get("role") == "user"] or turns
    return str(users[-1].get("content") or "") if users else ""
