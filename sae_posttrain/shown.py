"""How messages show what was read from a file or given by a user: short, and harmless to print."""

import reprlib
from typing import Any

_MAX_PART, _MAX_ALL = 80, 200  # characters
_MAX_INTEGER = 10**18


class _Short(reprlib.Repr):
    def __init__(self) -> None:
        super().__init__()
        self.maxstring = self.maxother = _MAX_PART

    def repr_int(self, x: int, level: int) -> str:
        return "a huge number" if abs(x) > _MAX_INTEGER else repr(x)  # Python refuses to print thousands of digits


_short = _Short()


def shown(value: Any) -> str:
    """A value as Python writes it, cut short however large it is."""
    return _short.repr(value)[:_MAX_ALL]


def printable(content: object) -> str:
    """The beginning of a text, with what cannot be printed escaped."""
    return "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in str(content)[:1000])
