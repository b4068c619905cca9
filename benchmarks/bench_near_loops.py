"""
How often the detector of loops calls ordinary text a loop, and how often it misses loops in which a little changes.

    python benchmarks/bench_near_loops.py --data data --tokenizer help8k=models/help-qwen3-7m --tokenizer smol49k=…

- Ordinary text: software-help pages in five languages, hotel and product reviews in nine, inputs of benchmark tasks.
  Each is read as an answer that the model ended, as one that was cut behind its last token, and, where it is longer,
  as one that was cut after 128, 256, 512 and 1,024 tokens. Whatever is called endless or a near loop is a false alarm,
  though pages hold people's own lists, in which one word changes from line to line.
- Loops: made up by kind (`changing_loops.py`), behind an ordinary opening, cut after 160, 256 and 512 tokens. Whatever
  is neither endless nor a near loop is missed.
- Beside it a simpler rule, with limits at the 99.9th percentile of the help pages: no exact loop anywhere, and rep-4
  or the zlib ratio of the last 512, 256 or 128 tokens above a limit.

Texts whose id has an even sum of characters are the dev half, on which the scores in `near_loops.py` were chosen (a
sample of them), the others the test half. The loops of dev and test have different seeds.
"""

import argparse
import gzip
import json
import os
import random
import zlib
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from changing_loops import KINDS
from machine import hardware, versions
from transformers import AutoTokenizer

from sae_posttrain import find_loop

RESULTS = Path(__file__).parent / "results" / "bench_near_loops.json"
CUTS = (128, 256, 512, 1024)
LOOP_CUTS = (160, 256, 512)
LEAST = 64
REVIEWS = 500  # of each file
OPENING = (
    "Here is what you asked for. A few words come first, so that the text begins as any other, and then it starts.\n\n"
)
BEFORE = {512: (0.76, 5.5), 256: (0.65, 4.1), 128: (0.60, 3.4)}
"""Limits of the simpler rule: tokens at the end, rep-4, zlib ratio."""


def repetition(token_ids: Sequence[int]) -> tuple[float, float]:
    """rep-4, `1 - distinct 4-grams / 4-grams`, and size over compressed size, of tokens in two bytes each."""
    ids = list(token_ids)
    grams = list(zip(ids, ids[1:], ids[2:], ids[3:]))
    number: dict[int, int] = {}
    packed = np.array([number.setdefault(token, len(number)) for token in ids], dtype="<u2").tobytes()
    return 1 - len(set(grams)) / len(grams), len(packed) / len(zlib.compress(packed))


def simpler_rule(ids: Sequence[int]) -> bool:
    for window, limits in BEFORE.items():
        if len(ids) >= window:
            over = any(value > limit for value, limit in zip(repetition(ids[-window:]), limits))
            return over and not find_loop(ids, finished=True).loop_any
    return False


def read_texts(folder: Path) -> Iterator[tuple[str, str, str]]:
    """Corpus, id and text."""
    files = [(f"help {file.name[:2]}", file) for file in sorted(folder.glob("help/*.jsonl.gz"))]
    for file in sorted(folder.glob("bigbench/multiemo/*.jsonl.gz")):
        domain, lang = file.name.split(".")[:2]
        files.append((f"{domain} {lang}", file))
    files += [(f"task {file.name.split('.')[0]}", file) for file in sorted(folder.glob("bigbench/tasks/*.jsonl.gz"))]
    for corpus, file in files:
        with gzip.open(file, "rt", encoding="utf-8") as lines:
            for number, row in enumerate(map(json.loads, lines)):
                if corpus[:4] in ("hote", "prod") and number >= REVIEWS:
                    break
                yield corpus, str(row.get("id", number)), row.get("text", row.get("input"))


def half_of(text_id: str) -> str:
    return "test" if sum(map(ord, text_id)) % 2 else "dev"


def false_alarms(texts: Sequence[tuple[str, str, str]], tokenizer: Any) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Counts by half, kind of text and cut; and which texts are called loops, at which cut."""
    counts: dict[str, dict[str, dict[str, Counter]]] = defaultdict(lambda: defaultdict(lambda: defaultdict(Counter)))
    alarms = []
    encoded = tokenizer([text for _, _, text in texts], add_special_tokens=False)["input_ids"]
    for (corpus, text_id, _), ids in zip(texts, encoded):
        if len(ids) < LEAST:
            continue
        of_corpus = counts[half_of(text_id)][corpus]
        ended = find_loop(ids, finished=True)
        of_corpus["ended"].update(n=1, near_loop=ended.near_loop, endless=ended.endless, simpler=simpler_rule(ids))
        for cut in [*(cut for cut in CUTS if cut < len(ids)), len(ids)]:
            loop = find_loop(ids[:cut], finished=False)
            name = "whole" if cut == len(ids) else str(cut)
            of_corpus[name].update(
                n=1, near_loop=loop.near_loop, endless=loop.endless, simpler=simpler_rule(ids[:cut])
            )
            if loop.near_loop or loop.endless:
                alarms.append(
                    {"corpus": corpus, "id": text_id, "cut": cut, "repetition": round(loop.tail_repetition, 2)}
                )
    return {half: by_kind(corpora) for half, corpora in sorted(counts.items())}, alarms


def by_kind(corpora: dict[str, dict[str, Counter]]) -> dict[str, Any]:
    """Sums over reviews and over tasks, help pages by language; and the tasks and reviews with alarms, by name."""
    result: dict[str, Any] = defaultdict(lambda: defaultdict(Counter))
    for corpus, cuts in corpora.items():
        first = corpus.split()[0]
        names = [corpus if first == "help" else "tasks" if first == "task" else "reviews"]
        if first == "help":
            names.append("help, all")
        elif sum(counter["near_loop"] + counter["endless"] for counter in cuts.values()):
            names.append(corpus)
        for name in names:
            for cut, counter in cuts.items():
                result[name][cut].update(counter)
    return {name: {cut: dict(counter) for cut, counter in cuts.items()} for name, cuts in sorted(result.items())}


def misses(tokenizer: Any, num: int) -> dict[str, Any]:
    """By half, kind and cut: loops, how many are endless, near loops, missed, and missed by the simpler rule."""
    result: dict[str, Any] = {}
    opening = tokenizer(OPENING, add_special_tokens=False)["input_ids"]
    for half in ("dev", "test"):
        result[half] = {}
        for kind, make in KINDS.items():
            cuts: dict[str, Counter] = defaultdict(Counter)
            shares = []
            for number in range(num):
                draw = random.Random(f"{half} {kind} {number}")
                ids = tokenizer(make(draw), add_special_tokens=False)["input_ids"]
                if kind == "long_passage":
                    looping = {"3.1 to 3.9 copies": [*opening, *(ids * 4)[: int(draw.uniform(3.1, 3.9) * len(ids))]]}
                else:
                    looping = {str(cut): [*opening, *ids][:cut] for cut in LOOP_CUTS}
                for cut, answer in looping.items():
                    loop = find_loop(answer, finished=False)
                    seen = loop.endless or loop.near_loop
                    shares += [loop.tail_repetition] if loop.near_loop else []
                    cuts[cut].update(
                        n=1,
                        endless=loop.endless,
                        near_loop=loop.near_loop,
                        missed=not seen,
                        missed_by_simpler=not (loop.endless or simpler_rule(answer)),
                    )
            result[half][kind] = {cut: dict(counter) for cut, counter in cuts.items()}
            if shares:
                result[half][kind]["repetition"] = [
                    round(value, 2) for value in np.percentile(shares, [5, 50, 95]).tolist()
                ]
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    default = os.environ.get("SAE_POSTTRAIN_HELP")
    parser.add_argument("--data", type=Path, required=default is None, help="folder that holds help/ and bigbench/")
    parser.add_argument("--tokenizer", action="append", required=True, metavar="NAME=FOLDER")
    parser.add_argument("--num-loops", type=int, default=20, help="of each kind, half and tokenizer")
    parser.add_argument("--out", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    texts = list(read_texts(arguments.data or Path(default or "") / "data"))
    result: dict[str, Any] = {"num_texts": len(texts), "false_alarms": {}, "alarms": {}, "misses": {}}
    for name, _, folder in (given.partition("=") for given in arguments.tokenizer):
        tokenizer = AutoTokenizer.from_pretrained(folder)
        alarms, which = false_alarms(texts, tokenizer)
        result["false_alarms"][name], result["alarms"][name] = alarms, which
        result["misses"][name] = misses(tokenizer, arguments.num_loops)
        show(name, result)
    result |= {"hardware": hardware(), "versions": versions("numpy", "transformers", "sae_posttrain")}
    arguments.out.parent.mkdir(exist_ok=True)
    lines = ["{"]
    for key, value in result.items():
        indent = None if key == "alarms" else 1
        lines.append(f"{json.dumps(key)}: {json.dumps(value, ensure_ascii=False, indent=indent)},")
    lines[-1] = lines[-1].rstrip(",")
    arguments.out.write_text("\n".join([*lines, "}"]) + "\n", encoding="utf-8")


def show(name: str, result: dict[str, Any]) -> None:
    for half, kinds in result["false_alarms"][name].items():
        for kind in ("help, all", "reviews", "tasks"):
            for cut, counter in kinds.get(kind, {}).items():
                print(f"{name} {half} {kind}, {cut}: {dict(counter)}")
    for half, kinds in result["misses"][name].items():
        for kind, cuts in kinds.items():
            print(f"{name} {half} {kind}: {cuts}")


if __name__ == "__main__":
    main()
