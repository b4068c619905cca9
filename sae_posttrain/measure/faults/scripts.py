"""
Scripts of languages: the scripts of each language, runs of one script in a text, and where a switch is visible.

Scripts are Unicode's `Script` property: `々` and `〇` are Han, `㈜` is Hangul; punctuation of any width, digits,
emoji, `ー`, `℃`, `µ`, `№` and `²` belong to no language and never count.
"""

import unicodedata
from collections.abc import Iterable
from functools import lru_cache

import numpy as np
import regex

from ...languages import OWN_SCRIPTS, canonical_language, scripts_of

SCRIPTS: tuple[str, ...] = (
    *dict.fromkeys(script for scripts in OWN_SCRIPTS.values() for script in scripts),
    *("Bopomofo", "Yi", "Syriac", "Thaana", "Mongolian", "Cherokee", "Canadian_Aboriginal", "Tifinagh", "Javanese"),
)
"""Scripts that are distinguished. Characters of all other scripts are counted together as `Other`."""

# Japanese forms that the Shift JIS of Windows lacks: the four such characters of the jōyō list, printing forms that
# JIS X 0213 added, and one of a common name. Without them 頬/頰 alone would make a Japanese word Chinese.
_JAPANESE_BEYOND_CP932 = str.maketrans(
    dict.fromkeys("𠮟塡剝頰俱俠吞噓嚙囊姸屛屢搔摑攢潑瀆焰瘦禱簞繡繫萊蔣蟬蠟軀醬醱顚驒鷗鹼麴麵𠮷")
)

_CLASSES = ("", *SCRIPTS, "Other")
"""Classes of characters: no script, each known script, and any other script."""

_MARK = 255  # combining marks without a script and the long mark of kana, which continue a run

_ASSIGNED = ((0, 0xD800), (0xE000, 0x40000), (0xE0000, 0xE1000))
"""Ranges of code points with a script, without surrogates and empty planes."""

_UNCOUNTED = regex.compile(r"[\p{Script=Inherited}ー]")


def count_scripts(text: str) -> dict[str, int]:
    """
    Number of characters of a text by Unicode script (one of `SCRIPTS` or `"Other"`), the most frequent first. Nothing
    is left out.
    """
    return ScannedText(text).counts()


def same_language(lang: str, other: str) -> bool:
    """Whether two codes or names mean the same language, in any script: `"zh"`, `"zh-TW"`. Unknown: `ValueError`."""
    return known_language(lang) == known_language(other)


def can_measure(lang: str, target_lang: str | None) -> bool:
    """
    Whether a switch from the language of an answer into another (`None`: any) is visible in the script. It is not for
    the same language and for two that share their script. A language in two scripts (`"uz"` and `"uz-Cyrl"`) counts as
    two.
    """
    allowed = scripts_allowed(lang, None)
    if target_lang is None:
        return True
    target = target_scripts_of(target_lang)
    if canonical_language(lang) == canonical_language(target_lang):
        return False
    return bool(_countable(lang, allowed, target))


class ScannedText:
    """A text with the script of each character, looked up once."""

    def __init__(self, text: str):
        self.text = text
        self._classes = _class_of_each(text)

    def counts(self) -> dict[str, int]:
        """What [`count_scripts`] returns."""
        if self._classes is None:
            return _sum_by_script(_runs_with_marks(self.text))
        numbers = np.bincount(self._classes, minlength=len(_CLASSES)).tolist()
        found = [(script, number) for script, number in zip(_CLASSES, numbers) if script and number]
        return dict(sorted(found, key=lambda item: -item[1]))

    def runs(self, scripts: frozenset[str]) -> list[tuple[int, str, str, int]]:
        """(start, text, script, number of characters that count) of every maximal run of one of these scripts."""
        if self._classes is None:
            return [run for run in _runs_with_marks(self.text) if run[2] in scripts]
        places = np.flatnonzero(_members(scripts)[self._classes])
        if not len(places):
            return []
        found = self._classes[places]
        breaks = np.flatnonzero((np.diff(places) > 1) | (found[1:] != found[:-1]))
        starts = places[np.concatenate([[0], breaks + 1])]
        ends = places[np.concatenate([breaks, [len(places) - 1]])] + 1
        return [
            (start, self.text[start:end], _CLASSES[self._classes[start]], end - start)
            for start, end in zip(starts.tolist(), ends.tolist())
        ]


@lru_cache(maxsize=64)
def _members(scripts: frozenset[str]) -> np.ndarray:
    """For each of `_CLASSES`, whether it is one of these scripts."""
    return np.array([script in scripts for script in _CLASSES])


def _class_of_each(text: str) -> np.ndarray | None:
    """For each character, the index of its script in `_CLASSES`; `None` if some characters do not count."""
    if text.isascii():
        return _class_table()[np.frombuffer(text.encode("ascii"), dtype=np.uint8)]
    if not unicodedata.is_normalized("NFC", text):
        return None
    classes = _class_table()[np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype=np.uint32)]
    return None if (classes == _MARK).any() else classes


@lru_cache(maxsize=1)
def _class_table() -> np.ndarray:
    """For every code point, the index of its script in `_CLASSES`; `_MARK` if it continues a run without counting."""
    table = np.zeros(0x110000, dtype=np.uint8)
    for first, behind in _ASSIGNED:
        text = "".join(map(chr, range(first, behind)))
        for found in _RUN.finditer(text):
            table[first + found.start() : first + found.end()] = _CLASSES.index(str(found.lastgroup))
        for found in _UNCOUNTED.finditer(text):
            table[first + found.start()] = _MARK
    return table


def _runs_with_marks(text: str) -> Iterable[tuple[int, str, str, int]]:
    """All runs of a text with combining marks or the long mark of kana, in the form of [`ScannedText.runs`]."""
    for found in _RUN.finditer(text):
        yield found.start(), found.group(), str(found.lastgroup), _count_chars(found.group())


def _sum_by_script(runs: Iterable[tuple[int, str, str, int]]) -> dict[str, int]:
    counts: dict[str, int] = {}
    for _, _, script, num_chars in runs:
        counts[script] = counts.get(script, 0) + num_chars
    return dict(sorted(counts.items(), key=lambda item: -item[1]))


def has_chinese_only_form(run: str) -> bool:
    """Whether a run of Han holds a form that Japanese does not have."""
    try:
        run.translate(_JAPANESE_BEYOND_CP932).encode("cp932")
    except UnicodeEncodeError:
        return True
    return False


@lru_cache(maxsize=64)
def letters_of(scripts: frozenset[str]) -> "regex.Pattern[str]":
    """Pattern of one character of any of these scripts."""
    return regex.compile(rf"[{_script_class(sorted(scripts - {'Other'}))}]")


def primary_code(lang: str) -> str:
    """The language code without a region or script: `zh` for `zh-TW`. Unknown names are cut in the same way."""
    try:
        return canonical_language(lang).split("-")[0]
    except ValueError:
        return lang.strip().lower().replace("_", "-").split("-")[0]


def known_language(lang: str) -> str:
    """The code of a language in `OWN_SCRIPTS`, for any of its scripts; `ValueError` if the language is unknown."""
    return _checked(lang).split("-")[0]


def own_scripts(lang: str) -> tuple[str, ...]:
    """Scripts of a language, as [`scripts_of`] but without adding Latin; `ValueError` if the language is unknown."""
    return scripts_of(_checked(lang))


def target_scripts_of(lang: str) -> frozenset[str]:
    """Scripts that show a switch *into* a language: its own, without the Han that Japanese shares with Chinese."""
    scripts = frozenset(own_scripts(lang))
    return scripts - {"Han"} if known_language(lang) == "ja" and len(scripts) > 1 else scripts


def scripts_allowed(lang: str, allowed_scripts: Iterable[str] | None) -> frozenset[str]:
    """Scripts that an answer may use: the given ones after a check, else those of its language and Latin."""
    if allowed_scripts is not None:
        return _known_scripts(allowed_scripts, "allowed_scripts")
    return frozenset({*own_scripts(lang), "Latin"})


def _checked(lang: str) -> str:
    try:
        return canonical_language(lang)
    except ValueError as error:
        raise ValueError(
            f"{error} For another one, pass the scripts its text may use to `find_switches`, e.g. "
            "`allowed_scripts=['Latin', 'Thai']`."
        ) from None


def scripts_counted(
    lang: str, allowed: frozenset[str], target_lang: str | None, target_scripts: Iterable[str] | None
) -> frozenset[str]:
    """Scripts whose characters count as a switch; `ValueError` if there are none."""
    if target_lang is not None and target_scripts is not None:
        raise ValueError(
            f"Give `target_lang` or `target_scripts`, not both: got {target_lang!r} and {target_scripts!r}."
        )
    if target_lang is not None:
        target = target_scripts_of(target_lang)
    elif target_scripts is not None:
        target = _known_scripts(target_scripts, "target_scripts")
    else:
        return _countable(lang, allowed, frozenset({*SCRIPTS, "Other"}))
    counted = _countable(lang, allowed, target)
    if not counted:
        into = f"into {target_lang!r} " if target_lang is not None else ""
        raise ValueError(
            f"A switch {into}cannot be seen by script in an answer in {lang!r}: {', '.join(sorted(target))} is "
            f"allowed there (allowed: {', '.join(sorted(allowed))}). Latin is allowed in every language, for names "
            "and terms; to count it, pass `allowed_scripts=` without it."
        )
    return counted


def _known_scripts(scripts: Iterable[str], parameter: str) -> frozenset[str]:
    names = frozenset([scripts] if isinstance(scripts, str) else scripts)
    unknown = sorted(names - {*SCRIPTS, "Other"})
    if unknown or not names:
        raise ValueError(
            f"`{parameter}` names no known script: {unknown}. Known: {', '.join(sorted(SCRIPTS))}, Other."
        )
    return names


def _countable(lang: str, allowed: frozenset[str], target: frozenset[str]) -> frozenset[str]:
    """The target scripts that can show a switch. Japanese allows Han, but not all forms of Han."""
    return target - (allowed - {"Han"} if primary_code(lang) == "ja" else allowed)


def _count_chars(run: str) -> int:
    return len(_UNCOUNTED.sub("", unicodedata.normalize("NFC", run)))


def _script_class(scripts: Iterable[str]) -> str:
    return "".join(rf"\p{{Script={script}}}" for script in scripts)


def _run_pattern() -> str:
    # Combining marks without a script and the long mark of kana continue a run without counting.
    none = _script_class(["Common", "Inherited", "Unknown"])
    runs = []
    for script in SCRIPTS:
        marks = r"\p{Script=Inherited}" + ("ー" if script in ("Hiragana", "Katakana") else "")
        runs.append(rf"(?P<{script}>\p{{Script={script}}}[\p{{Script={script}}}{marks}]*+)")
    runs.append(rf"(?P<Other>[^{none}{_script_class(SCRIPTS)}]++)")
    return rf"(?=[^{none}])(?:{'|'.join(runs)})"


_RUN = regex.compile(_run_pattern())
