"""Match quotation marks and brackets of every kind in one pass, including nested ones."""

from collections.abc import Iterator

MAX_QUOTE_CHARS = 30
"""Longest quotation or gloss that is excused, in characters between the marks."""

_QUOTES = ("“”", "‘’", "„“", "„”", "«»", "‹›", "「」", "『』", "《》", "〈〉", "｢｣")
_SAME_BOTH_SIDES = "\"＂'"
_BRACKETS = ("()", "（）", "[]", "〔〕", "【】", "［］")
_TITLES = frozenset("《〈『")

Pair = tuple[int, int, str]
"""(index of the opening mark, index after the closing mark, opening mark)."""


def quotations_of(text: str, max_chars: int) -> list[Pair]:
    """Quotations within one line with at most `max_chars` characters between their marks, sorted by start."""
    return sorted([*_pairs(text, _QUOTES, max_chars), *_alike_pairs(text, max_chars)])


def brackets_of(text: str, max_chars: int) -> list[Pair]:
    """Brackets within one line with at most `max_chars` characters between them, by start; without texts of links."""
    pairs = _pairs(text, _BRACKETS, max_chars)
    return sorted(pair for pair in pairs if not (pair[2] == "[" and text[pair[1] : pair[1] + 1] == "("))


def marks_title(mark: str) -> bool:
    """Whether this mark opens a title."""
    return mark in _TITLES


def _pairs(text: str, kinds: tuple[str, ...], max_chars: int) -> Iterator[Pair]:
    """Pairs of two different marks. Each kind is matched separately, so an unclosed mark does not hide other kinds."""
    opened: dict[str, list[int]] = {kind: [] for kind in kinds}
    opens: dict[str, list[str]] = {}
    closes: dict[str, list[str]] = {}
    for kind in kinds:
        opens.setdefault(kind[0], []).append(kind)
        closes.setdefault(kind[1], []).append(kind)
    if not any(mark in text for mark in closes):
        return
    for place, character in enumerate(text):
        if character == "\n":
            for places in opened.values():
                places.clear()
            continue
        for kind in closes.get(character, ()):
            if opened[kind]:
                start = opened[kind].pop()
                if place - start - 1 <= max_chars:
                    yield start, place + 1, kind[0]
        for kind in opens.get(character, ()):
            opened[kind].append(place)


def _alike_pairs(text: str, max_chars: int) -> Iterator[Pair]:
    """Pairs of the same mark. After a letter, an apostrophe does not open a pair; before a letter, it closes none."""
    for mark in _SAME_BOTH_SIDES:
        if mark not in text:
            continue
        opened: int | None = None
        for place, character in enumerate(text):
            if character == "\n":
                opened = None
            elif character != mark:
                continue
            elif opened is None:
                opened = None if mark == "'" and _is_word_character(text, place - 1) else place
            elif mark != "'" or not _is_word_character(text, place + 1):
                if place - opened - 1 <= max_chars:
                    yield opened, place + 1, mark
                opened = None


def _is_word_character(text: str, place: int) -> bool:
    return 0 <= place < len(text) and (text[place].isalnum() or text[place] == "_")
