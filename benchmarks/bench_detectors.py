"""
Speed of the detectors of language switching and of endless repetition, and how their time grows.

- Scripts: `count_scripts` and the whole rule, `find_switches`, compared with a loop that asks `unicodedata` for the
  name of each character, as published code does. The unit is characters per second, over whole pages of each language.
- Loops: `find_loop`, compared with a search that tries every period (vectorised over the answer). The unit is tokens
  per second, on random tokens without a loop, with a loop in their last quarter, and with a loop in which a number
  changes each time, which the search does not find. With up to a million tokens, the time per token should not grow.

    python benchmarks/bench_detectors.py --data data/help
"""

import argparse
import json
import random
import statistics
import unicodedata
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from machine import hardware, seconds, versions

from sae_posttrain import find_loop, find_switches
from sae_posttrain.measure.answers.prompts import read_rows
from sae_posttrain.measure.faults.scripts import count_scripts

RESULTS = Path(__file__).parent / "results" / "bench_detectors.json"
LANGUAGES = ("en", "es", "ko", "ru", "zh")
LENGTHS = (1_000, 10_000, 100_000, 1_000_000)
MAX_OF_THE_NAIVE = 10_000  # tokens; at ten times as many it takes a hundred times as long
MIN_PERIODS, MIN_TOKENS = 4, 64
SCRIPT_OF_NAME = {"CJK": "Han", "HANGUL": "Hangul", "CYRILLIC": "Cyrillic", "LATIN": "Latin"}


def by_character(text: str) -> Counter:
    """Characters of each script, one at a time, by the first word of their name."""
    counts: Counter = Counter()
    for character in text:
        if character.isalpha():
            first = unicodedata.name(character, "").partition(" ")[0]
            counts[SCRIPT_OF_NAME.get(first, "other")] += 1
    return counts


def every_period(ids: np.ndarray) -> int | None:
    """The smallest period that repeats anywhere, by trying each on the whole answer: O(n²)."""
    for period in range(1, len(ids) // MIN_PERIODS + 1):
        differs = np.flatnonzero(ids[period:] != ids[:-period])
        longest = np.diff(np.concatenate([[-1], differs, [len(ids) - period]])).max() - 1
        if longest and longest + period >= max(MIN_PERIODS * period, MIN_TOKENS):
            return period
    return None


def median_seconds(call: Callable[[], Any], repeats: int) -> list[float]:
    taken = []
    for _ in range(repeats):
        started = seconds()
        call()
        taken.append(seconds() - started)
    return taken


def measure_scripts(texts: dict[str, list[str]], repeats: int) -> dict[str, Any]:
    """Characters a second, by language."""
    result = {}
    for lang, own in texts.items():
        num = sum(map(len, own))
        calls = {
            "count_scripts": lambda own=own: [count_scripts(text) for text in own],
            "find_switches": lambda own=own, lang=lang: [find_switches(text, lang=lang) for text in own],
            "by_character": lambda own=own: [by_character(text) for text in own],
        }
        taken = {name: median_seconds(call, repeats) for name, call in calls.items()}
        speed = {name: num / statistics.median(values) for name, values in taken.items()}
        result[lang] = {
            "characters": num,
            "characters_per_second": {name: round(value) for name, value in speed.items()},
            "times_by_character": {
                name: round(speed[name] / speed["by_character"], 2) for name in ("count_scripts", "find_switches")
            },
            "seconds": {name: [round(value, 4) for value in values] for name, values in taken.items()},
        }
    return result


def measure_loops(repeats: int) -> dict[str, Any]:
    """Tokens a second, by length of the answer: without a loop, and with a loop or near loop in its last quarter."""
    drawn = random.Random(0)
    result: dict[str, Any] = {}
    for length in LENGTHS:
        without = [drawn.randrange(8192) for _ in range(length)]
        period = without[: max(20, length // 40)]
        start = length - length // 4
        looping = without[:start] + [period[i % len(period)] for i in range(length - start)]
        near = without[:start] + [8192 + i if i % 16 == 0 else i % 16 for i in range(length - start)]
        for kind, ids in (("no loop", without), ("loop", looping), ("near loop", near)):
            found = find_loop(ids, finished=False)
            if (found.endless, found.near_loop) != (kind == "loop", kind == "near loop"):
                raise SystemExit(f"`find_loop` is wrong on {length} tokens, {kind}.")
            ours = median_seconds(lambda ids=ids: find_loop(ids, finished=False), repeats)
            row: dict[str, Any] = {"tokens_per_second": round(length / statistics.median(ours))}
            if length <= MAX_OF_THE_NAIVE and kind != "near loop":
                array = np.array(ids)
                if (every_period(array) is not None) != (kind == "loop"):
                    raise SystemExit(f"The naive search is wrong on {length} tokens, {kind}.")
                naive = median_seconds(lambda array=array: every_period(array), repeats)
                row["naive_tokens_per_second"] = round(length / statistics.median(naive))
                row["times_naive"] = round(statistics.median(naive) / statistics.median(ours), 2)
            result[f"{length:,} tokens, {kind}"] = row
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of <lang>.jsonl[.gz]")
    parser.add_argument("--pages", type=int, default=300, help="of each language")
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    texts = {}
    for lang in LANGUAGES:
        rows = read_rows(sorted(arguments.data.glob(f"{lang}.jsonl*"))[0])
        texts[lang] = [row["text"] for row in rows][: arguments.pages]
    report = {
        "question": "Speed of the detectors of language switching and of endless repetition, and how it grows.",
        "settings": {"pages": arguments.pages, "repeats": arguments.repeats},
        "scripts": measure_scripts(texts, arguments.repeats),
        "loops": measure_loops(arguments.repeats),
        "hardware": hardware(),
        "versions": versions("numpy", "regex", "sae_posttrain"),
    }
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(report, indent=2) + "\n")
    for part in ("scripts", "loops"):
        for name, row in report[part].items():
            print(name, {key: value for key, value in row.items() if key != "seconds"})


if __name__ == "__main__":
    main()
