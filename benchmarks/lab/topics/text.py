"""
How the topics write a text: templates with marked words, Korean particles, capitals, tables of words.

A marked word `[apples~苹果]` stands in a template for `apples` and says which Chinese word could stand in its place.
`사과(을/를)` is written `사과를`: the particle follows the sound before it.
"""

import hashlib
import re
from dataclasses import dataclass
from types import SimpleNamespace

LANGS = ("en", "zh", "ko", "ru")
MARK = re.compile(r"\[([^\[\]~]+)~([^\[\]~]+)\]")
PARTICLE = re.compile(
    r"([가-힣0-9])((?:~[^\[\]]*\])?['’]?)\((이에요|이라는|으로|이|을|은|과)/(예요|라는|로|가|를|는|와)\)"
)
SENTENCE_START = re.compile(r"(^|[.?!] |[.?!]\n)(['\"«]?\[?)([a-zа-яё])")
L_DIGITS = "178"  # 일, 칠, 팔 end in ㄹ
OPEN_DIGITS = "2459"  # 이, 사, 오, 구 end in a vowel


@dataclass(frozen=True)
class Draft:
    """One question in every language: `texts[lang]` is (prompt, answer with marks, check)."""

    id: str
    kind: str
    texts: dict[str, tuple[str, str, str]]


def unmarked(text: str) -> str:
    return MARK.sub(r"\1", text)


def with_particles(text: str) -> str:
    """Choose each `(을/를)` by the final sound of the syllable or digit before it."""

    def choose(match: re.Match) -> str:
        last, between, closed, open_ = match.groups()
        if last.isdigit():
            final, ends_in_l = last not in OPEN_DIGITS, last in L_DIGITS
        else:
            jongseong = (ord(last) - 0xAC00) % 28  # 0: no final consonant, 8: ㄹ
            final, ends_in_l = jongseong > 0, jongseong == 8
        if closed == "으로" and ends_in_l:
            final = False
        return last + between + (closed if final else open_)

    return PARTICLE.sub(choose, text)


def with_capitals(text: str) -> str:
    return SENTENCE_START.sub(lambda m: m[1] + m[2] + m[3].upper(), text)


def word_table(fields: dict[str, str], rows: str) -> dict[str, dict[str, SimpleNamespace]]:
    """
    Words by their English form: `table["apple"]["ru"].many` is `[яблок~苹果]`, ready for a template.

    Args:
        fields (`dict[str, str]`):
            Names of the forms of each language, in the order of the cells. `_m` is kept as `m`, without a mark.
        rows (`str`):
            A word a line: English | Chinese | Korean | Russian, the forms with commas between. A line that begins
            with `|` goes on with the line before.
    """
    table = {}
    for row in re.sub(r"\n\s*\|", " |", rows).strip().splitlines():
        cells = dict(zip(LANGS, ([form.strip() for form in cell.split(",")] for cell in row.split("|"))))
        chinese = cells["zh"][0]
        word = {}
        for lang in LANGS:
            names = fields[lang].split()
            assert len(names) == len(cells[lang]), f"{row}: {names} in {lang}"
            word[lang] = SimpleNamespace(
                **{
                    name.removeprefix("_"): form if name.startswith("_") or lang == "zh" else marked(form, chinese)
                    for name, form in zip(names, cells[lang])
                }
            )
        table[cells["en"][0]] = word
    return table


def marked(form: str, chinese: str) -> str:
    """`form` with its Chinese, as it is where it carries marks of its own; an article stays outside the mark."""
    if "[" in form:
        return form
    for article in ("a ", "an ", "the ", "в ", "во ", "на ", "к "):
        if form.startswith(article):
            return f"{article}[{form.removeprefix(article)}~{chinese}]"
    return f"[{form}~{chinese}]"


def russian_number(num: int, one: str, few: str, many: str) -> str:
    """The form of a noun after a number: 1 яблоко, 2 яблока, 5 яблок, 11 яблок, 21 яблоко."""
    if num % 10 == 1 and num % 100 != 11:
        return one
    return few if num % 10 in (2, 3, 4) and num % 100 not in (12, 13, 14) else many


def counted(num: int, thing: dict[str, SimpleNamespace], lang: str) -> str:
    """A number of things: `2 apples`, `2个苹果`, `사과 2개`, `2 яблока`."""
    word = thing[lang]
    if lang == "en":
        return f"{num} {word.sg if num == 1 else word.pl}"
    if lang == "zh":
        return f"{num}{word.m}{word.n}"
    if lang == "ko":
        return f"{word.n} {num}{word.c}"
    return f"{num} {russian_number(num, word.one, word.few, word.many)}"


def choice(id: str, num: int) -> int:
    """A number below `num` that depends on the id alone."""
    return int.from_bytes(hashlib.blake2b(id.encode(), digest_size=8).digest()) % num


def draft(kind: str, id: str, prompts: dict, answers: dict, values: dict, checks: dict | None = None, wording=None):
    """
    A question from templates: `prompts[lang]` and `answers[lang]` are lists of wordings, `values[lang]` fills them.

    With as many answers as prompts each prompt has its own answer; otherwise the id chooses the answer too.

    Args:
        checks (`dict[str, str]`, *optional*):
            Template, in each language, of what only a right answer contains.
        wording (`int`, *optional*):
            Which prompt to take; chosen by the id where not given.
    """
    texts = {}
    for lang in LANGS:
        num_prompt = choice(f"{id} prompt", len(prompts[lang])) if wording is None else wording % len(prompts[lang])
        prompt = prompts[lang][num_prompt].format(**values[lang])
        paired = len(answers[lang]) == len(prompts[lang])
        num_answer = num_prompt if paired else choice(f"{id} answer", len(answers[lang]))
        answer = answers[lang][num_answer].format(**values[lang])
        check = checks[lang].format(**values[lang]) if checks else ""
        texts[lang] = finished(lang, prompt), finished(lang, answer), finished(lang, check, capitals=False)
    return Draft(id, kind, {lang: (unmarked(p), a, unmarked(c)) for lang, (p, a, c) in texts.items()})


def finished(lang: str, text: str, capitals: bool = True) -> str:
    if lang == "ko":
        return with_particles(text)
    return with_capitals(text) if capitals and lang in ("en", "ru") else text
