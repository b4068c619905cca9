"""
Chat rows in nine languages for fine-tuning a base model: help pages as answers to their titles, and reviews.

    python benchmarks/real/switching_data.py --data D --out switching

`--data` is the folder that `prompts.py` describes. Writes `train.jsonl`, `dev.jsonl` and `test.jsonl` with `lang`,
`kind`, `prompt` and `completion`, and `texts.jsonl`, plain texts of the training side for `find_features`. A page or a
review is on the same side in every language.
"""

import argparse
import json
import random
from pathlib import Path
from typing import Any

from prompts import held_out, read

Row = dict[str, Any]

HELP = ("en", "es", "ko", "ru", "zh")
REVIEWS = ("de", "en", "es", "fr", "it", "ja", "pl", "ru", "zh")
ASK = {
    "de": "Schreibe eine Hotelbewertung.",
    "en": "Write a review of a hotel.",
    "es": "Escribe una reseña de un hotel.",
    "fr": "Écris un avis sur un hôtel.",
    "it": "Scrivi una recensione di un hotel.",
    "ja": "ホテルのレビューを書いてください。",
    "pl": "Napisz recenzję hotelu.",
    "ru": "Напиши отзыв об отеле.",
    "zh": "写一篇酒店评论。",
}
NUM_ROWS = {"train": (110, 40), "dev": (30, 15), "test": (40, 20)}  # help pages and reviews of each language
NUM_TEXTS = 80  # plain texts of each language and kind
NUM_CHARS = 1000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    sides = {split: [] for split in (*NUM_ROWS, "texts")}
    for lang in HELP:
        pages = read(arguments.data / "help" / f"{lang}.jsonl.gz")
        for split, drawn in drawn_of(pages, 0).items():
            rows = [chat(lang, "help", page["title"], page["text"]) for page in drawn]
            sides[split] += rows if split != "texts" else [plain(lang, page["text"]) for page in drawn]
    for lang in REVIEWS:
        reviews = read(arguments.data / "bigbench" / "multiemo" / f"hotels.{lang}.jsonl.gz")
        for split, drawn in drawn_of(reviews, 1).items():
            rows = [chat(lang, "review", ASK[lang], review["text"]) for review in drawn]
            sides[split] += rows if split != "texts" else [plain(lang, review["text"]) for review in drawn]
    for split, rows in sides.items():
        random.Random(split).shuffle(rows)
        lines = [json.dumps(row, ensure_ascii=False) for row in rows]
        (arguments.out / f"{split}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
        print(f"{split}: {len(rows)} rows")


def drawn_of(rows: list[Row], kind: int) -> dict[str, list[Row]]:
    """Rows of each split; `texts` are those of the training side."""
    ordered = sorted((row for row in rows if len(row["text"]) >= 80), key=lambda row: str(row["id"]))
    random.Random(0).shuffle(ordered)
    training = [row for row in ordered if not held_out(str(row["id"]))]
    measured = [row for row in ordered if held_out(str(row["id"]))]
    num_dev, num_test = NUM_ROWS["dev"][kind], NUM_ROWS["test"][kind]
    num_train = NUM_ROWS["train"][kind]
    return {
        "train": training[:num_train],
        "dev": measured[:num_dev],
        "test": measured[num_dev : num_dev + num_test],
        "texts": training[num_train : num_train + NUM_TEXTS],
    }


def chat(lang: str, kind: str, question: str, answer: str) -> Row:
    return {
        "lang": lang,
        "kind": kind,
        "prompt": [{"role": "user", "content": question}],
        "completion": [{"role": "assistant", "content": answer[:NUM_CHARS]}],
    }


def plain(lang: str, text: str) -> Row:
    return {"lang": lang, "text": text[:NUM_CHARS]}


if __name__ == "__main__":
    main()
