"""
Which lines of an answer are in another language of the same script: Spanish in English, Ukrainian in Russian.

Scripts do not show these; language identification of whole lines does, if it may only choose between the language
the answer should be in and a few suspects. Needs the extra `lid` (py3langid, which brings its model along).

A line is right, foreign or unknown. Unknown is no fault: there is too little to say that the line left its language.
This is a measure of its own: nothing of it enters the switches of [`find_switches`], which are told by script.
"""

import copy
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib.metadata import version
from typing import Any

from .line_units import masked_answer, units_of
from .scripts import can_measure, known_language, own_scripts, same_language

MIN_WORDS = 5
"""Fewest words that are judged, names and masked stretches not counted."""

MIN_PROBABILITY = 0.9
"""
Probability from which on a line is said to be in a language; below, its language is unknown. Measured on software help
in English and Spanish only (`benchmarks/help/line_language.py`).
"""


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
            Of the likeliest language, from 1 / (number of languages to choose from) to 1; of lines that were judged
            together, of them all. It is the model's own, not a measured one.
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
    think_opened: bool = False,
) -> list[LineLanguage]:
    """
    Language of each line of an answer that is long enough to have one.

    A line that holds several sentences of `min_words` words is judged sentence by sentence; a shorter sentence goes
    with the one before it. A switch within a sentence shows only if it takes up most of it. Lines that are too short,
    as bullets are, titles and lines in capitals are judged together with those beside them, and each gets the verdict;
    a single short line is judged with the other single ones of the answer. In titles and capitals every word counts,
    if a small word (*the*, *de*) shows that they are no list of names.

    Not looked at: `<think>…</think>`, code, LaTeX, markup, addresses, paths and tags, quotations and brackets of at
    most 30 characters, a longer quotation (an error message) in a line that says something itself, names (a
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
            Fewest words that are judged, of a line, a sentence or several short lines.
        min_probability (`float`, *optional*, defaults to `0.9`):
            Probability below which the language counts as unknown.
        think_opened (`bool`, *optional*, defaults to `False`):
            Whether the prompt ends in an opened `<think>`, as in [`find_switches`].

    Returns:
        `list[LineLanguage]`: the judged lines in order; empty if there are too few words.

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
    scripts = frozenset(script for language in (lang, *suspects) for script in own_scripts(language))
    sources = [" ".join(source.split()) for source in (prompt, reference) if source]
    masked = masked_answer(answer, think_opened)

    def is_copied(start: int, end: int) -> bool:
        text = " ".join(answer[start:end].split())
        return any(text in source for source in sources)

    judged = []
    for unit in units_of(masked, languages, scripts, min_words, is_copied):
        language, probability = identifier.classify(" ".join(unit.words))
        language = language if probability >= min_probability else None
        judged += [LineLanguage(start, answer[start:end], language, probability) for start, end in unit.places]
    judged.sort(key=lambda line: line.start)
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
    think_opened: bool = False,
) -> bool | None:
    """
    Whether no line of an answer is known to be in a suspect's language; arguments are those of [`line_languages`].

    The line-level pass rate of the Language Confusion Benchmark (https://huggingface.co/papers/2406.20052) is the
    share of answers that pass, but there an unknown line fails.

    Returns:
        `bool` or `None`: `None` if there are too few words to judge.

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
        think_opened=think_opened,
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
