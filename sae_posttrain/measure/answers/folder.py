"""
The folder of an evaluation: its settings, its answers and its result, and the checks before they are reused.

Answers are written batch by batch, so the file always holds whole batches, beginning with the first.
"""

import json
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .prompts import Prompt
from .summary import answer_key

ANSWERS_FILE = "answers.jsonl"
SETTINGS_FILE = "settings.json"
EVALUATION_FILE = "evaluation.json"


def claim_folder(output_dir: Path, settings: Mapping[str, Any]) -> None:
    """Write the settings into a new folder, or check that an existing folder has the same settings."""
    output_dir.mkdir(parents=True, exist_ok=True)
    stored = read_json(output_dir / SETTINGS_FILE)
    if stored is None:
        if (output_dir / ANSWERS_FILE).exists():
            raise ValueError(
                f"{output_dir} has answers but no {SETTINGS_FILE} to say how they were made. Pick another "
                "`output_dir`, or delete it."
            )
        write_json(output_dir / SETTINGS_FILE, settings)
        return
    if "engine" in settings:
        stored.setdefault("engine", "transformers")  # which made the answers before there was a choice
    if differences := describe_differences(stored, settings):
        raise ValueError(
            f"{output_dir} holds an evaluation with other settings: {differences}. Pick another `output_dir`, or "
            "delete it to start again."
        )


def describe_differences(stored: Mapping[str, Any], settings: Mapping[str, Any]) -> str:
    """Settings that were and are different, in words."""
    return "; ".join(
        f"{name} was {stored.get(name)!r}, is {settings.get(name)!r}"
        for name in {**stored, **settings}
        if stored.get(name) != settings.get(name)
    )


def keep_whole_batches(path: Path, num_jobs: int, batch_size: int) -> int:
    """Cut the file after its last whole batch; return the number of answers that are left."""
    if not path.is_file():
        return 0
    content = path.read_bytes()
    ends = [found.end() for found in re.finditer(rb"\n", content)]
    num_done = len(ends) if len(ends) >= num_jobs else len(ends) // batch_size * batch_size
    with path.open("r+b") as file:
        file.truncate(ends[num_done - 1] if num_done else 0)
    return num_done


def read_answers(path: Path) -> list[dict[str, Any]]:
    """Judged answers of a file with one answer per line."""
    with path.open(encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def read_finished(
    folder: Path,
    prompts: Sequence[Prompt],
    num_samples: int,
    target_lang: str | None,
    lid: Mapping[str, Any] | None = None,
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Settings and answers of the evaluation to compare with; it must have the same prompts."""
    result = read_json(folder / EVALUATION_FILE)
    if result is None:
        raise ValueError(f"Nothing to compare with: {folder} holds no finished evaluation ({EVALUATION_FILE}).")
    other_target = result["settings"]["target_lang"]
    if other_target != target_lang:
        raise ValueError(
            f"{folder} measured switches into {other_target!r}, this evaluation into {target_lang!r}; set "
            "`target_lang` to the same."
        )
    other_lid = result["settings"].get("lid")
    if lid is not None and other_lid is not None and lid != other_lid:
        raise ValueError(
            f"{folder} identified the language of lines by {other_lid}, this evaluation by {lid}; set "
            "`lid_languages` to the same and use the same version of py3langid, or leave out `lid_languages`."
        )
    answers = read_answers(folder / ANSWERS_FILE)
    asked = {(prompt.id, sample, prompt.lang): prompt.text for prompt in prompts for sample in range(num_samples)}
    other_asked = {answer_key(answer): answer["prompt"] for answer in answers}
    if asked != other_asked:
        only_here = [key for key in asked if key not in other_asked]
        only_there = [key for key in other_asked if key not in asked]
        changed = [key for key in asked if key in other_asked and asked[key] != other_asked[key]]
        example = (only_here + only_there + changed)[0]
        raise ValueError(
            f"{folder} did not answer the same prompts: of the answers by (id, sample, lang), {len(only_here)} are "
            f"only here, {len(only_there)} only there, and {len(changed)} have another prompt, e.g. {example}. Use "
            "the same `data`, `limit`, `seed` and `num_samples` for both."
        )
    return result["settings"], answers


def read_json(path: Path) -> dict[str, Any] | None:
    """Content of a file; `None` if it does not exist yet."""
    if not path.is_file():
        return None
    result: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return result


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write the whole file or nothing."""
    part = path.with_name(path.name + ".part")
    part.write_text(json.dumps(content, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
    os.replace(part, path)
