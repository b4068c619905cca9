"""
Find lines of an answer that are in another language of the same script: Spanish in English, Ukrainian in Russian.

Scripts do not show such lines. Language identification of whole lines does, if it chooses only between the language
that the answer should be in and a few suspects. It needs the extra `lid` (py3langid, which includes its model).

A line is right, foreign or unknown. An unknown line is not a fault: it has too little text to decide. This is a
separate measure. It does not affect the switches of [`find_switches`], which are found by script.
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
"""Smallest number of words that are judged, not counting names and masked parts."""

MIN_PROBABILITY = 0.9
"""
Smallest probability at which a line is assigned a language; below it, the language is unknown. It was measured only on
software help in English and Spanish (`benchmarks/help/line_language.py`).
"""


@dataclass(frozen=True)
class LineLanguage:
    """
    A line or sentence of an answer that was judged.

    Attributes:
        start: Offset of its first character in the answer.
        text: Text of the line as in the answer: `answer[start : start + len(text)]`.
        language: Language of the line, the expected one or a suspect; `None` if it is unknown.
        probability: Probability of the likeliest language according to the model, from 1 / (number of languages to
            choose from) to 1. It is not calibrated. Lines that were judged together share one probability.
    """

    start: int
    text: str
    language: str | None
    probability: float

    @property
    def end(self) -> int:
        """Offset after the last character."""
        return self.start + len(self.text)

    def is_foreign(self, lang: str) -> bool:
        """Whether the line is known to be in a language other than `lang`."""
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

    A line that holds several sentences of `min_words` words is judged sentence by sentence; a shorter sentence is
    joined to the one before it. A switch within a sentence is found only if it takes up most of the sentence. Bullets
    and other short lines, titles and lines in capitals are judged together with neighbouring ones, and each gets the
    common verdict. A single short line is judged with the other single short lines of the answer. In titles and
    capitals every word counts if a small word (*the*, *de*) shows that the line is not a list of names.

    The following is ignored:

    - `<think>…</think>`, code, LaTeX, markup, addresses, paths and tags
    - quotations and brackets of at most 30 characters, and a longer quotation (an error message) in a line that has
      enough other text
    - names: a capitalised word that does not begin a sentence, and any word with a digit in it or with a capital, a
      dot or a slash inside
    - scripts in which neither `lang` nor a suspect is written
    - lines that occur word for word in the prompt or the reference

    Code without code marks is judged, and its keywords are English. German nouns count as names.

    Args:
        lang: Language the answer should be in, as an ISO 639 code; a region after it is ignored.
        suspects: Languages that the answer may have switched into. Other languages are never found. Name only the few
            that matter, because each further suspect makes more lines unknown.
        prompt: The prompt; whole lines copied from it are not judged.
        reference: A correct answer; whole lines copied from it are not judged.
        min_words: Smallest number of words that are judged, in a line, a sentence or several short lines.
        min_probability: Probability below which the language counts as unknown.
        think_opened: Whether the prompt ends in an opened `<think>`, as in [`find_switches`].

    Returns the judged lines in order; empty if there are too few words.
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


def line_pass(answer: str, *, lang: str, suspects: Iterable[str], **options: Any) -> bool | None:
    """
    Whether an answer passes: no line is known to be in a suspect's language; `None` if there are too few words to
    judge. Arguments are as in [`line_languages`].

    The share of answers that pass corresponds to the line-level pass rate of the Language Confusion Benchmark
    (https://huggingface.co/papers/2406.20052), but in that benchmark an unknown line fails.
    """
    judged = line_languages(answer, lang=lang, suspects=suspects, **options)
    return not any(line.is_foreign(lang) for line in judged) if judged else None


def suspects_of(lang: str, lid_languages: Sequence[str]) -> list[str]:
    """
    Those of `lid_languages` into which an answer can switch without a visible change of script, without `lang` itself.

    English is a suspect in every language, because Latin is allowed everywhere. Russian is a suspect in Ukrainian, but
    not in English.
    """
    return [other for other in lid_languages if not same_language(lang, other) and not can_measure(lang, other)]


def check_suspects(langs: Iterable[str], lid_languages: Sequence[str]) -> None:
    """Check in advance that there are languages to distinguish in answers in `langs`."""
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
    """The settings that the verdict on a line depends on, for the record of an evaluation."""
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
    """The model of py3langid, limited to these languages."""
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
            "To distinguish languages of one script, install py3langid: pip install 'sae_posttrain[lid]'."
        ) from error
    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
