"""
Find where an answer leaves its language, by script: spans, counts, and the two rules that flag an answer.

- `any`: the published rule of SASFT (https://huggingface.co/papers/2507.14894, `cs_detect.py`). One character of
  another script anywhere in the response is enough; nothing is excused.
- `unexpected`: as `any`, but characters that have a reason are excused: code, formulas, markup, addresses and paths,
  quoted terms and glosses, text copied from the prompt or found in the reference. Excused spans are kept, with their
  reason.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Iterable
from dataclasses import dataclass

import regex

from .areas import areas_of, plain_areas
from .chinese_in_japanese import chinese_stretches, has_chinese_character
from .clauses import Limits, is_clause
from .copied_text import Sources
from .quotations import MAX_QUOTE_CHARS, Pair, brackets_of, marks_title, quotations_of
from .scripts import (
    ScannedText,
    has_chinese_only_form,
    known_language,
    letters_of,
    own_scripts,
    primary_code,
    scripts_allowed,
    scripts_counted,
)
from .segments import segment_at, segments_of
from .signs import draws_face, is_symbol
from .words import count_words, own_share

THRESHOLDS: tuple[int, ...] = (1, 2, 5)
"""Numbers of foreign characters at which rates are reported, to separate a single character from a paragraph."""

# In Japanese text without any kana, this many Han characters count as Chinese.
_KANA_FREE_HAN = 8

_CHINESE = ("zh", "yue")

_MARKUP_BEFORE_GLOSS = " \t\u00a0*_~\"'”’»」』`"


@dataclass(frozen=True)
class Span:
    """
    A maximal run of characters of one foreign script.

    Attributes:
        start: Offset of the first character in the answer as it was given.
        text: The run as in the answer: `answer[start : start + len(text)]`.
        script: Unicode name of its script, one of `SCRIPTS` or `"Other"`.
        num_chars: Number of characters that count, in the composed form (NFC), without combining marks and `ー`.
        segment: `"think"` inside `<think>…</think>`, otherwise `"answer"`.
        excused: Reason why the run is expected: `"code"`, `"latex"`, `"markup"`, `"address"`, `"url"`, `"path"`,
            `"tag"`, `"symbol"` (Greek in a formula, digits), `"reading"` (Bopomofo in Chinese), `"face"`, `"name"`
            (Han in Japanese), `"prompt"`, `"reference"`, `"quote"` or `"bracket"`; `None` if it is unexpected.
    """

    start: int
    text: str
    script: str
    num_chars: int
    segment: str
    excused: str | None

    @property
    def end(self) -> int:
        """Offset after the last character."""
        return self.start + len(self.text)


@dataclass(frozen=True)
class Switches:
    """
    What [`find_switches`] found in one answer.

    `<think>…</think>` counts for `any`, because the published rule reads the whole response, but not for `unexpected`.
    `num_unexpected_in_think` counts the foreign characters there that nothing excuses.

    Attributes:
        spans: Every run of a script that counts, excused or not, in order.
        script_counts: Number of characters of each script in the whole answer, own and foreign. Characters without a
            script are not counted.
        num_replacement_chars: Number of U+FFFD in the answer (bytes that are not text). They have no script and are
            never a switch.
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
    def any(self) -> bool:
        """The published rule: at least one foreign character anywhere, for any reason."""
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
    think_opened: bool = False,
) -> Switches:
    """
    Find the runs of an answer that are written in a script its language does not use.

    Only scripts are compared, so English in a Spanish answer is not found, and neither is a Latin word in any
    language. Three pairs need more than the script:

    - *Han in Japanese*: a run counts if it holds a form that Japanese does not have (cp932 cannot encode it, such as
      习 in 习近平). It also counts if its sentence or clause has no kana up to its end and has Chinese grammar
      (我們明天早上八點出發). Nouns in forms that both languages have, such as 習近平, are not found, so the count is
      a lower bound.
    - *Han in Korean* counts; the usual gloss, 조국(祖國), is excused as a bracket.
    - *Kana in Chinese* counts.

    A run is excused, in this order:

    - in code, LaTeX, markup (an attribute, an element with `lang=`, ruby), an e-mail address, a URL or domain, a path
      or file name, a hashtag or mention. A clause that follows a URL, path, file name or tag without a space does not
      belong to it: `https://example.com/help/然后点击`;
    - as digits, Greek letters of a formula, Bopomofo in Chinese, a letter of a face such as (ﾟДﾟ), or, in Japanese,
      Han of a name that Japanese does not have, as in 深圳;
    - if it occurs in the prompt or the reference, in any form (simplified, traditional, Japanese), case or width, or
      with other spaces;
    - in quotation marks, if the rest of the line has text that the language allows; in brackets after a word that the
      language allows or that is excused itself (a gloss). A clause is not excused. A clause has words such as *then*,
      *click* or *please*, or more than 12 characters of Han and kana, or more than 18 of another script. The length
      does not matter for a title: text that begins with a capital, or text between 《 and 》.

    A prompt that asks for another language is not recognised: give that language as `lang`, or the scripts as
    `allowed_scripts`.

    Args:
        answer (`str`):
            The whole response. An unclosed `<think>` runs to the end; a lone `</think>` closes what is before it.
        lang (`str`):
            Language the answer should be in: a code or name such as `"ko"`, `"kor_Hang"` or `"Korean"`. A region, as
            in `"zh-TW"`, is ignored. If a script is named, as in `"uz-Cyrl"`, that script is allowed.
        prompt (`str`, *optional*, defaults to `""`):
            The prompt of the answer; runs copied from it are excused.
        reference (`str`, *optional*):
            A correct answer; runs that occur in it are excused.
        target_lang (`str`, *optional*):
            Count only switches into this language, e.g. `"zh"` for Han. By default every foreign script counts.
        target_scripts (`Iterable[str]`, *optional*):
            Count only these scripts, as Unicode script names, e.g. `["Han"]`. Give this or `target_lang`, not both.
        allowed_scripts (`Iterable[str]`, *optional*):
            Scripts the answer may use, instead of those of `lang`; then `lang` may be any string.
        max_quote_chars (`int`, *optional*, defaults to `30`):
            Longest quotation or gloss that is excused, in characters. 0 excuses none.
        think_opened (`bool`, *optional*, defaults to `False`):
            Whether the prompt, as the model got it, ends with an opened `<think>`, as with the templates of R1 and
            QwQ. Then the answer is thinking up to `</think>`, or all of it if it was cut before.

    Returns:
        [`Switches`]: the spans, with both rules and all counts.

    Raises:
        ValueError: If a language or script is unknown, or if nothing could count, because every target script is
            allowed in `lang` (any Latin target, or two languages of one script).
    """
    allowed = scripts_allowed(lang, allowed_scripts)
    counted = scripts_counted(lang, allowed, target_lang, target_scripts)
    code = known_language(lang) if allowed_scripts is None else primary_code(lang)

    runs = ScannedText(answer)
    foreign: list[tuple[int, str, str, int, bool]] = []
    japanese_han = code == "ja" and "Han" in counted and "Han" in allowed
    stretches = chinese_stretches(answer) if japanese_han else []
    for start, text, script, num_chars in runs.runs(counted):
        in_chinese = japanese_han and script == "Han" and _within(stretches, start)
        if not japanese_han or script != "Han" or in_chinese or has_chinese_only_form(text):
            foreign.append((start, text, script, num_chars, in_chinese))

    spans: tuple[Span, ...] = ()
    if foreign:
        context = _Context(answer, code, allowed, Sources(prompt, reference), max_quote_chars, think_opened)
        spans = tuple(
            Span(
                start, text, script, num_chars, context.segment(start), context.excuse(start, text, script, in_chinese)
            )
            for start, text, script, num_chars, in_chinese in foreign
        )
    return Switches(spans=spans, script_counts=runs.counts(), num_replacement_chars=answer.count("\ufffd"))


def right_language(answer: str, *, lang: str, think_opened: bool = False) -> bool | None:
    """
    Whether the answer is written in the script of its language; `None` if it has no words to judge.

    The result is true if at least half of its words are in the language's own script: Han for `zh`, Hangul for `ko`,
    Latin for `en` and `es`. Two characters of Han or kana, and four of Thai, count as a word. In a language of another
    script, Latin names do not count: words with a digit, an inner capital or a joining sign (`iPhone`, `Qwen3-1.7B`,
    `from_pretrained`), and capitalised words without small letters after them. If an answer has no word of its own
    language, capitalised words count, so "Click Save" is wrong where Chinese is expected.

    Code, LaTeX, markup, addresses, paths, numbers and `<think>…</think>` (`think_opened`: as in [`find_switches`]) are
    ignored. Japanese also needs kana, unless the answer is a few Han characters without a Chinese form. This tests
    only the script: it does not distinguish English from Spanish, or Russian from Ukrainian.
    """
    code = known_language(lang)
    own = {*own_scripts(lang), *(["Bopomofo"] if code in _CHINESE else [])}
    areas = [
        answer[area_start:area_end]
        for start, end, segment in segments_of(answer, think_opened=think_opened)
        if segment == "answer"
        for area_start, area_end in plain_areas(answer, start, end)
    ]
    words = count_words(areas)
    share = own_share(words, own)
    if share is None:
        return None
    if code == "ja" and words.by_script["Han"] and not (words.by_script["Hiragana"] or words.by_script["Katakana"]):
        runs = [run for area in areas for run in ScannedText(area).runs(frozenset({"Han"}))]
        if sum(run[3] for run in runs) >= _KANA_FREE_HAN or any(has_chinese_character(run[1]) for run in runs):
            return False
    return share >= 0.5


def _within(stretches: list[tuple[int, int]], place: int) -> bool:
    index = bisect_right(stretches, place, key=lambda stretch: stretch[0]) - 1
    return index >= 0 and place < stretches[index][1]


class _Context:
    """The text around the foreign runs of one answer, computed only if there are runs. Ask for runs in their order."""

    def __init__(
        self,
        answer: str,
        lang: str,
        allowed: frozenset[str],
        sources: Sources,
        max_quote_chars: int,
        think_opened: bool,
    ) -> None:
        self.answer = answer
        self.lang = lang
        self.allowed = letters_of(allowed)
        self.never_foreign = letters_of(allowed - {"Han"} if lang == "ja" else allowed)
        self.sources = sources
        self.segments = segments_of(answer, think_opened=think_opened)
        self.areas = [area for start, end, _ in self.segments for area in areas_of(answer, start, end)]
        self.max_quote_chars = max_quote_chars
        self.quotations = quotations_of(answer, max_quote_chars)
        self.brackets = brackets_of(answer, max_quote_chars)
        self.own_letters: list[int] = []
        self.line_breaks: list[int] = []
        if self.quotations:
            self.own_letters = [found.start() for found in self.allowed.finditer(answer)]
            self.line_breaks = [found.start() for found in regex.finditer("\n", answer)]
        self.excused_ends: set[int] = set()  # ends of excused runs, because a gloss may follow an excused word

    def segment(self, start: int) -> str:
        return segment_at(self.segments, start)

    def excuse(self, start: int, text: str, script: str, in_chinese: bool) -> str | None:
        reason = self._reason(start, start + len(text), text, script, in_chinese)
        if reason is not None:
            self.excused_ends.add(start + len(text))
        return reason

    def _reason(self, start: int, end: int, text: str, script: str, in_chinese: bool) -> str | None:
        index = bisect_right(self.areas, start, key=lambda area: area[0]) - 1
        if index >= 0 and end <= self.areas[index][1]:
            return self.areas[index][2]
        if text.isdecimal() or (script == "Greek" and is_symbol(self.answer, start, end)):
            return "symbol"
        if script == "Bopomofo" and self.lang in _CHINESE:
            return "reading"
        if draws_face(self.answer, start, end):
            return "face"
        if script == "Han" and self.lang == "ja" and not in_chinese and not has_chinese_character(text):
            return "name"
        if source := self.sources.holding(text):
            return source
        for pair in _around(self.quotations, start, end, self.max_quote_chars):
            if self._is_quotation(pair) and not self._is_clause(pair):
                return "quote"
        for pair in _around(self.brackets, start, end, self.max_quote_chars):
            if self._is_gloss(pair) and not self._is_clause(pair):
                return "bracket"
        return None

    def _is_quotation(self, pair: Pair) -> bool:
        """Whether the line has other text of the language."""
        start, end, _ = pair
        line = bisect_left(self.line_breaks, start)
        line_start = self.line_breaks[line - 1] if line else -1
        line_end = self.line_breaks[line] if line < len(self.line_breaks) else len(self.answer)
        before, behind = bisect_left(self.own_letters, start), bisect_left(self.own_letters, end)
        return (before > 0 and self.own_letters[before - 1] > line_start) or (
            behind < len(self.own_letters) and self.own_letters[behind] < line_end
        )

    def _is_gloss(self, pair: Pair) -> bool:
        """Whether a word is in front of it: a word of the language, a number, or an excused word."""
        start = pair[0]
        window = self.answer[max(0, start - 20) : start]
        before = window.rstrip(_MARKUP_BEFORE_GLOSS)  # stops at a line break
        if not before:
            return False
        place = start - len(window) + len(before)
        return before[-1].isdigit() or bool(self.allowed.match(before[-1])) or place in self.excused_ends

    def _is_clause(self, pair: Pair) -> bool:
        """Whether the foreign text between the marks is more than a term."""
        foreign = self.never_foreign.sub(" ", self.answer[pair[0] + 1 : pair[1] - 1])
        return is_clause(" ".join(foreign.split()), Limits(), title=marks_title(pair[2]))


def _around(pairs: list[Pair], start: int, end: int, max_chars: int) -> Iterable[Pair]:
    """The pairs with `start` to `end` between their marks, the innermost first."""
    index = bisect_left(pairs, start, key=lambda pair: pair[0]) - 1
    while index >= 0 and pairs[index][0] >= start - max_chars - 1:
        if end < pairs[index][1]:
            yield pairs[index]
        index -= 1
