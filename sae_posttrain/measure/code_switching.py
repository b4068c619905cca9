"""
Where an answer leaves its language, by script: spans, counts, and the two rules that flag an answer.

- `any`: the published rule of SASFT (https://huggingface.co/papers/2507.14894, `cs_detect.py`): one character of
  another script anywhere in the response is enough; nothing is excused.
- `unexpected`: the same, less what stands there for a reason: code, URLs, LaTeX, short quotations and glosses, text
  copied from the prompt or found in the reference. Excused spans are kept, with their reason.
"""

import unicodedata
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

import regex

from .scripts import (
    ScannedText,
    has_chinese_only_form,
    letters_of,
    own_scripts,
    primary_code,
    scripts_allowed,
    scripts_counted,
)

THRESHOLDS: tuple[int, ...] = (1, 2, 5)
"""Numbers of foreign characters at which rates are reported: a stray character is not a switched paragraph."""

MAX_QUOTE_CHARS = 30
"""Longest quotation or gloss that is excused, in characters between the marks."""

# In Japanese text without any kana, this many Han characters are taken for Chinese.
_KANA_FREE_HAN = 8

_MARKUP_BEFORE_GLOSS = " \t\u00a0*_~\"'”’»」』`"

_THINK = regex.compile(r"<think>(.*?)(?:</think>|\Z)", regex.DOTALL)

# The leftmost opening wins, so a `$` inside code is code. A fence, like `<think>`, may be left open: the answer was
# cut.
# Other letters belong to a URL behind a separator only: in `…/file然后` the text goes on without a space.
# Lengths are bounded where an opening that never closes would be looked for through the whole answer, each time.
_EXCUSED_AREA = regex.compile(
    r"""
      (?P<code> ^[ \t>]*(?P<fence>`{3,}|~{3,}) .*? (?:^[ \t>]*(?P=fence)[`~]*(?=\s)|\Z)
              | (?<!`)(?P<ticks>`+)(?!`) [^\n]{1,2000}? (?<!`)(?P=ticks)(?!`) )
    | (?P<latex> \$\$ .{1,2000}? \$\$
              | \\\[ .{1,2000}? \\\]
              | \\\( [^\n]{1,2000}? \\\)
              | \\begin\{(?P<name>[a-zA-Z]+\*?)\} .{0,4000}? \\end\{(?P=name)\}
              | (?<![\\$\w]) \$(?![\s\d$]) [^$\n]+ (?<![\s\\])\$(?![\d$])
              | (?<![\\$\w]) \$(?=\d[^$\n]*[\\^_=+{]) [^$\n]+ (?<![\s\\])\$(?![\d$]) )
    | (?P<url> (?: \b(?:https?|ftp)://[a-zA-Z0-9.\-:@%_]+ | \bwww\.[a-zA-Z0-9.\-]+ )
               (?: [/?\#] (?: [!\#-'+-;=?-Z\\^_a-z|~]           # ASCII without quotes, brackets and stars
                            | \([^\s()]*\)
                            | (?<=[/?\#=&\-_.~%+:]|[^\x00-\x7F]) [^\x00-\x7F\s，。；：！？、（）「」『』《》【】“”]
                          )* )? )
    """,
    regex.VERBOSE | regex.DOTALL | regex.MULTILINE,
)

QUOTED = regex.compile(
    r"""  “[^“”\n]*” | ‘[^‘’\n]*’ | „[^„“”\n]*[“”] | "[^"\n]*" | (?<!\w)'[^'\n]*' | «[^«»\n]*» | ‹[^‹›\n]*›
        | 「[^「」\n]*」 | 『[^『』\n]*』 | 《[^《》\n]*》 | 〈[^〈〉\n]*〉 | ＂[^＂\n]*＂ """,
    regex.VERBOSE,
)
BRACKETED = regex.compile(r"\([^()\n]*\) | （[^（）\n]*） | \[[^\[\]\n]*\](?!\() | 〔[^〔〕\n]*〕", regex.VERBOSE)


@dataclass(frozen=True)
class Span:
    """
    A maximal run of characters of one foreign script.

    Attributes:
        start (`int`):
            Offset of the first character in the answer as it was given.
        text (`str`):
            The run, as it stands in the answer: `answer[start : start + len(text)]`.
        script (`str`):
            Unicode name of its script, one of `SCRIPTS` or `"Other"`.
        num_chars (`int`):
            Characters that count: of the composed form (NFC), without combining marks and `ー`.
        segment (`str`):
            `"think"` inside `<think>…</think>`, otherwise `"answer"`.
        excused (`str` or `None`):
            Why it is expected: `"code"`, `"url"`, `"latex"`, `"symbol"` (a lone Greek letter), `"prompt"`,
            `"reference"`, `"quote"` or `"bracket"`; `None` if it is unexpected.
    """

    start: int
    text: str
    script: str
    num_chars: int
    segment: str
    excused: str | None

    @property
    def end(self) -> int:
        """Offset behind the last character."""
        return self.start + len(self.text)


@dataclass(frozen=True)
class Switches:
    """
    What [`find_switches`] found in one answer.

    `<think>…</think>` counts for `any`, since the published rule reads the whole response, but not for `unexpected`;
    its unexcused spans are counted by `num_unexpected_in_think`.

    Attributes:
        spans (`tuple[Span, ...]`):
            Every run of a script that counts, excused or not, in order.
        script_counts (`dict[str, int]`):
            Characters of each script in the whole answer, own and foreign; those of no script are in none.
        num_replacement_chars (`int`):
            U+FFFD in the answer: bytes that were not text. They belong to no script and are never a switch.
    """

    spans: tuple[Span, ...]
    script_counts: dict[str, int]
    num_replacement_chars: int

    @property
    def num_any(self) -> int:
        """Foreign characters, excused or not."""
        return sum(span.num_chars for span in self.spans)

    @property
    def num_unexpected(self) -> int:
        """Foreign characters outside `<think>` that nothing excuses."""
        return sum(span.num_chars for span in self.spans if span.excused is None and span.segment == "answer")

    @property
    def num_unexpected_in_think(self) -> int:
        """Foreign characters inside `<think>` that nothing excuses."""
        return sum(span.num_chars for span in self.spans if span.excused is None and span.segment == "think")

    @property
    def num_excused(self) -> int:
        """Foreign characters that are excused, in both segments."""
        return sum(span.num_chars for span in self.spans if span.excused is not None)

    @property
    def num_letters(self) -> int:
        """Characters of any script."""
        return sum(self.script_counts.values())

    @property
    def any(self) -> bool:
        """The published rule: at least one foreign character, anywhere, for whatever reason."""
        return self.any_at_least(1)

    @property
    def unexpected(self) -> bool:
        """At least one foreign character outside `<think>` that nothing excuses."""
        return self.unexpected_at_least(1)

    def any_at_least(self, num_chars: int) -> bool:
        """Whether the answer holds `num_chars` or more foreign characters in all."""
        return self.num_any >= num_chars

    def unexpected_at_least(self, num_chars: int) -> bool:
        """Whether the answer holds `num_chars` or more unexpected characters in all."""
        return self.num_unexpected >= num_chars


def find_switches(
    answer: str,
    *,
    lang: str,
    prompt: str = "",
    reference: str | None = None,
    target_lang: str | None = None,
    target_scripts: Iterable[str] | None = None,
    allowed_scripts: Iterable[str] | None = None,
    max_quote_chars: int = MAX_QUOTE_CHARS,
) -> Switches:
    """
    Finds the runs of an answer that are written in a script its language does not use.

    Only scripts are compared, so English in a Spanish answer is invisible, and so is any Latin word in any language.
    Three pairs need more than the script:

    - *Han in Japanese*: a run counts if it holds a form that Japanese does not have (one that cp932 cannot encode,
      such as 习 in 习近平). It misses Chinese that is written in forms Japanese has too, such as 習近平: a lower
      bound.
    - *Han in Korean* counts; the usual gloss, 조국(祖國), is excused as a bracket.
    - *Kana in Chinese* counts.

    A run is excused, in this order, inside code, a URL or LaTeX; as a lone Greek letter; if it occurs in the prompt or
    the reference; in quotation marks, if the rest of the line has text the language allows; in brackets behind a word
    the language allows (a gloss). Quotations and glosses above `max_quote_chars` are not excused. A prompt that asks
    for another language is not recognised: give that language as `lang`, or the scripts as `allowed_scripts`.

    Args:
        answer (`str`):
            The whole response. An unclosed `<think>` runs to the end; a lone `</think>` closes what is before it.
        lang (`str`):
            Language the answer should be in: a code or name such as `"ko"`, `"kor_Hang"` or `"Korean"`. A region
            behind it, as in `"zh-TW"`, is ignored; an unusual script, as in `"uz-Cyrl"`, is the one allowed.
        prompt (`str`, *optional*, defaults to `""`):
            What the model was asked; runs copied from it are excused.
        reference (`str`, *optional*):
            A correct answer; runs that occur in it are excused.
        target_lang (`str`, *optional*):
            Count only switches into this language, e.g. `"zh"` for Han. By default every foreign script counts.
        target_scripts (`Iterable[str]`, *optional*):
            The same as Unicode script names, e.g. `["Han"]`. Give one of the two.
        allowed_scripts (`Iterable[str]`, *optional*):
            Scripts the answer may use, in place of those of `lang`; then `lang` may be any string.
        max_quote_chars (`int`, *optional*, defaults to `30`):
            Longest quotation or gloss that is excused, in characters. 0 excuses none.

    Returns:
        [`Switches`]: the spans, with both rules and all counts.

    Raises:
        ValueError: If a language or script is unknown, or if nothing could count, because every target script is
            allowed in `lang` (any Latin target, or two languages of one script).
    """
    allowed = scripts_allowed(lang, allowed_scripts)
    counted = scripts_counted(lang, allowed, target_lang, target_scripts)

    foreign: list[tuple[int, str, str, int]] = []
    japanese_han = primary_code(lang) == "ja" and "Han" in counted and "Han" in allowed
    scanned = ScannedText(answer)
    for start, text, script, num_chars in scanned.runs(counted):
        if not (japanese_han and script == "Han" and not has_chinese_only_form(text)):
            foreign.append((start, text, script, num_chars))

    spans: tuple[Span, ...] = ()
    if foreign:
        context = _Context(answer, allowed, prompt, reference, max_quote_chars)
        spans = tuple(
            Span(start, text, script, num_chars, context.segment(start), context.excuse(start, text, script))
            for start, text, script, num_chars in foreign
        )
    return Switches(spans=spans, script_counts=scanned.counts(), num_replacement_chars=answer.count("\ufffd"))


def right_language(answer: str, *, lang: str) -> bool | None:
    """
    Whether the answer is written in the script of its language.

    True if at least half of its letters belong to the language's own script: Han for `zh`, Hangul for `ko`, Latin for
    `en` and `es`. Names and terms in Latin are thus free in a Korean answer until they outweigh it. Code, URLs, LaTeX
    and `<think>…</think>` are left out. Japanese needs kana as well, unless it is a few Han characters without a
    Chinese form. It is a test of script: it cannot tell English from Spanish, nor Russian from Ukrainian.

    Args:
        answer (`str`):
            The whole response.
        lang (`str`):
            Language the answer should be in, as an ISO 639 code.

    Returns:
        `bool` or `None`: `None` if the answer has no letters to judge.

    Raises:
        ValueError: If the language is unknown.
    """
    own = own_scripts(lang)
    areas = [
        area
        for start, end, segment in segments_of(answer)
        if segment == "answer"
        for area in plain_areas(answer, start, end)
    ]
    scanned = [ScannedText(answer[start:end]) for start, end in areas]
    counts: Counter[str] = Counter()
    for text in scanned:
        counts.update(text.counts())
    if not counts.total():
        return None
    num_own = sum(counts[script] for script in own)
    if primary_code(lang) == "ja" and num_own == counts["Han"]:
        han = (run for text in scanned for _, run, _, _ in text.runs(frozenset({"Han"})))
        if num_own >= _KANA_FREE_HAN or any(map(has_chinese_only_form, han)):
            return False
    return 2 * num_own >= counts.total()


class _Places:
    """Stretches of the answer that do not overlap, each with the reason why a run within it is excused."""

    def __init__(self, places: Iterable[tuple[int, int, str]]) -> None:
        self.places = sorted(places)
        self.starts = [start for start, _, _ in self.places]

    def around(self, start: int, end: int) -> str | None:
        """The reason of the stretch that holds `start` to `end` whole, if there is one."""
        index = bisect_right(self.starts, start) - 1
        return self.places[index][2] if index >= 0 and end <= self.places[index][1] else None


class _Context:
    """What stands around the foreign runs of one answer, worked out only when there are any."""

    def __init__(
        self, answer: str, allowed: frozenset[str], prompt: str, reference: str | None, max_quote_chars: int
    ) -> None:
        self.answer = answer
        self.allowed = letters_of(allowed)
        self.sources = [("prompt", unicodedata.normalize("NFC", prompt))]
        if reference:
            self.sources.append(("reference", unicodedata.normalize("NFC", reference)))
        self.segments = segments_of(answer)
        self.areas = _Places(
            (found.start(), found.end(), str(found.lastgroup))
            for start, end, _ in self.segments
            for found in _EXCUSED_AREA.finditer(answer, start, end)
        )
        self.glosses = [
            _Places(
                (found.start() + 1, found.end() - 1, reason)
                for found in pattern.finditer(answer)
                if found.end() - found.start() - 2 <= max_quote_chars and explains(found.start(), found.end())
            )
            for pattern, reason, explains in (
                (QUOTED, "quote", self._is_quotation),
                (BRACKETED, "bracket", self._is_gloss),
            )
        ]

    def segment(self, start: int) -> str:
        return next(name for segment_start, end, name in self.segments if segment_start <= start < end)

    def excuse(self, start: int, text: str, script: str) -> str | None:
        end = start + len(text)
        if area := self.areas.around(start, end):
            return area
        if script == "Greek" and len(text) == 1:
            return "symbol"
        composed = unicodedata.normalize("NFC", text)
        for name, source in self.sources:
            if composed in source:
                return name
        return next((reason for places in self.glosses if (reason := places.around(start, end))), None)

    def _is_quotation(self, start: int, end: int) -> bool:
        line_start = self.answer.rfind("\n", 0, start) + 1
        line_end = self.answer.find("\n", end)
        line_end = len(self.answer) if line_end < 0 else line_end
        return bool(
            self.allowed.search(self.answer, line_start, start) or self.allowed.search(self.answer, end, line_end)
        )

    def _is_gloss(self, start: int, _end: int) -> bool:
        before = self.answer[max(0, start - 20) : start].rstrip(_MARKUP_BEFORE_GLOSS)  # stops at a line break
        return bool(before) and (before[-1].isdigit() or bool(self.allowed.match(before[-1])))


def segments_of(answer: str) -> list[tuple[int, int, str]]:
    """(start, end, name) of the thinking and the answer, in order, without gaps; tags belong to the thinking."""
    segments = []
    position = 0
    first_open, first_close = answer.find("<think>"), answer.find("</think>")
    if first_close >= 0 and not 0 <= first_open < first_close:  # the chat template had opened it
        position = first_close + len("</think>")
        segments.append((0, position, "think"))
    for found in _THINK.finditer(answer, position):
        segments.append((position, found.start(), "answer"))
        segments.append((found.start(), found.end(), "think"))
        position = found.end()
    segments.append((position, len(answer), "answer"))
    return segments


def plain_areas(answer: str, start: int, end: int) -> Iterable[tuple[int, int]]:
    """(start, end) of what lies between code, URLs and LaTeX."""
    for found in _EXCUSED_AREA.finditer(answer, start, end):
        yield start, found.start()
        start = found.end()
    yield start, end
