"""The benchmark tasks of `task_coverage.py`, and what the model's SAEs say of them, read once and kept."""

import gzip
import json
from pathlib import Path

from sae_posttrain import TextOptions
from sae_posttrain.analysis import TextActivations, read_activations

OPTIONS = TextOptions(group_column="task", max_length=512)
NUM_EXAMPLES = 60


def task_rows(folder: Path, num_examples: int = NUM_EXAMPLES) -> list[dict[str, str]]:
    """The first examples of every task; the group of a row is its task."""
    rows = []
    for path in sorted(folder.glob("*.jsonl.gz")):
        with gzip.open(path, "rt", encoding="utf-8") as file:
            examples = [json.loads(line)["input"] for line in file][:num_examples]
        rows += [{"text": text, "task": path.name.removesuffix(".jsonl.gz")} for text in examples]
    return rows


def activations_of(
    folder: Path,
    pool: str,
    model: Path,
    saes: list[Path],
    blocks: list[int],
    kept: Path,
    k: int | None = None,
    num_examples: int = NUM_EXAMPLES,
) -> TextActivations:
    """Activations of all blocks in one pass, at the last token (`"last"`) or over all of them (`"max"`)."""
    kept.mkdir(parents=True, exist_ok=True)
    return read_activations(
        str(model),
        [str(sae) for sae in saes],
        task_rows(folder, num_examples),
        blocks=blocks,
        pool=pool,
        text_options=OPTIONS,
        k=k,
        cache=kept / f"tasks.{model.name}.{pool}.{num_examples}.safetensors",
    )
