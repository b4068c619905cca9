"""
How often the rules of switching and of the right language blame genuine text, and what they miss of planted faults.

    python benchmarks/help/switches.py --data DATA

`DATA` holds `help/<lang>.jsonl[.gz]` (software help in five languages) and, in `bigbench/multiemo`,
`<domain>.<lang>.jsonl.gz` (reviews in nine); by default it is the folder `data` of `SAE_POSTTRAIN_HELP`.
Every text is judged as an answer in its own language. Then real words and sentences of another language are put into
texts: at the end of a line, into quotation marks or brackets, behind a URL; and, to see what is excused, short terms
of it into places where they belong. One half of the ids (`dev`) is what the rules were looked at with, the other
(`test`) is for reporting. No text of the data enters the results but the foreign runs of alarms.
"""

import argparse
import hashlib
import json
import os
import random
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import regex

from sae_posttrain.measure.answers.rows import read_rows
from sae_posttrain.measure.faults.switching import find_switches, right_language
from sae_posttrain.measure.statistics.intervals import wilson

sys.path.insert(0, str(Path(__file__).parents[1]))
from machine import hardware, versions

RESULTS = Path(__file__).parent / "results" / "switches.json"
HALVES = ("dev", "test")
NUM_PLANTED = 300
NUM_EXAMPLES = 12
SCRIPT_OF = {"zh": "Han", "ru": "Cyrillic", "ko": "Hangul", "ja": "Katakana"}
DONORS = {"help": ("zh", "ru", "ko"), "hotels": ("zh", "ru")}
MIN_CLAUSE = {"zh": 20, "ru": 20, "ko": 20}

Texts = dict[str, dict[str, list[tuple[str, str]]]]
"""By language and half, (what was asked, answer)."""


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=None, help="folder of `help` and `bigbench`")
    parser.add_argument("--name", default="now", help="key of the results, to keep those of several rules")
    parser.add_argument("--out", type=Path, default=RESULTS)
    arguments = parser.parse_args(argv)
    data = arguments.data or Path(os.environ.get("SAE_POSTTRAIN_HELP", ".")) / "data"
    result: dict[str, Any] = {"genuine": {}, "planted": {}, "excused": {}, "another_language": {}}
    for name, texts in sources(data).items():
        result["genuine"][name] = {
            lang: {half: genuine(of[half], lang) for half in HALVES} for lang, of in texts.items()
        }
        for half in HALVES:
            for kind, of_kind in planted(name, texts, half):
                result[kind].setdefault(name, {}).setdefault(half, {}).update(of_kind)
    result["hardware"], result["versions"] = hardware(), versions("regex")
    known = json.loads(arguments.out.read_text(encoding="utf-8")) if arguments.out.exists() else {}
    known[arguments.name] = result
    arguments.out.parent.mkdir(exist_ok=True)
    arguments.out.write_text(json.dumps(known, ensure_ascii=False, separators=(",", ":")) + "\n", encoding="utf-8")
    print(summary(result))


def sources(data: Path) -> dict[str, Texts]:
    """The texts of each collection; a text is in the same half in every language."""
    found: dict[str, Texts] = {"help": {}, "hotels": {}, "products": {}}
    for name, texts in found.items():
        files = data.glob("help/*.jsonl*") if name == "help" else data.glob(f"bigbench/multiemo/{name}.*.jsonl*")
        for file in sorted(files):
            lang = file.name.split(".")[0 if name == "help" else 1]
            texts[lang] = {half: [] for half in HALVES}
            for row in read_rows(file):
                number = int(hashlib.sha256(f"switches {row['id']}".encode()).hexdigest(), 16)
                texts[lang][HALVES[number % 2]].append((row.get("title", ""), row["text"]))
    missing = [name for name, texts in found.items() if not texts]
    if missing:
        raise FileNotFoundError(f"{data} holds no texts of {', '.join(missing)}; name the folder of both by --data.")
    return found


def genuine(rows: list[tuple[str, str]], lang: str) -> dict[str, Any]:
    """Alarms on text that is what it should be."""
    runs, wrong, untold = [], 0, 0
    for asked, text in rows:
        spans = find_switches(text, lang=lang, prompt=asked).spans
        runs.append([span.text for span in spans if span.excused is None])
        right = right_language(text, lang=lang)
        wrong += right is False
        untold += right is None
    return {
        "unexpected": rate(sum(map(bool, runs)), len(rows)),
        "wrong_language": rate(wrong, len(rows)),
        "language_untold": untold,
        "runs": [of[:3] for of in runs if of][:NUM_EXAMPLES],
    }


def planted(name: str, texts: Texts, half: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Rates of what is found of planted switches, and of what is excused, by `host<donor` and kind."""
    for donor in DONORS.get(name, ()):
        terms, clauses, sentences = pieces(texts[donor][half], donor)
        for host, of_host in texts.items():
            if host == donor or (host, donor) == ("zh", "ja"):
                continue
            chance = random.Random(f"{name} {half} {host} {donor}")
            rows = [text for _, text in chance.sample(of_host[half], min(NUM_PLANTED, len(of_host[half])))]
            for kind, pool, plant in (
                ("word in a line", terms, lambda line, term: f"{line} {term}"),
                ("sentence", sentences, lambda line, sentence: f"{line} {sentence}"),
                ("clause in quotation marks", clauses, lambda line, clause: f"{line} “{clause}”"),
                ("clause in brackets", clauses, lambda line, clause: f"{line} ({clause})"),
                ("clause behind a URL", clauses, lambda line, clause: f"{line} https://example.com/help/{clause}"),
                ("clause behind a query", clauses, lambda line, clause: f"{line} https://example.com/?page={clause}"),
            ):
                if host == "ja" and donor == "zh" and kind == "word in a line":
                    continue  # most words of two characters are words of both
                yield "planted", {f"{host}<{donor} {kind}": alarms(rows, pool, plant, host, chance)}
            host_of_url = f"https://{donor}.example.org/wiki"
            for kind, plant in (
                ("term in quotation marks", lambda line, term: f"{line} “{term}”"),
                ("term in brackets", lambda line, term: f"{line} A ({term})"),
                ("page of a URL", lambda line, term, wiki=host_of_url: f"{line} {wiki}/{term}"),
                ("file", lambda line, term: f"{line} docs/{term}.pdf"),
                ("hashtag", lambda line, term: f"{line} #{term}"),
                ("address", lambda line, term: f"{line} {term}@example.com"),
                ("attribute", lambda line, term: f'{line} <img alt="{term}">'),
            ):
                yield "excused", {f"{host}<{donor} {kind}": alarms(rows, terms, plant, host, chance)}
    if name != "help":
        return
    for lang in texts:
        for other in texts:
            if {lang, other} != {"en", "es"} and lang != other:  # these two share their script
                shorts = [asked for asked, _ in texts[other][half] if asked]
                firsts = [text.strip().split("\n")[0] for _, text in texts[other][half]]
                yield "another_language", {f"{other} for {lang}, title": not_right(shorts, lang)}
                yield "another_language", {f"{other} for {lang}, first line": not_right(firsts, lang)}


def pieces(rows: list[tuple[str, str]], lang: str) -> tuple[list[str], list[str], list[str]]:
    """Words, clauses of 20 characters or more, and sentences of texts in a language, in its script alone."""
    script = rf"\p{{{SCRIPT_OF[lang]}}}"
    terms: set[str] = set()
    clauses: set[str] = set()
    sentences: set[str] = set()
    for title, text in rows:
        if lang == "zh":
            terms.update(regex.findall(rf"(?<!{script}){script}{{2,5}}(?!{script})", title or text[:200]))
            clauses.update(regex.findall(rf"(?<!{script}){script}{{20,28}}(?!{script})", text))
            sentences.update(regex.findall(rf"(?<=。|\n){script}[{script}，]{{8,60}}。", text))
        else:
            terms.update(regex.findall(rf"(?<!\S){script}{{4,12}}(?!\S)", title or text[:200]))
            clauses.update(regex.findall(rf"(?<=[,.] ){script}+(?: {script}+){{2,4}}(?=[.,])", text))
            sentences.update(regex.findall(rf"(?<=[.] |\n){script}[{script} ,]{{10,120}}[.]", text))
    return (
        sorted(terms),
        sorted(clause for clause in clauses if 20 <= len(clause) <= 30),
        sorted(sentences),
    )


def alarms(
    rows: list[str], pool: list[str], plant: Callable[[str, str], str], lang: str, chance: random.Random
) -> dict[str, Any] | None:
    """Share of texts that are blamed for what was put behind one of their lines."""
    if not pool:
        return None
    found = 0
    for text in rows:
        lines = text.split("\n")
        place = chance.randrange(len(lines))
        line = lines[place].rstrip(" .:。") or "…"
        before = len("\n".join([*lines[:place], line]))
        answer = "\n".join([*lines[:place], plant(line, chance.choice(pool)), *lines[place + 1 :]])
        end = before + len(answer) - len(text)
        spans = find_switches(answer, lang=lang).spans
        found += any(span.excused is None and before - 1 <= span.start <= max(end, before + 80) for span in spans)
    return rate(found, len(rows))


def not_right(answers: Iterable[str], lang: str) -> dict[str, Any]:
    """Share of answers in another language that are called wrong."""
    verdicts = [right_language(answer, lang=lang) for answer in answers]
    return {**rate(sum(verdict is False for verdict in verdicts), len(verdicts)), "untold": verdicts.count(None)}


def rate(count: int, n: int) -> dict[str, Any]:
    low, high = wilson(count, n)
    return {"count": count, "n": n, "low": round(low, 5), "high": round(high, 5)}


def summary(result: dict[str, Any]) -> str:
    """Counts over all languages, by collection, half and kind."""
    lines = []
    for name, of_name in result["genuine"].items():
        for half in HALVES:
            for measure in ("unexpected", "wrong_language"):
                rates = [of_lang[half][measure] for of_lang in of_name.values()]
                lines.append(f"{name} {half}, false alarms, {measure}: {total(rates)}")
    for group in ("planted", "excused", "another_language"):
        for name, of_name in result[group].items():
            for half, of_half in of_name.items():
                kinds: dict[str, list[dict[str, Any]]] = {}
                for key, found in of_half.items():
                    kind = key.split(", ")[1] if group == "another_language" else key.split(" ", 1)[1]
                    kinds.setdefault(kind, []).append(found)
                lines += [f"{name} {half}, {group}, {kind}: {total(rates)} blamed" for kind, rates in kinds.items()]
    return "\n".join(lines)


def total(rates: Iterable[dict[str, Any] | None]) -> str:
    known = [each for each in rates if each]
    return f"{sum(each['count'] for each in known)} of {sum(each['n'] for each in known)}"


if __name__ == "__main__":
    main()
