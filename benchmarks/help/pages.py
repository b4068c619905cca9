"""
The help pages as training examples, prompts and texts: which page is in which split, and in what form.

The folder holds `<lang>.jsonl[.gz]` with rows `{id, lang, title, text}`, parallel by `id`. Pages that exist in every
language are ordered by the hash of their id; the first go to `test`, the next to `dev`, all other pages to `train`.
"""

import argparse
import hashlib
import json
from pathlib import Path
from typing import Any

from sae_posttrain.measure.answers.prompts import read_rows

Row = dict[str, Any]


def load_pages(folder: Path) -> dict[str, dict[str, Row]]:
    """Pages by language, then by id."""
    files = sorted(file for file in folder.iterdir() if file.name.endswith((".jsonl", ".jsonl.gz")))
    if not files:
        raise FileNotFoundError(f"{folder} holds no <lang>.jsonl or <lang>.jsonl.gz.")
    pages: dict[str, dict[str, Row]] = {}
    for file in files:
        for row in read_rows(file):
            pages.setdefault(row["lang"], {})[row["id"]] = dict(row)
    return pages


def split_ids(pages: dict[str, dict[str, Row]], num_held_out: int) -> dict[str, set[str]]:
    """Ids of the `test` and the `dev` pages, `num_held_out` each, in every language."""
    ordered = shared_ids(pages)
    if len(ordered) < 4 * num_held_out:
        raise ValueError(
            f"{len(ordered)} pages exist in every language, too few for {num_held_out} test and dev pages."
        )
    return {"test": set(ordered[:num_held_out]), "dev": set(ordered[num_held_out : 2 * num_held_out])}


def shared_ids(pages: dict[str, dict[str, Row]]) -> list[str]:
    """Ids of the pages that exist in every language, in the order of their hashes."""
    shared = set.intersection(*(set(of_language) for of_language in pages.values()))
    return sorted(shared, key=lambda page_id: hashlib.sha256(page_id.encode()).hexdigest())


def rows_of(pages: dict[str, dict[str, Row]], splits: dict[str, set[str]], split: str) -> list[Row]:
    """The pages of a split, all languages, as they are."""
    held_out = set.union(*splits.values())
    wanted = (lambda page_id: page_id not in held_out) if split == "train" else splits[split].__contains__
    return [row for of_language in pages.values() for page_id, row in of_language.items() if wanted(page_id)]


def as_example(row: Row) -> Row:
    """Title as the user's turn, text as the answer: TRL's conversational prompt-completion form."""
    return {
        "id": row["id"],
        "lang": row["lang"],
        "prompt": [{"role": "user", "content": row["title"]}],
        "completion": [{"role": "assistant", "content": row["text"]}],
    }


def as_text(row: Row) -> Row:
    """The plain page, as the model read it in pretraining."""
    return {"lang": row["lang"], "text": f"{row['title']}\n{row['text']}"}


def main(argv: list[str] | None = None) -> None:
    """Write train.jsonl, dev.jsonl, test.jsonl (examples) and texts.jsonl (plain training pages) for the recipe."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder of <lang>.jsonl[.gz]")
    parser.add_argument("--out", type=Path, required=True, help="folder to write to")
    parser.add_argument("--held-out", type=int, default=150, help="test pages in each language, and as many dev pages")
    arguments = parser.parse_args(argv)
    pages = load_pages(arguments.data)
    splits = split_ids(pages, arguments.held_out)
    arguments.out.mkdir(parents=True, exist_ok=True)
    for split in ("train", "dev", "test"):
        write_jsonl(arguments.out / f"{split}.jsonl", [as_example(row) for row in rows_of(pages, splits, split)])
    write_jsonl(arguments.out / "texts.jsonl", [as_text(row) for row in rows_of(pages, splits, "train")])


def write_jsonl(file: Path, rows: list[Row]) -> None:
    """One JSON object a line."""
    file.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    print(f"{file.name}: {len(rows)} rows")


if __name__ == "__main__":
    main()
