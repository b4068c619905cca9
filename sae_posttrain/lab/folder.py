"""`sae-posttrain lab`: the model that ships, its SAEs and its texts, as files that the other commands take."""

import json
import os
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from .contents import MODEL, SAE, read_texts

MODEL_FOLDER = "model"
SAE_FOLDER = "sae"
TEXTS_FILE = "texts.jsonl"
TRAIN_FILE = "train.jsonl"
PROMPTS_FILE = "prompts.jsonl"
SETTINGS_FILE = "sft.yaml"

CONTENTS = {
    MODEL_FOLDER: "Qwen3 model of two million parameters, trained on English, Chinese, Korean and Russian",
    SAE_FOLDER: "one TopK SAE for each of its blocks",
    TEXTS_FILE: "clean texts with their language, for find-features --texts",
    TRAIN_FILE: "conversations with a planted fault, stray Chinese words, for sft",
    SETTINGS_FILE: "settings of a short training, for sft --config",
    PROMPTS_FILE: "test questions with their language, for evaluate --prompts",
}
"""What [`write_lab`] writes."""

_SETTINGS = """\
# `sae-posttrain sft --config` takes this file. The command line adds `features` and `output_dir`.
model_name_or_path: {model}
dataset_name: {data}
penalty_weight: 10.0  # 0: plain fine-tuning
margin: 1.0
penalty_positions: predicting
assistant_only_loss: true
max_length: 160
max_steps: 60
per_device_train_batch_size: 16
learning_rate: 1.0e-3
warmup_steps: 10
train_sampling_strategy: group_by_length
gradient_checkpointing: false
use_cpu: true
bf16: false
logging_steps: 20
save_strategy: "no"
report_to: none
"""


def write_lab(folder: str | os.PathLike[str]) -> Path:
    """
    Write the lab's model, SAEs and texts to a folder.

    - `model/`: a Qwen3 model of two million parameters, with tokenizer and chat template.
    - `sae/`: one TopK SAE for each block of the model, in SAELens' layout.
    - `texts.jsonl`: clean texts with their language (`text`, `lang`), for `find-features --texts`.
    - `train.jsonl`: conversations (`messages`, `lang`) with a planted fault, for `sft --dataset_name`. Some English,
      Korean and Russian answers contain a stray Chinese word.
    - `sft.yaml`: settings for `sft --config`, which take half a minute on a CPU.
    - `prompts.jsonl`: test questions (`messages`, `lang`), for `evaluate --prompts`. None of them asks for a
      translation. The shortest answers come first, so that a batch has answers of similar length.

    Args:
        folder: Folder to write. It must be new or empty.

    Returns the folder.
    """
    folder = Path(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise FileExistsError(f"{folder} is not an empty folder. Name a new or empty one.")
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copytree(MODEL, folder / MODEL_FOLDER)
    shutil.copytree(SAE, folder / SAE_FOLDER)
    texts = ({"id": row["id"], "lang": row["lang"], "text": row["answer"]} for row in read_texts("dev"))
    questions = sorted(
        (row for row in read_texts("test") if row["kind"] != "translate"), key=lambda row: len(row["answer"])
    )
    prompts = (
        {"id": row["id"], "lang": row["lang"], "messages": [{"role": "user", "content": row["prompt"]}]}
        for row in questions
    )
    _write_rows(folder / TEXTS_FILE, texts)
    _write_rows(folder / TRAIN_FILE, read_texts("train"))
    _write_rows(folder / PROMPTS_FILE, prompts)
    settings = _SETTINGS.format(
        model=json.dumps(str(folder / MODEL_FOLDER), ensure_ascii=False),
        data=json.dumps(str(folder / TRAIN_FILE), ensure_ascii=False),
    )
    (folder / SETTINGS_FILE).write_text(settings, encoding="utf-8")
    return folder


def _write_rows(file: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    file.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
