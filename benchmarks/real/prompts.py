"""
Prompts for real models, made from real texts: titles of help pages, questions of benchmark tasks, reviews.

    python benchmarks/real/prompts.py --data D --out prompts

`--data` is the folder that holds `help/<lang>.jsonl.gz` (`id`, `title`), `bigbench/tasks/<task>.jsonl.gz` (`input`)
and `bigbench/multiemo/<domain>.<lang>.jsonl.gz` (`id`, `text`). Writes `train.jsonl`, `dev.jsonl` and `test.jsonl`:
chat messages, the language of the answer and the kind of the prompt. No page, task or review of the training file is
in the others, and no prompt of `dev.jsonl`, which settings are chosen on, is in `test.jsonl`.
"""

import argparse
import gzip
import hashlib
import json
import random
from pathlib import Path
from typing import Any

TASKS_PER_SPLIT = 6  # examples of each task

EXPLAIN = {
    "en": ["Explain {}.", "What is {} and when would I use it?", "Write a short guide: {}.", "List the steps for: {}"],
    "es": ["Explica: {}.", "Escribe una guía breve: {}."],
    "ru": ["Объясни: {}.", "Напиши короткое руководство: {}."],
    "ko": ["{}에 대해 설명해 주세요.", "{}에 대한 짧은 안내를 써 주세요."],
    "zh": ["请解释:{}。", "请写一份简短的指南:{}。"],
}

REVIEW = [
    "Write a reply from the hotel's manager to this review:\n\n{}",
    "Summarise this review in one sentence:\n\n{}",
    "What does the writer of this review like and dislike?\n\n{}",
    "Rewrite this review so that it is polite:\n\n{}",
]

NUM_OF = {"en": 150, "es": 40, "ru": 20, "ko": 20, "zh": 20, "review": 60}
"""
Prompts in the test file and in the dev file for each language of the help pages, and from reviews; the training file
has four times as many.
"""

DRAWS = {"train": "train", "dev": "test", "test": "final"}
"""The random draw of each file. The names are part of the seed: another name draws other prompts."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    written: list[dict[str, Any]] = []
    for split, draw in DRAWS.items():
        rows = prompts(
            arguments.data, split, random.Random(f"{arguments.seed} {draw}"), written if split == "test" else []
        )
        written += rows
        lines = [json.dumps(row, ensure_ascii=False) for row in rows]
        (arguments.out / f"{split}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
        print(f"{split}: {len(rows)} prompts")


def prompts(data: Path, split: str, draw: random.Random, written: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Prompts of a split in random order, without those that other splits hold."""
    train = split == "train"
    rows: list[dict[str, Any]] = []
    taken = {prompt["source"] for prompt in written}

    def add(sources: set[str], number: int, lang: str, kind: str, templates: list[str]) -> None:
        free = sorted(sources - taken)
        for source in draw.sample(free, min(len(free), number * (4 if train else 1))):
            question = draw.choice(templates).format(source) if templates else source
            rows.append(
                {"prompt": [{"role": "user", "content": question}], "lang": lang, "kind": kind, "source": source}
            )

    for lang, templates in EXPLAIN.items():
        pages = [page for page in read(data / "help" / f"{lang}.jsonl.gz") if held_out(page["id"]) != train]
        add({page["title"] for page in pages if len(page["title"]) < 80}, NUM_OF[lang], lang, "help", templates)
    for file in sorted((data / "bigbench" / "tasks").glob("*.jsonl.gz")):
        if held_out(file.name) != train:
            asked = {example["input"].strip() for example in read(file) if len(example["input"]) < 600}
            add(asked, TASKS_PER_SPLIT, "en", "task", [])
    reviews = [
        r for r in read(data / "bigbench" / "multiemo" / "hotels.en.jsonl.gz") if held_out(str(r["id"])) != train
    ]
    add({review["text"] for review in reviews if len(review["text"]) < 700}, NUM_OF["review"], "en", "review", REVIEW)
    draw.shuffle(rows)
    return rows


def held_out(name: str) -> bool:
    """A third of all names, the same in every language and on every machine."""
    return int(hashlib.sha256(name.encode()).hexdigest(), 16) % 3 == 0


def read(file: Path) -> list[dict[str, Any]]:
    with gzip.open(file, "rt", encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


if __name__ == "__main__":
    main()
