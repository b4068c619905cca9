"""Whether a run of an answer stands in the prompt or the reference, in whatever form of its characters."""

import unicodedata

import regex

from .han_forms import simplified

_SPACE_IN_DENSE = regex.compile(
    r"(?<=[\p{Han}\p{Hiragana}\p{Katakana}\p{Bopomofo}])\s+(?=[\p{Han}\p{Hiragana}\p{Katakana}\p{Bopomofo}])"
)


def one_form(text: str) -> str:
    """
    The text in one form of all that are the same word: compatibility characters as what they stand for (㍻ is 平成),
    capitals small, Han simplified, and no spaces between characters of a script that is written without.
    """
    return _SPACE_IN_DENSE.sub("", simplified(unicodedata.normalize("NFKC", text).casefold()))


class Sources:
    """
    The texts that an answer may copy from.

    Args:
        prompt (`str`):
            What was asked.
        reference (`str` or `None`):
            A correct answer.
    """

    def __init__(self, prompt: str, reference: str | None):
        texts = (("prompt", prompt), ("reference", reference or ""))
        self._sources = [(name, one_form(text)) for name, text in texts if text]
        self._known: dict[str, str | None] = {}

    def holding(self, run: str) -> str | None:
        """`"prompt"` or `"reference"` if the run stands there."""
        if not self._sources:
            return None
        if run not in self._known:
            form = one_form(run)
            self._known[run] = next((name for name, source in self._sources if form in source), None)
        return self._known[run]
