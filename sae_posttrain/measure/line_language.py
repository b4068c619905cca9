"""
Which lines of an answer are in another language of the same script: Spanish in English, Ukrainian in Russian.

Scripts do not show these; language identification of whole lines does, if it may only choose between the language
the answer should be in and a few suspects. Needs the extra `lid` (py3langid, which brings its model along).

A line is right, foreign or unknown. Unknown is no fault: there is too little to say that the line left its language.
This is a measure of its own: nothing of it enters the switches of [`find_switches`], which are told by script.
"""

import copy
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib.metadata import version
from itertools import pairwise
from typing import Any

import regex

from .code_switching import BRACKETED, MAX_QUOTE_CHARS, QUOTED, plain_areas, segments_of
from .scripts import can_measure, known_language, letters_of, own_scripts, same_language

MIN_WORDS = 5
"""Fewest words that are judged, names and masked stretches not counted."""

MIN_PROBABILITY = 0.9
"""
Probability from which on a line is said to be in a language; below, its language is unknown. Measured on software help
in English and Spanish only (`benchmarks/help/line_language.py`).
"""

# Two characters of a script that is written without spaces are about a word.
_WORD = regex.compile(
    r"(?:[\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}\p{Tibetan}]\p{M}*){1,2}"
    r"|[\p{L}\p{M}]+(?:['’\-][\p{L}\p{M}]+)*"
)
_SENTENCE_END = regex.compile(r"""[.!?…]+["'”’»)\]*_]*\s+(?=[¿¡"'“‘«(\[*_]*\p{Lu})|[。！？]+""")
_AROUND_WORDS = "\"'“”‘’„«»‹›()[]{}*_~,;:.!?…¿¡"

# A capital, a digit or a joint within a token: `fileName`, `A4`, `com.sun.star`, `Ctrl+S`, `UNO`.
_NOT_A_WORD = regex.compile(r"[\p{L}\d]\p{Lu}|\d|_|[./\\=#$<>@&+]\p{L}")


@dataclass(frozen=True)
class LineLanguage:
    """
    A line or sentence of an answer that was judged.

    Attributes:
        start (`int`):
            Offset of its first character in the answer.
        text (`str`):
            As it stands there: `answer[start : start + len(text)]`.
        language (`str` or `None`):
            The language it is in, the expected one or a suspect; `None` if it cannot be told.
        probability (`float`):
            Of the likeliest language, from 1 / (number of languages to choose from) to 1. It is the model's own, not
            a measured one.
    """

    start: int
    text: str
    language: str | None
    probability: float

    @property
    def end(self) -> int:
        """Offset behind the last character."""
        return self.start + len(self.text)

    def is_foreign(self, lang: str) -> bool:
        """Whether it is known to be in another language than `lang`."""
        return self.language is not None and not same_language(self.language, lang)


def line_languages(
    answer: str,
    *,
    lang: str,
    suspects: Iterable[str],
    prompt: str = "",
    reference: str | None = None,
    min_words: int = MIN_WORDS,
    min_probability: float = MIN_PROBABILITY,
) -> list[LineLanguage]:
    """
    Language of each line of an answer that is long enough to have one.

    A line that holds several sentences of `min_words` words is judged sentence by sentence; a shorter sentence goes
    with the one before it. A switch within a sentence shows only if it takes up most of it.

    Not looked at: `<think>…</think>`, code, URLs, LaTeX, quotations and brackets of at most 30 characters, names (a
    capitalised word that opens no sentence; anything with a digit, or with a capital, a dot, a slash or the like
    inside), scripts that neither `lang` nor a suspect is written in, and lines that stand in the prompt or the
    reference word for word. Code without code marks is looked at, and its keywords are English. German nouns pass
    for names.

    Args:
        answer (`str`):
            The whole response.
        lang (`str`):
            Language the answer should be in, as an ISO 639 code; a region behind it is ignored.
        suspects (`Iterable[str]`):
            Languages it may have switched into. Nothing else is ever found: name few, and those that matter. Each
            further one makes more lines unknown.
        prompt (`str`, *optional*, defaults to `""`), reference (`str`, *optional*):
            What was asked, and a correct answer; whole lines copied from them are not judged.
        min_words (`int`, *optional*, defaults to `5`):
            Fewest words of a line or sentence that is judged.
        min_probability (`float`, *optional*, defaults to `0.9`):
            Probability below which the language counts as unknown.

    Returns:
        `list[LineLanguage]`: the judged lines in order; empty if none is long enough.

    Raises:
        ValueError: If no suspect is given but `lang` itself, a language is unknown, or a number is out of range.
        ImportError: If py3langid is missing.
    """
    if min_words < 1:
        raise ValueError(f"`min_words` must be 1 or more, got {min_words}.")
    if not 0 <= min_probability <= 1:
        raise ValueError(f"`min_probability` must be between 0 and 1, got {min_probability}.")
    suspects = suspects if isinstance(suspects, str) else list(suspects)
    languages = _languages(lang, suspects)
    identifier = _identifier(languages)
    letters = letters_of(frozenset(script for language in (lang, *suspects) for script in own_scripts(language)))
    sources = [" ".join(source.split()) for source in (prompt, reference) if source]
    judged = []
    for start, end, words in _lines(answer, letters, min_words):
        text = answer[start:end]
        if any(" ".join(text.split()) in source for source in sources):
            continue
        language, probability = identifier.classify(" ".join(words))
        judged.append(LineLanguage(start, text, language if probability >= min_probability else None, probability))
    return judged


def line_pass(
    answer: str,
    *,
    lang: str,
    suspects: Iterable[str],
    prompt: str = "",
    reference: str | None = None,
    min_words: int = MIN_WORDS,
    min_probability: float = MIN_PROBABILITY,
) -> bool | None:
    """
    Whether no line of an answer is known to be in a suspect's language; arguments are those of [`line_languages`].

    The line-level pass rate of the Language Confusion Benchmark (https://huggingface.co/papers/2406.20052) is the
    share of answers that pass, but there an unknown line fails.

    Returns:
        `bool` or `None`: `None` if no line is long enough to be judged.

    Raises:
        ValueError, ImportError: As [`line_languages`].
    """
    judged = line_languages(
        answer,
        lang=lang,
        suspects=suspects,
        prompt=prompt,
        reference=reference,
        min_words=min_words,
        min_probability=min_probability,
    )
    return not any(line.is_foreign(lang) for line in judged) if judged else None


def suspects_of(lang: str, lid_languages: Sequence[str]) -> list[str]:
    """
    Those of `lid_languages` that an answer may switch into without its script showing it; `lang` itself is none.

    Into English from any language, since Latin is allowed everywhere; into Russian from Ukrainian, not from English.
    """
    return [other for other in lid_languages if not same_language(lang, other) and not can_measure(lang, other)]


def check_suspects(langs: Iterable[str], lid_languages: Sequence[str]) -> None:
    """
    Checks, before any work, that languages can be told apart in answers in `langs`.

    Raises:
        ValueError: If a language is unknown, or no answer has a suspect that its script does not show.
        ImportError: If py3langid is missing.
    """
    if isinstance(lid_languages, str):
        raise ValueError(f"`lid_languages` is a list of languages, got {lid_languages!r}: pass [{lid_languages!r}].")
    langs = sorted(set(langs))
    measurable = [lang for lang in langs if suspects_of(lang, lid_languages)]
    if not measurable:
        raise ValueError(
            f"`lid_languages` {list(lid_languages)} names no language that answers in {', '.join(langs)} could switch "
            "into unseen by the script. Name languages of the same script, other than the answers' own, or leave it "
            "out: other scripts are measured without it."
        )
    for lang in measurable:
        _identifier(_languages(lang, suspects_of(lang, lid_languages)))


def recorded_rule(lid_languages: Sequence[str]) -> dict[str, Any]:
    """What the verdict on a line depends on, for the settings of an evaluation."""
    return {
        "languages": list(lid_languages),
        "min_words": MIN_WORDS,
        "min_probability": MIN_PROBABILITY,
        "py3langid": version("py3langid"),
    }


def _languages(lang: str, suspects: Iterable[str]) -> frozenset[str]:
    if isinstance(suspects, str):
        raise ValueError(f"`suspects` is a list of languages, got {suspects!r}: pass [{suspects!r}].")
    languages = frozenset({known_language(lang), *map(known_language, suspects)})
    if len(languages) < 2:
        raise ValueError(f"`suspects` must name a language other than {lang!r} that lines may be in.")
    return languages


@lru_cache(maxsize=64)
def _identifier(languages: frozenset[str]) -> Any:
    """The model of py3langid, with nothing but these languages to choose from."""
    identifier = copy.copy(_model())  # the weights are shared
    unknown = sorted(languages - set(identifier.labels))
    if unknown:
        raise ValueError(
            f"py3langid cannot identify {', '.join(unknown)}. It knows: {', '.join(sorted(identifier.labels))}."
        )
    identifier.set_languages(languages)
    return identifier


@lru_cache(maxsize=1)
def _model() -> Any:
    try:
        from py3langid.langid import MODEL_FILE, LanguageIdentifier
    except ImportError as error:
        raise ImportError(
            "Telling languages of one script apart needs py3langid: pip install 'sae_posttrain[lid]'."
        ) from error
    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)


def _lines(answer: str, letters: "regex.Pattern[str]", min_words: int) -> Iterator[tuple[int, int, list[str]]]:
    """(start, end, words) of every line or sentence that has enough words."""
    masked = _masked(answer)
    for line in regex.finditer(r"[^\n]+", masked):
        ends = [found.end() for found in _SENTENCE_END.finditer(masked, *line.span())]
        pieces: list[tuple[int, int, list[str]]] = []
        for start, end in pairwise(dict.fromkeys([line.start(), *ends, line.end()])):
            words = _words(masked[start:end], letters)
            if pieces and min(len(words), len(pieces[-1][2])) < min_words:
                before = pieces.pop()
                start, words = before[0], before[2] + words
            pieces.append((start, end, words))
        for start, end, words in pieces:
            if len(words) >= min_words:
                text = masked[start:end]
                yield start + len(text) - len(text.lstrip()), start + len(text.rstrip()), words


def _words(sentence: str, letters: "regex.Pattern[str]") -> list[str]:
    """The words of a sentence that begin with such a letter, without names."""
    words: list[str] = []
    opens = True
    for token in sentence.split():
        token = token.strip(_AROUND_WORDS)
        found = _WORD.findall(token)
        if found and not _NOT_A_WORD.search(token) and (opens or not found[0][0].isupper()):
            words += filter(letters.match, found)
        opens = opens and not found
    return words


def _masked(answer: str) -> str:
    """The answer at its length, with spaces for all that is not looked at; its line breaks stay."""
    characters = [character if character == "\n" else " " for character in answer]
    for segment_start, segment_end, name in segments_of(answer):
        for start, end in plain_areas(answer, segment_start, segment_end) if name == "answer" else ():
            characters[start:end] = answer[start:end]
    masked = "".join(characters)
    for pattern in (QUOTED, BRACKETED):
        masked = pattern.sub(_blank_if_short, masked)
    return masked


def _blank_if_short(found: "regex.Match[str]") -> str:
    text: str = found.group()
    return " " * len(text) if len(text) - 2 <= MAX_QUOTE_CHARS else text
