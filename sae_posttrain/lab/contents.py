"""The files that ship in `files/`, made by `benchmarks/lab/build.py`."""

import gzip
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

FILES = Path(__file__).parent / "files"
MODEL = FILES / "model"
"""A Qwen3 model of two million parameters, with tokenizer and chat template."""
SAE = FILES / "sae"
"""A TopK SAE for each block of the model, in SAELens' layout."""

SPLITS = ("train", "dev", "test")


def read_texts(split: str) -> list[dict[str, Any]]:
    """
    Questions and answers of a split; the same questions in English, Chinese, Korean and Russian.

    Args:
        split: `"train"`: rows with `id`, `lang` and `messages`; some answers contain stray Chinese words. `"dev"` and
            `"test"`: rows with `id`, `lang`, `kind`, `prompt`, `answer` and `check`, the text that a right answer
            contains (empty if the answer cannot be checked).
    """
    if split not in SPLITS:
        raise ValueError(f"The lab has the splits {', '.join(SPLITS)}, not {split!r}.")
    with gzip.open(FILES / "texts" / f"{split}.jsonl.gz", "rt", encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def as_messages(rows: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The rows with `prompt` as a user's turn, as in the lab model's training. A text would skip the template."""
    return [{**row, "prompt": [{"role": "user", "content": row["prompt"]}]} for row in rows]
