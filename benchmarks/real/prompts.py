"""
Prompts for real models, made from real texts: titles of help pages, questions of benchmark tasks, reviews.

    python benchmarks/real/prompts.py --data D --out prompts

`--data` is the folder that holds `help/<lang>.jsonl.gz` (`id`, `title`), `bigbench/tasks/<task>.jsonl.gz` (`input`)
and `bigbench/multiemo/<domain>.<lang>.jsonl.gz` (`id`, `text`). Writes `train.jsonl` and `test.jsonl`: chat messages,
the language of the answer and the kind of the prompt. No page, task or review of the one file is in the other.
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
"""Prompts in the test file for each language of the help pages, and from reviews; the training file has four times as
many."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    for split in ("test", "train"):
        rows = prompts(arguments.data, split, random.Random(f"{arguments.seed} {split}"))
        lines = [json.dumps(row, ensure_ascii=False) for row in rows]
        (arguments.out / f"{split}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
        print(f"{split}: {len(rows)} prompts")


def prompts(data: Path, split: str, draw: random.Random) -> list[dict[str, Any]]:
    """Prompts of a split in random order."""
    rows = []
    times = 1 if split == "test" else 4
    for lang, templates in EXPLAIN.items():
        pages = [page for page in read(data / "help" / f"{lang}.jsonl.gz") if in_test(page["id"]) == (split == "test")]
        titles = sorted({page["title"] for page in pages if len(page["title"]) < 80})
        for title in draw.sample(titles, min(len(titles), times * NUM_OF[lang])):
            rows.append(row(draw.choice(templates).format(title), lang, "help"))
    for file in sorted((data / "bigbench" / "tasks").glob("*.jsonl.gz")):
        if in_test(file.name) == (split == "test"):
            asked = sorted({example["input"].strip() for example in read(file) if len(example["input"]) < 600})
            for question in draw.sample(asked, min(len(asked), times * TASKS_PER_SPLIT)):
                rows.append(row(question, "en", "task"))
    reviews = read(data / "bigbench" / "multiemo" / "hotels.en.jsonl.gz")
    texts = sorted({r["text"] for r in reviews if len(r["text"]) < 700 and in_test(str(r["id"])) == (split == "test")})
    for text in draw.sample(texts, min(len(texts), times * NUM_OF["review"])):
        rows.append(row(draw.choice(REVIEW).format(text), "en", "review"))
    draw.shuffle(rows)
    return rows


def row(question: str, lang: str, kind: str) -> dict[str, Any]:
    return {"prompt": [{"role": "user", "content": question}], "lang": lang, "kind": kind}


def in_test(name: str) -> bool:
    """A third of all names, the same in every language and on every machine."""
    return int(hashlib.sha256(name.encode()).hexdigest(), 16) % 3 == 0


def read(file: Path) -> list[dict[str, Any]]:
    with gzip.open(file, "rt", encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


if __name__ == "__main__":
    main()
