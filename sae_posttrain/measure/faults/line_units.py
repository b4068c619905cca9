"""
Divide an answer into units whose language is identified: lines, sentences, and groups of short lines.

Identification needs a few words. A line with enough words is judged alone, sentence by sentence. Bullets, titles and
lines in capitals, which have too few words other than names, are judged together.
"""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import regex

from .areas import plain_areas
from .quotations import MAX_QUOTE_CHARS, Pair, brackets_of, quotations_of
from .scripts import letters_of
from .segments import segments_of
from .words import FUNCTION_WORDS

MAX_MESSAGE_CHARS = 200
"""Longest quotation, in characters between the marks, that is left out of a line with enough other text."""

_JOINED_TIMES = 2  # short lines are joined up to this many times `min_words`, as a list may switch midway

# In a script that is written without spaces, two characters are about one word.
_WORD = regex.compile(
    r"(?:[\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}\p{Tibetan}]\p{M}*){1,2}"
    r"|[\p{L}\p{M}]+(?:['’\-][\p{L}\p{M}]+)*"
)
_SENTENCE_END = regex.compile(r"""[.!?…]+["'”’»)\]*_]*\s+(?=[¿¡"'“‘«(\[*_]*\p{Lu})|[。！？]+""")
_AROUND_WORDS = "\"'“”‘’„«»‹›()[]{}*_~,;:.!?…¿¡"

# A capital, a digit or a joining sign within a token: `fileName`, `A4`, `com.sun.star`, `Ctrl+S`, `UNO`.
_NOT_TEXT = regex.compile(r"\d|_|[./\\=#$<>@&+]\p{L}|\p{Ll}\p{Lu}")
_MAX_TITLE_CHARS = 120
_CODE = regex.compile(r"[=;{}&<>]|\w\(|::|->")
_INNER_CAPITAL = regex.compile(r"\p{Ll}\p{Lu}")
_HAS_WORD = regex.compile(r"\p{L}{2}")
_NOT_A_WORD = regex.compile(r"[\p{L}\d]\p{Lu}|\d|_|[./\\=#$<>@&+]\p{L}")


@dataclass
class Unit:
    """
    A part of an answer that is judged as one: its words without names, and (start, end) of the line or sentence, or of
    each of several short lines.
    """

    places: list[tuple[int, int]]
    words: list[str]

    def add(self, other: "Unit") -> None:
        self.places += other.places
        self.words += other.words


def units_of(
    masked: str,
    languages: frozenset[str],
    scripts: frozenset[str],
    min_words: int,
    skip: Callable[[int, int], bool],
) -> list[Unit]:
    """
    Units of a masked answer ([`masked_answer`]) with at least `min_words` words: single lines and sentences, and short
    lines joined together. Letters of other scripts do not form words. `skip` says whether the text from a start to an
    end is left out.
    """
    letters = letters_of(scripts)
    small_words = frozenset[str]().union(*(FUNCTION_WORDS.get(language, frozenset()) for language in languages))
    judged: list[Unit] = []
    left: list[Unit] = []
    block: list[Unit] = []
    for line in regex.finditer(r"[^\n]+", masked):
        if line.group().isspace():
            continue
        units = [unit for unit in _sentences(masked, *line.span(), letters, min_words) if not skip(*unit.places[0])]
        long_enough = [unit for unit in units if len(unit.words) >= min_words]
        if long_enough:
            judged += [*_joined(block, min_words, left), *long_enough]
            block = []
            continue
        for unit in units:
            unit.words = _words_of_short_line(line.group(), unit.words, letters, small_words)
            if len(unit.words) >= min_words:
                judged.append(unit)
            elif unit.words:
                block.append(unit)
    judged += _joined(block, min_words, left)
    return judged + _joined(left, min_words, [])


def _sentences(masked: str, start: int, end: int, letters: "regex.Pattern[str]", min_words: int) -> list[Unit]:
    """The sentences of a line; a short sentence is joined to the one before it."""
    ends = [found.end() for found in _SENTENCE_END.finditer(masked, start, end)]
    pieces: list[Unit] = []
    for piece_start, piece_end in pairwise(dict.fromkeys([start, *ends, end])):
        words = words_of(masked[piece_start:piece_end], letters)
        if pieces and min(len(words), len(pieces[-1].words)) < min_words:
            pieces[-1].places[-1] = (pieces[-1].places[-1][0], piece_end)
            pieces[-1].words += words
        else:
            pieces.append(Unit([(piece_start, piece_end)], words))
    for piece in pieces:
        piece_start, piece_end = piece.places[0]
        text = masked[piece_start:piece_end]
        piece.places[0] = (piece_start + len(text) - len(text.lstrip()), piece_start + len(text.rstrip()))
    return pieces


def _joined(block: list[Unit], min_words: int, left: list[Unit]) -> list[Unit]:
    """Consecutive short lines, joined until they have enough words. Groups that stay too short are added to `left`."""
    joined: list[Unit] = []
    current: Unit | None = None
    for unit in block:
        if current is None:
            current = Unit([], [])
        current.add(unit)
        if len(current.words) >= _JOINED_TIMES * min_words:
            joined.append(current)
            current = None
    if current is None:
        return joined
    if len(current.words) >= min_words:
        joined.append(current)
    elif joined:
        joined[-1].add(current)
    else:
        left.append(current)
    return joined


def _words_of_short_line(
    line: str, words: list[str], letters: "regex.Pattern[str]", small_words: frozenset[str]
) -> list[str]:
    """
    The words of a line that is too short to be judged alone.

    In a title or a line in capitals, a capital does not mark a name, so all words count, in small letters. A line with
    only capitalised words is a list of names, unless it also has a small word.
    """
    found = [word for token in line.split() if not _NOT_TEXT.search(token) for word in _WORD.findall(token)]
    found = [word for word in found if letters.match(word)]
    cased = [word for word in found if word.lower() != word.upper()]
    capitals = [word for word in cased if word[0].isupper()]
    if cased and len(capitals) == len(cased) and not any(word.casefold() in small_words for word in cased):
        return []
    if len(line) > _MAX_TITLE_CHARS or _CODE.search(line) or len(_INNER_CAPITAL.findall(line)) > 1:
        return words  # code without code marks, whose keywords may be capitalised
    long_words = [word for word in cased if len(word) > 3]
    if len(capitals) > 1 and 2 * sum(word[0].isupper() for word in long_words) >= len(long_words):
        return [word.casefold() for word in found]
    return words


def words_of(sentence: str, letters: "regex.Pattern[str]") -> list[str]:
    """The words of a sentence that begin with one of `letters`, without names."""
    words: list[str] = []
    opens = True
    for token in sentence.split():
        token = token.strip(_AROUND_WORDS)
        found = _WORD.findall(token)
        if found and not _NOT_A_WORD.search(token) and (opens or not found[0][0].isupper()):
            words += filter(letters.match, found)
        opens = opens and not found
    return words


def masked_answer(answer: str, think_opened: bool) -> str:
    """The answer with spaces in place of everything that is ignored. Its length and line breaks stay the same."""
    characters = [character if character == "\n" else " " for character in answer]
    for segment_start, segment_end, name in segments_of(answer, think_opened=think_opened):
        for start, end in plain_areas(answer, segment_start, segment_end) if name == "answer" else ():
            characters[start:end] = answer[start:end]
    masked = "".join(characters)
    masked = _blanked(masked, quotations_of(masked, MAX_QUOTE_CHARS))
    masked = _blanked(masked, brackets_of(masked, MAX_QUOTE_CHARS))
    messages = quotations_of(masked, MAX_MESSAGE_CHARS)
    if not messages:
        return masked
    # A quoted message is left out if its line has enough other text.
    without = _blanked(masked, messages)
    lines = zip(masked.split("\n"), without.split("\n"))
    return "\n".join(rest if _HAS_WORD.search(rest) else line for line, rest in lines)


def _blanked(text: str, pairs: list[Pair]) -> str:
    """The text with spaces in place of these pairs of marks and the text between them."""
    pieces = []
    position = 0
    for start, end, _ in pairs:
        if end <= position:  # inside a pair that is blank already
            continue
        pieces += [text[position : max(start, position)], " " * (end - max(start, position))]
        position = end
    return "".join([*pieces, text[position:]])
