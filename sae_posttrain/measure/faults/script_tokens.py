"""Find the tokens of a vocabulary that write a script: whole characters, and the first bytes of characters."""

import json
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import regex

from .scripts import letters_of, target_scripts_of

_MIN_SHARE = 0.9  # of the letters that begin with given bytes; leaves out `E3`, with which kana also begin
_FALLBACK_BYTE = regex.compile(r"<0x([0-9A-Fa-f]{2})>")
_LETTER = regex.compile(r"\p{L}")


@dataclass(frozen=True)
class ScriptTokens:
    """
    Tokens that write a script.

    Attributes:
        whole: Tokens whose text has a letter of the script.
        partial: Tokens of a byte-level or byte-fallback vocabulary that end within a character, if at least 90 % of
            the letters that this character can be belong to the script: `E4 B8` for Han. Bytes that only continue a
            character belong to no script and are never included.
    """

    whole: tuple[int, ...]
    partial: tuple[int, ...]

    @property
    def ids(self) -> tuple[int, ...]:
        """All token ids, in ascending order."""
        return tuple(sorted({*self.whole, *self.partial}))


def script_tokens(tokenizer: Any, lang: str) -> ScriptTokens:
    """
    Tokens with which a model writes the script of a language.

    Rare characters are written in pieces: a token with the first bytes of a character, then a token with the others. A
    list of whole characters does not cover these (https://huggingface.co/papers/2507.05686).

    Args:
        tokenizer (`PreTrainedTokenizerBase`): The tokenizer; added and special tokens count by their text like any
            other.
        lang: Code of the language, such as `"zh"` for Han. For Japanese, only kana count, as everywhere here.

    Returns the ids of the tokens.
    """
    scripts = target_scripts_of(lang)
    if "Latin" in scripts:
        raise ValueError(
            f"{lang!r} is written in Latin, which answers in every language use: no list of tokens stands for it. "
            "Hold features down instead: `find_features(…)`."
        )
    pattern = letters_of(scripts)
    read_bytes = _byte_reader(tokenizer)
    whole, partial = [], []
    for token in range(len(tokenizer)):
        content = read_bytes(token)
        text, tail = _split_tail(content)
        if pattern.search(text):
            whole.append(token)
        elif tail and _share(tail, scripts) >= _MIN_SHARE:
            partial.append(token)
    if not whole and not partial:
        raise ValueError(
            f"The vocabulary has no token of {', '.join(sorted(scripts))}, the script of {lang!r}: the model can "
            "write it only byte by byte."
        )
    return ScriptTokens(tuple(whole), tuple(partial))


def _byte_reader(tokenizer: Any) -> Any:
    """A function that returns the bytes of a token id."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    decoder = json.dumps(json.loads(backend.to_str()).get("decoder")) if backend is not None else ""
    byte_of = _byte_alphabet() if '"ByteLevel"' in decoder else {}

    def read(token: int) -> bytes:
        piece = tokenizer.convert_ids_to_tokens(token)
        if piece is None:  # a gap in the ids
            return b""
        if byte_of and all(char in byte_of for char in piece):
            return bytes(byte_of[char] for char in piece)
        fallback = _FALLBACK_BYTE.fullmatch(piece)
        if fallback:
            return bytes([int(fallback[1], 16)])
        return tokenizer.decode([token]).replace("\ufffd", "").encode()

    return read


@lru_cache(maxsize=1)
def _byte_alphabet() -> dict[str, int]:
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    return {char: byte for byte, char in bytes_to_unicode().items()}


def _split_tail(content: bytes) -> tuple[str, bytes]:
    """The whole characters in some bytes, and the incomplete character at their end."""
    for length in (1, 2, 3):
        tail = content[-length:]
        if len(tail) == length and 0xC2 <= tail[0] <= 0xF4 and length < _num_bytes(tail[0]):
            return content[:-length].decode("utf-8", "ignore"), tail
    return content.decode("utf-8", "ignore"), b""


def _num_bytes(lead: int) -> int:
    """Number of bytes of a UTF-8 character, from its first byte."""
    return 2 if lead < 0xE0 else 3 if lead < 0xF0 else 4


@lru_cache(maxsize=4096)
def _share(prefix: bytes, scripts: frozenset[str]) -> float:
    """Share of the script among the letters that begin with these bytes in UTF-8."""
    missing = _num_bytes(prefix[0]) - len(prefix)
    first = _code_point(prefix + b"\x80" * missing)
    last = _code_point(prefix + b"\xbf" * missing)
    possible = "".join(chr(point) for point in range(first, min(last, 0x10FFFF) + 1) if not 0xD800 <= point < 0xE000)
    letters = _LETTER.findall(possible)
    return sum(1 for _ in letters_of(scripts).finditer("".join(letters))) / len(letters) if letters else 0.0


def _code_point(sequence: bytes) -> int:
    """Code point of a UTF-8 sequence, including overlong sequences and surrogates."""
    value = sequence[0] & (0xFF >> (len(sequence) + 1))
    for byte in sequence[1:]:
        value = value << 6 | byte & 0x3F
    return value
