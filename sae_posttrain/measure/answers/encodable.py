"""Texts that can be read and written at all: whole characters."""

from typing import Any


def require_encodable(text: Any, where: str) -> None:
    """
    Raises a `ValueError` if a text holds half of a character, which no tokenizer and no file takes.

    JSON can hold such a half, as `\\ud83d` without its second half, where a text was cut in the middle of an emoji.
    What is no text is let pass.
    """
    if not isinstance(text, str):
        return
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise ValueError(
            f"{where} holds half of a character (U+{ord(text[error.start]):04X}, a lone surrogate) at character "
            f"{error.start + 1}: the text was cut inside an emoji or a rare character. Remove it."
        ) from error
