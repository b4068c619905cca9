"""Recognise letters that do not belong to a language: Greek symbols in formulas, and letters that draw a face."""

import unicodedata

import regex

_ALPHABET = "αβγδεζηθικλμνξοπρστυφχψω"
_MAX_SYMBOL_LETTERS = 4
_OPERATOR = regex.compile(r"[\p{Sm}\p{Nd}\p{No}^_/*·⋅(){}\[\]|−]|(?<![\p{L}])[a-zA-Z](?![\p{L}])")

_REACH = 12  # characters of a face to either side of a letter
_FACE_SIGN = regex.compile(r"[^\P{S}+<>=|~$`]|[・･•｡°*¯´︵﹏‿⌒￣ﾟ゜꒳⁀^;；]|\p{Mn}")
_FACE_END = regex.compile(r"[\s\p{N}]")
_BRACKET = regex.compile(r"[()（）ʕʔ\[\]{}|\\/]")


def is_symbol(text: str, start: int, end: int) -> bool:
    """
    Whether the Greek letters from `start` to `end` are symbols and not a word.

    Symbols are one or two letters, a part of the alphabet in order, or up to four letters beside an operator, a digit
    or a single Latin letter. Words have accents.
    """
    letters = text[start:end]
    plain = letters.casefold()
    if len(letters) == 1:
        return True
    if len(letters) > _MAX_SYMBOL_LETTERS or any(letter not in _ALPHABET + "ςϑϕϵϱϖϰ" for letter in plain):
        return False
    if len(letters) <= 2 or plain in _ALPHABET:
        return True
    beside = text[max(0, start - 1) : start], text[end : end + 1]
    return any(character and _OPERATOR.match(character) for character in beside)


def draws_face(text: str, start: int, end: int) -> bool:
    """
    Whether a letter is part of a face of signs, as Д in (ﾟДﾟ) or ಠ in ಠ_ಠ.

    It has no letters directly beside it. It is between the two eyes of a face in brackets, or is one of the eyes.
    """
    letter = text[start:end]
    if len(set(unicodedata.normalize("NFC", letter))) != 1 or len(letter) > 2:
        return False
    left, reached_left = _around(text, start - 1, -1)
    right, reached_right = _around(text, end, 1)
    around = left + letter + right
    if not (reached_left and reached_right):
        return False
    if _is_twin(left, letter, right):
        return True
    signs = sum(1 for _ in _FACE_SIGN.finditer(around)) + _num_repeated(around)
    return signs >= 2 and _BRACKET.search(around) is not None


def _around(text: str, place: int, step: int) -> tuple[str, bool]:
    """The characters on one side up to a space or a word, and whether they end there."""
    found = ""
    script_before = ""
    for _ in range(_REACH):
        if not 0 <= place < len(text) or _FACE_END.match(text[place]):
            return found, True
        character = text[place]
        if character.isalpha():
            script = unicodedata.name(character, "").split(" ")[0]
            if script == script_before:  # a word begins: the face ended before it
                return (found[1:] if step < 0 else found[:-1]), bool(found[:-1])
            script_before = script
        else:
            script_before = ""
        found = character + found if step < 0 else found + character
        place += step
    return found, False


def _is_twin(left: str, letter: str, right: str) -> bool:
    """ಠ_ಠ: the same letter twice with a mouth of signs between them."""
    for side in (left[::-1], right):
        mouth, found, _ = side.partition(letter)
        if (
            found
            and 1 <= len(mouth) <= 3
            and not any(c.isalnum() or c.isspace() or c in ",.;:、，。-/" for c in mouth)
        ):
            return True
    return False


def _num_repeated(around: str) -> int:
    letters = [character for character in around if character.isalpha()]
    return len(letters) - len(set(letters))
