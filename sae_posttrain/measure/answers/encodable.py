"""Check that a text consists of whole characters, so that it can be tokenized and written."""

from typing import Any


def require_encodable(text: Any, where: str) -> None:
    """
    Raise a `ValueError` if a text holds half of a character, which no tokenizer and no file accepts.

    JSON can hold such a half, for example `\\ud83d` alone, if a text was cut in the middle of an emoji. A value that
    is not a text is accepted.
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
