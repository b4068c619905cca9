"""Find out whether the prompt or the reference contains a run of an answer, in any form of its characters."""

import unicodedata

import regex

from .han_forms import simplified

_SPACE_IN_DENSE = regex.compile(
    r"(?<=[\p{Han}\p{Hiragana}\p{Katakana}\p{Bopomofo}])\s+(?=[\p{Han}\p{Hiragana}\p{Katakana}\p{Bopomofo}])"
)


def one_form(text: str) -> str:
    """
    The text in a normal form, so that all forms of a word are equal.

    Compatibility characters are expanded (㍻ becomes 平成), capitals become small letters, Han becomes simplified, and
    spaces are removed between characters of a script that is written without spaces.
    """
    return _SPACE_IN_DENSE.sub("", simplified(unicodedata.normalize("NFKC", text).casefold()))


class Sources:
    """The texts that an answer may copy from."""

    def __init__(self, prompt: str, reference: str | None):
        texts = (("prompt", prompt), ("reference", reference or ""))
        self._sources = [(name, one_form(text)) for name, text in texts if text]
        self._known: dict[str, str | None] = {}

    def holding(self, run: str) -> str | None:
        """`"prompt"` or `"reference"` if it contains the run, else `None`."""
        if not self._sources:
            return None
        if run not in self._known:
            form = one_form(run)
            self._known[run] = next((name for name, source in self._sources if form in source), None)
        return self._known[run]
