"""The reviews and the model of `classify_reviews.py`, and what its SAEs say of them, read once and kept."""

import gzip
import json
import random
from pathlib import Path
from typing import Any

from sae_posttrain import TextOptions
from sae_posttrain.analysis import TextActivations, read_activations

OPTIONS = TextOptions(group_column="label", max_length=256)
LABELS = ("negative", "positive")
BLOCKS = (9, 14)
LANGUAGES = ("de", "es", "fr", "it", "ja", "pl", "ru", "zh")
NUM_ENGLISH = {"train": 300, "test": 200}
"""Reviews of each label in English."""
NUM_TRANSLATED = {"train": 50, "test": 100}
"""Reviews of each label in each other language: translations of the first of these."""


def review_sets(folder: Path, language: str, domain: str = "hotels") -> dict[str, list[dict[str, Any]]]:
    """
    Rows for training and for testing, as many of each label. The same review is on the same side in every language.

    All product reviews are for testing, as many negative ones as there are positive ones.
    """
    with gzip.open(folder / f"{domain}.{language}.jsonl.gz", "rt", encoding="utf-8") as file:
        rows = [row for row in map(json.loads, file) if row["label"] in LABELS]
    by_label = {label: [row for row in rows if row["label"] == label] for label in LABELS}
    for members in by_label.values():
        members.sort(key=lambda row: row["id"])
        random.Random(0).shuffle(members)
    if domain == "products":
        most = min(map(len, by_label.values()))
        return {"test": [row for members in by_label.values() for row in members[:most]]}
    train, test = NUM_ENGLISH["train"], NUM_ENGLISH["test"]
    sides = {
        side: {label: members[first : first + number] for label, members in by_label.items()}
        for side, first, number in (("train", 0, train), ("test", train, test))
    }
    most = {} if language == "en" else NUM_TRANSLATED
    return {
        side: [row for rows in labels.values() for row in rows[: most.get(side)]] for side, labels in sides.items()
    }


def activations_of(rows: list[dict[str, Any]], name: str, model: Path, saes: Path, kept: Path) -> TextActivations:
    """Activations of both blocks in one pass, with the pooled residual for the probes, kept in a file of this name."""
    kept.mkdir(parents=True, exist_ok=True)
    return read_activations(
        str(model),
        [str(saes / f"blocks.{block}.hook_resid_post") for block in BLOCKS],
        [{"text": row["text"], "label": row["label"]} for row in rows],
        blocks=BLOCKS,
        residuals=True,
        text_options=OPTIONS,
        cache=kept / f"{name}.safetensors",
    )
