"""What becomes of an answer that was cut at its longest length."""

import re

UNFINISHED = ("drop", "trim")
"""It counts as no answer; or it ends with its last whole sentence."""

STOP = "\n"
"""What ends a text that a base model writes: it goes on with the next one otherwise."""

_SENTENCE_END = re.compile(r"[.!?…。！？]+[\"'”’»)\]]*(?=\s|$)|[。！？]")


def check_unfinished(unfinished: str) -> None:
    """
    Raises:
        ValueError: If it is none of [`UNFINISHED`].
    """
    if unfinished not in UNFINISHED:
        raise ValueError(f"`unfinished` must be one of {', '.join(map(repr, UNFINISHED))}, got {unfinished!r}.")


def usable_part(text: str, finished: bool, unfinished: str) -> str | None:
    """The answer, or what is left of one that was cut; `None` if nothing is."""
    if finished:
        return text.strip()
    if unfinished == "drop":
        return None
    ends = [found.end() for found in _SENTENCE_END.finditer(text)]
    return text[: ends[-1]].strip() if ends else None
