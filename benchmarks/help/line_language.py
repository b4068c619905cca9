"""
How often [`line_languages`] blames a genuine page, and how often it finds a line of the other language put into one.

    python benchmarks/help/line_language.py --data data/help

English and Spanish pages; one half of the ids is for choosing the probability below which a line is unknown, the
other half for reporting. `chosen_probability` is the lowest at which 99 % of the pages pass. The library uses 0.9,
which is below that choice: the alarms of the first half, read, are code without code marks, an English label, and
English sentences that were left untranslated, while at 0.99 many short foreign lines become unknown.

`--answers` adds what a model does by itself: the `answers.jsonl` of an evaluation, as `name=file`. With lingua
installed, it judges the same lines for comparison. No text of the pages enters the results.
"""

import argparse
import hashlib
import json
import platform
import random
from collections.abc import Callable, Iterable
from importlib.metadata import PackageNotFoundError, version
from itertools import islice
from pathlib import Path
from typing import Any

from pages import Row, load_pages

from sae_posttrain.measure.faults import line_language
from sae_posttrain.measure.faults.line_language import MIN_PROBABILITY, MIN_WORDS, LineLanguage, line_languages
from sae_posttrain.measure.faults.line_units import masked_answer, units_of, words_of
from sae_posttrain.measure.faults.scripts import letters_of
from sae_posttrain.measure.statistics.intervals import wilson

RESULTS = Path(__file__).parent / "results" / "line_language.json"
PAIR = {"en": "es", "es": "en"}
PROBABILITIES = (0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99, 0.999)
MIN_PASSING = 0.99
"""Least share of genuine pages of each language that has to pass, when the probability is chosen."""
LENGTHS = (2, 3, 4, 5, 6, 8, 10, 15)
BUCKETS = {"2": (2, 2), "3": (3, 3), "4": (4, 4), "5-6": (5, 6), "7-9": (7, 9), "10-14": (10, 14), "15+": (15, 10**9)}
MORE_SUSPECTS = {
    "en": ["es", "fr", "de", "it", "pt", "nl"],
    "es": ["en", "pt", "it", "fr", "ca", "gl"],
    "ru": ["uk", "bg", "be", "mk"],
}
NUM_SPLICED = 400
OURS = line_language._identifier

Splice = Callable[[list[str], str, int], tuple[str, int, int]]


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of <lang>.jsonl[.gz]")
    parser.add_argument("--answers", nargs="*", default=[], metavar="NAME=FILE", help="answers in English and Spanish")
    parser.add_argument("--out", type=Path, default=RESULTS)
    arguments = parser.parse_args(argv)
    pages = load_pages(arguments.data)
    result: dict[str, Any] = {"min_words": MIN_WORDS, "min_probability": MIN_PROBABILITY}
    for name, use in identifiers().items():
        use()
        halves = {half: measure(pages, half) for half in (("set", "report") if name == "py3langid" else ("report",))}
        result[name] = {
            **({"chosen_probability": choose(halves["set"]["genuine"])} if "set" in halves else {}),
            **halves,
        }
    identifiers()["py3langid"]()
    result["more_suspects"] = {
        lang: {"suspects": suspects} | genuine(half_of(pages[lang], "report"), lang, suspects)
        for lang, suspects in MORE_SUSPECTS.items()
    }
    result["answers"] = {
        name: of_model(Path(file)) for name, file in (item.split("=", 1) for item in arguments.answers)
    }
    result["hardware"] = {"cpu": cpu_name(), "threads": 1}
    result["versions"] = versions(["py3langid", "lingua-language-detector", "numpy", "regex"])
    arguments.out.parent.mkdir(exist_ok=True)
    arguments.out.write_text(json.dumps(result, separators=(",", ":")) + "\n", encoding="utf-8")
    print(json.dumps(result["answers"] or result["py3langid"]["report"]["genuine"], indent=1))


def identifiers() -> dict[str, Callable[[], None]]:
    """What switches to each identifier that is installed, by name."""

    def use_lingua() -> None:
        from lingua import IsoCode639_1, LanguageDetectorBuilder

        detectors: dict[frozenset[str], Any] = {}

        class Lingua:
            def __init__(self, languages: frozenset[str]) -> None:
                codes = [getattr(IsoCode639_1, code.upper()) for code in sorted(languages)]
                if languages not in detectors:
                    detectors[languages] = LanguageDetectorBuilder.from_iso_codes_639_1(*codes).build()
                self.detector = detectors[languages]

            def classify(self, text: str) -> tuple[str, float]:
                best = self.detector.compute_language_confidence_values(text)[0]
                return best.language.iso_code_639_1.name.lower(), best.value

        line_language._identifier = Lingua  # type: ignore[assignment]

    def use_ours() -> None:
        line_language._identifier = OURS

    try:
        version("lingua-language-detector")
    except PackageNotFoundError:
        return {"py3langid": use_ours}
    return {"py3langid": use_ours, "lingua": use_lingua}


def half_of(pages: dict[str, Row], half: str) -> list[Row]:
    """The pages of one half; a page is in the same half in every language."""
    parity = {"set": 0, "report": 1}[half]
    return [
        row
        for page_id, row in pages.items()
        if int(hashlib.sha256(f"lid {page_id}".encode()).hexdigest(), 16) % 2 == parity
    ]


def measure(pages: dict[str, dict[str, Row]], half: str) -> dict[str, Any]:
    """False alarms on genuine pages and hits on spliced ones, by language."""
    result: dict[str, Any] = {"genuine": {}, "spliced": {}}
    for lang, other in PAIR.items():
        own = half_of(pages[lang], half)
        result["genuine"][lang] = genuine(own, lang, [other])
        result["spliced"][lang] = spliced(own, half_of(pages[other], half), lang, other)
    return result


def genuine(rows: Iterable[Row], lang: str, suspects: list[str]) -> dict[str, Any]:
    """Foreign lines of pages that have none, by probability and by words in the line."""
    worst: list[float] = []  # of each page with lines to judge, the highest probability of a foreign language
    long_enough: list[tuple[float, float]] = []  # probability of a foreign language, and of the likeliest one
    by_words: list[tuple[int, float]] = []  # number of words, probability of a foreign language
    for row in rows:
        lines = [line for _, line in judge(row["text"], lang, suspects, MIN_WORDS)]
        foreign = [line.probability if line.is_foreign(lang) else 0 for line in lines]
        worst += [max(foreign)] if foreign else []
        long_enough += [(probability, line.probability) for probability, line in zip(foreign, lines)]
        by_words += [
            (words, line.probability if line.is_foreign(lang) else 0)
            for words, line in judge(row["text"], lang, suspects, 2)
        ]
    return {
        "pages_that_fail": {str(p): rate(sum(each >= p for each in worst), len(worst)) for p in PROBABILITIES},
        "foreign_lines": {
            str(p): rate(sum(foreign >= p for foreign, _ in long_enough), len(long_enough)) for p in PROBABILITIES
        },
        "unknown_lines": {
            str(p): rate(sum(best < p for _, best in long_enough), len(long_enough)) for p in PROBABILITIES
        },
        "foreign_lines_by_words": {
            name: {
                str(p): rate(sum(low <= words <= high and foreign >= p for words, foreign in by_words), n)
                for p in PROBABILITIES
            }
            for name, (low, high) in BUCKETS.items()
            if (n := sum(low <= words <= high for words, _ in by_words))
        },
    }


def judge(text: str, lang: str, suspects: list[str], min_words: int) -> list[tuple[int, LineLanguage]]:
    """(number of words, line) of every line of a page."""
    judged = line_languages(text, lang=lang, suspects=suspects, min_words=min_words, min_probability=0)
    units = units_of(masked_answer(text, False), frozenset([lang, *suspects]), min_words, lambda _start, _end: False)
    num_words = {start: len(unit.words) for unit in units for start, _ in unit.places}
    return [(num_words[line.start], line) for line in judged]


def spliced(own: list[Row], donors: list[Row], lang: str, other: str) -> dict[str, Any]:
    """Pages with one line of the other language in them: how often a foreign line is found where it was put."""
    chance = random.Random(0)
    letters = letters_of(frozenset(["Latin"]))
    sentences = [
        line.text
        for row in donors
        for _, line in judge(row["text"], other, [lang], min_words=MIN_WORDS)
        if "(" not in line.text and "=" not in line.text and line.language == other
        if len(words_of(line.text, letters)) >= MIN_WORDS
    ]
    shorts = [
        line.strip()
        for row in donors
        for line in row["text"].split("\n")
        if 2 <= len(words_of(line, letters)) < MIN_WORDS and len(line) < 40
    ]
    hosts = [row["text"].split("\n") for row in own]
    hosts = chance.sample([lines for lines in hosts if len(lines) >= 3], NUM_SPLICED)
    found: dict[str, Any] = {"num_donor_lines": len(sentences), "line_of_n_words": {}}
    for length in LENGTHS:
        shuffled = chance.sample(sentences, len(sentences))
        cut = list(islice(filter(None, (first_words(text, length, letters) for text in shuffled)), len(hosts)))
        found["line_of_n_words"][str(length)] = hits(hosts, cut, own_line, lang, other, length)
    whole = chance.sample(sentences, len(hosts))
    found["whole_line"] = hits(hosts, whole, own_line, lang, other, MIN_WORDS)
    bullets = ["\n".join(f"- {line}" for line in chance.sample(shorts, 4)) for _ in hosts]
    found["four_short_lines"] = hits(hosts, bullets, own_line, lang, other, MIN_WORDS)
    found["sentence_in_a_line"] = hits(hosts, whole, after_sentence, lang, other, MIN_WORDS)
    found["from_mid_sentence_on"] = hits(hosts, whole, mid_sentence, lang, other, MIN_WORDS)
    return found


def first_words(text: str, num: int, letters: Any) -> str | None:
    """The beginning of a line, up to so many words that count; `None` if it has fewer."""
    tokens = text.split()
    for end in range(1, len(tokens) + 1):
        if len(words_of(" ".join(tokens[:end]), letters)) == num:
            return " ".join(tokens[:end])
    return None


def own_line(lines: list[str], text: str, place: int) -> tuple[str, int, int]:
    """A line of its own between two of the page."""
    before = "\n".join(lines[:place]) + "\n"
    return before + text + "\n" + "\n".join(lines[place:]), len(before), len(before) + len(text)


def after_sentence(lines: list[str], text: str, place: int) -> tuple[str, int, int]:
    """Behind the sentences of a line, in that line."""
    host = lines[place].rstrip(" .:") + ". "
    before = "\n".join([*lines[:place], host])
    return before + text + "\n" + "\n".join(lines[place + 1 :]), len(before), len(before) + len(text)


def mid_sentence(lines: list[str], text: str, place: int) -> tuple[str, int, int]:
    """The page's line up to its middle, and the other line from its middle on."""
    host, other = lines[place].split(), text.split()
    before = "\n".join([*lines[:place], " ".join(host[: (len(host) + 1) // 2])]) + " "
    text = " ".join(other[len(other) // 2 :])
    return before + text + "\n" + "\n".join(lines[place + 1 :]), len(before), len(before) + len(text)


def hits(
    hosts: list[list[str]], texts: list[str], splice: Splice, lang: str, other: str, min_words: int
) -> dict[str, Any]:
    """Share of the pages with a foreign line that overlaps what was put in, by probability."""
    highest = []
    for number, (lines, text) in enumerate(zip(hosts, texts)):
        places = [place for place, line in enumerate(lines[1:], 1) if splice is own_line or len(line.split()) >= 8]
        if not places:
            continue
        place = random.Random(number).choice(places)
        page, start, end = splice(lines, text, place)
        lines_found = line_languages(page, lang=lang, suspects=[other], min_words=min_words, min_probability=0)
        highest.append(
            max(
                (
                    line.probability
                    for line in lines_found
                    if line.is_foreign(lang) and line.start < end > start < line.end
                ),
                default=0.0,
            )
        )
    return {str(p): rate(sum(each >= p for each in highest), len(highest)) for p in PROBABILITIES}


def of_model(file: Path) -> dict[str, Any]:
    """What a model does by itself: answers with a foreign line, and foreign lines, by language."""
    answers = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    result = {}
    for lang, other in PAIR.items():
        judged = [
            lines
            for answer in answers
            if answer["lang"] == lang
            and (lines := line_languages(answer["answer"], lang=lang, suspects=[other], prompt=answer["prompt"]))
        ]
        lines = [line for of_answer in judged for line in of_answer]
        foreign = [[line.is_foreign(lang) for line in of_answer] for of_answer in judged]
        result[lang] = {
            "num_answers": sum(answer["lang"] == lang for answer in answers),
            "answers_with_foreign_lines": rate(sum(map(any, foreign)), len(judged)),
            "answers_of_foreign_lines_only": rate(sum(map(all, foreign)), len(judged)),
            "foreign_lines": rate(sum(map(sum, foreign)), len(lines)),
            "unknown_lines": rate(sum(line.language is None for line in lines), len(lines)),
        }
    return result


def choose(by_language: dict[str, Any]) -> float | None:
    """The lowest probability at which enough genuine pages pass in each language."""
    return next(
        (
            p
            for p in PROBABILITIES
            if all(1 - of["pages_that_fail"][str(p)]["rate"] >= MIN_PASSING for of in by_language.values())
        ),
        None,
    )


def rate(count: int, n: int) -> dict[str, Any]:
    low, high = wilson(count, n)
    return {"count": count, "n": n, "rate": round(count / n, 5), "low": round(low, 5), "high": round(high, 5)}


def cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    named = [line for line in info.read_text().splitlines() if line.startswith("model name")] if info.exists() else []
    return named[0].split(":", 1)[1].strip() if named else platform.processor() or platform.machine()


def versions(packages: list[str]) -> dict[str, str]:
    found = {"python": platform.python_version()}
    for package in packages:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


if __name__ == "__main__":
    main()
