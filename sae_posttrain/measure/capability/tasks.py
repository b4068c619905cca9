"""
What a model can still do: tasks of lm-evaluation-harness, run one by one into a folder; resumable, comparable by item.

Everything that is compared comes from `task_items.jsonl`, one line a document.
"""

import json
import os
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...eval_mode import eval_mode
from ...model_loading import load_model, load_tokenizer
from ...model_records import recorded_kwargs, recorded_model, recorded_name, weights_fingerprint
from ..answers.folder import read_json, write_json
from .harness import describe_task, document_hashes, harness_version, load_tasks, require_harness, run_task, wrap_model
from .task_summary import add_intervals, check_same_items, compare_tasks, pool_group

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedTokenizerBase

TASKS_FILE = "tasks.json"
ITEMS_FILE = "task_items.jsonl"

Items = dict[str, list[dict[str, Any]]]
"""Lines of `task_items.jsonl`, by task."""


def evaluate_tasks(
    model: "nn.Module | str | os.PathLike[str]",
    tasks: Sequence[str],
    *,
    output_dir: str | os.PathLike[str],
    tokenizer: "PreTrainedTokenizerBase | str | os.PathLike[str] | None" = None,
    include_path: str | os.PathLike[str] | None = None,
    limit: int | None = None,
    num_fewshot: int | None = None,
    chat_template: bool | None = None,
    chat_template_kwargs: Mapping[str, Any] | None = None,
    batch_size: int = 32,
    seed: int = 0,
    compare: str | os.PathLike[str] | None = None,
    margin: float = 0.02,
    device: str | None = None,
    model_kwargs: Mapping[str, Any] | None = None,
    confirm_run_unsafe_code: bool = False,
) -> dict[str, Any]:
    """
    Measures a model on tasks of lm-evaluation-harness (`pip install 'sae_posttrain[eval]'`).

    Writes `tasks.json` (what is returned, without the comparison, for all tasks run into the folder so far) and
    `task_items.jsonl` (a line for each document: `task`, `doc_id`, `doc_hash`, `prompt_hash`, `metrics`) to
    `output_dir` after each task. A task that is finished there is not run again; the model is loaded only if one is
    left. The folder may be that of [`evaluate`]. Of a local path, the files hold the last part only.

    Args:
        model (`PreTrainedModel`, `PeftModel`, `str` or path):
            A loaded causal language model, or a folder or Hub id of a model or an adapter. A loaded model stays where
            it is and is put back into the training mode it had.
        tasks (`Sequence[str]`):
            Tasks, groups and tags of the harness by name, and YAML files of own tasks by path. A YAML file can name
            Python functions beside it, which are run: use only files that you trust.
        output_dir (path):
            Folder for the results; made if missing.
        tokenizer (`PreTrainedTokenizerBase`, `str` or path, *optional*):
            By default that of the model, or of an adapter's base model.
        include_path (path, *optional*):
            Folder with YAML files of further tasks, which can then be given by name.
        limit (`int`, *optional*):
            Use the first so many documents of each task only.
        num_fewshot (`int`, *optional*):
            Solved examples before each question; by default what each task says.
        chat_template (`bool`, *optional*):
            Whether prompts go through the tokenizer's chat template, examples as earlier turns; by default if it has
            one. Most published figures of base models come from plain prompts.
        chat_template_kwargs (`Mapping[str, Any]`, *optional*):
            Further variables of the template, e.g. `{"enable_thinking": False}`.
        batch_size (`int`, *optional*, defaults to `32`):
            Requests at once. May change between the tasks of a folder: it moves figures by rounding only.
        seed (`int`, *optional*, defaults to `0`):
            For the draw of examples, and answers that a task samples; the same for each task.
        compare (path, *optional*):
            `output_dir` of another model on the same tasks: adds `comparison`, this one minus that one, paired by
            document.
        margin (`float`, *optional*, defaults to `0.02`):
            Largest loss that is acceptable, as a rate: what the comparison has to rule out.
        device (`str`, *optional*):
            Where to put a model that is loaded here; by default an accelerator if there is one.
        model_kwargs (`Mapping[str, Any]`, *optional*):
            Further arguments of `from_pretrained`, e.g. `{"dtype": "bfloat16", "revision": "main"}`.
        confirm_run_unsafe_code (`bool`, *optional*, defaults to `False`):
            Allow tasks that run code which the model writes (humaneval) or metrics whose code is downloaded.

    Returns:
        `dict`: `tasks` and `groups` by name, each metric with `value`, `n` and, where it is 0 or 1 for each item, the
        95 % Wilson interval `low` to `high`; `settings`; `versions`; with `compare`, `comparison` as of
        [`compare_tasks`]. [`format_tasks`] makes a table of it.

    Raises:
        ImportError: If the harness is not installed.
        ValueError: If a task or setting is not usable, before the model is loaded; if `output_dir` holds tasks with
            other settings, or the same task with another configuration or other documents; if the run to compare with
            lacks a task or was asked other documents.
    """
    _check_settings(tasks, limit, num_fewshot, batch_size, margin)
    require_harness()
    output_dir = Path(output_dir)
    other = _read_other(Path(compare)) if compare is not None else None
    loaded, loaded_groups = load_tasks(
        tasks,
        include_path=include_path,
        num_fewshot=num_fewshot,
        seed=seed,
        confirm_run_unsafe_code=confirm_run_unsafe_code,
    )
    described = {name: describe_task(task) for name, task in loaded.items()}
    hashes = {name: document_hashes(task, limit) for name, task in loaded.items()}
    if other is not None:
        _check_other(Path(compare or ""), other, hashes)

    tokenizer, tokenizer_name = load_tokenizer(tokenizer, model)
    has_template = bool(getattr(tokenizer, "chat_template", None))
    use_template = has_template if chat_template is None else chat_template
    if use_template and not has_template:
        raise ValueError("The tokenizer has no chat template. Set one, or `chat_template=False` to send plain text.")
    if chat_template_kwargs and not use_template:
        raise ValueError(
            f"The chat template's variables {dict(chat_template_kwargs)} would have no effect: the tasks' prompts are "
            "sent without it. Leave out one of the two."
        )
    settings = {
        "model": recorded_model(model),
        "model_fingerprint": weights_fingerprint(model),
        "model_kwargs": recorded_kwargs(model_kwargs or {}),
        "tokenizer": tokenizer_name,
        "chat_template": use_template,
        "chat_template_kwargs": dict(chat_template_kwargs) if chat_template_kwargs else None,
        "limit": limit,
        "num_fewshot": num_fewshot,
        "seed": seed,
        "lm_eval": harness_version(),
    }
    stored, items = _open_folder(output_dir, settings)
    for name in set(stored["tasks"]) & set(loaded):
        _check_stored(output_dir, name, stored["tasks"][name], described[name], items.get(name, []), hashes[name])

    groups = {**{name: group["tasks"] for name, group in stored["groups"].items()}, **loaded_groups}
    left = [name for name in loaded if name not in stored["tasks"]]
    if left:
        loaded_model = load_model(model, device, model_kwargs)
        with eval_mode(loaded_model):
            wrapped = wrap_model(loaded_model, tokenizer, batch_size, chat_template_kwargs)
            for name in left:
                metrics, items[name] = run_task(
                    wrapped,
                    loaded[name],
                    limit=limit,
                    chat_template=use_template,
                    seed=seed,
                    confirm_run_unsafe_code=confirm_run_unsafe_code,
                )
                stored["tasks"][name] = {
                    **described[name],
                    "batch_size": batch_size,
                    "metrics": add_intervals(metrics, items[name]),
                }
                _append_items(output_dir / ITEMS_FILE, items[name])
                write_json(output_dir / TASKS_FILE, {**stored, "groups": _pool_finished(groups, stored["tasks"])})
    elif not set(loaded_groups) <= set(stored["groups"]):  # a group of tasks that were run one by one
        write_json(output_dir / TASKS_FILE, {**stored, "groups": _pool_finished(groups, stored["tasks"])})

    result = {
        **stored,
        "tasks": {name: stored["tasks"][name] for name in loaded},
        "groups": _pool_finished(loaded_groups, stored["tasks"]),
    }
    if compare is not None and other is not None:
        other_record, other_items = other
        result["comparison"] = {
            "other": recorded_name(compare),
            "other_model": other_record["settings"]["model"],
            "different_settings": _different_settings(settings, other_record["settings"]),
            **compare_tasks(result["tasks"], loaded_groups, other_items, items, margin),
        }
    return result


def _check_settings(
    tasks: Sequence[str], limit: int | None, num_fewshot: int | None, batch_size: int, margin: float
) -> None:
    if isinstance(tasks, str) or not tasks:
        raise ValueError(f"`tasks` is a list of one or more names or YAML files, got {tasks!r}.")
    for name, value in {"limit": limit, "batch_size": batch_size}.items():
        if value is not None and value < 1:
            raise ValueError(f"`{name}` must be 1 or more, got {value}.")
    if num_fewshot is not None and num_fewshot < 0:
        raise ValueError(f"`num_fewshot` must be 0 or more, got {num_fewshot}.")
    if not 0 < margin < 1:
        raise ValueError(f"`margin` is a rate between 0 and 1, 0.02 for 2 points; got {margin}.")


def _read_other(folder: Path) -> tuple[dict[str, Any], Items]:
    record = read_json(folder / TASKS_FILE)
    if record is None:
        raise ValueError(f"Nothing to compare with: {folder} holds no results of tasks ({TASKS_FILE}).")
    return record, _read_items(folder / ITEMS_FILE, record["tasks"])


def _check_other(folder: Path, other: tuple[dict[str, Any], Items], hashes: Mapping[str, list[str]]) -> None:
    record, items = other
    missing = [name for name in hashes if name not in record["tasks"]]
    if missing:
        raise ValueError(f"{folder} has no result of {', '.join(missing)} to compare with. Run the same tasks there.")
    for name in hashes:
        check_same_items(name, hashes[name], [item["doc_hash"] for item in items.get(name, [])], str(folder))


def _open_folder(output_dir: Path, settings: Mapping[str, Any]) -> tuple[dict[str, Any], Items]:
    """What is finished in the folder; what was begun and not finished is removed."""
    output_dir.mkdir(parents=True, exist_ok=True)
    stored = read_json(output_dir / TASKS_FILE)
    if stored is None:
        stored = {"settings": dict(settings), "versions": _versions(), "tasks": {}, "groups": {}}
    differences = [
        f"{name} was {stored['settings'].get(name)!r}, is {settings.get(name)!r}"
        for name in {**stored["settings"], **settings}
        if stored["settings"].get(name) != settings.get(name)
    ]
    if differences:
        raise ValueError(
            f"{output_dir} holds tasks with other settings: {'; '.join(differences)}. Pick another `output_dir`, or "
            f"delete its {TASKS_FILE} to start anew."
        )
    items = _read_items(output_dir / ITEMS_FILE, stored["tasks"])
    part = output_dir / (ITEMS_FILE + ".part")
    part.unlink(missing_ok=True)
    for of_task in items.values():
        _append_items(part, of_task)
    if part.exists():
        os.replace(part, output_dir / ITEMS_FILE)
    else:
        (output_dir / ITEMS_FILE).unlink(missing_ok=True)
    return stored, items


def _read_items(path: Path, finished: Mapping[str, Any]) -> Items:
    items: Items = {}
    if not path.is_file():
        return items
    with path.open(encoding="utf-8") as file:
        for line in file:
            try:
                item = json.loads(line)
            except json.JSONDecodeError:
                break  # the last line of a run that was cut off
            if item["task"] in finished:
                items.setdefault(item["task"], []).append(item)
    return items


def _append_items(path: Path, items: Sequence[Mapping[str, Any]]) -> None:
    with path.open("a", encoding="utf-8") as file:
        file.writelines(json.dumps(item, ensure_ascii=False) + "\n" for item in items)


def _check_stored(
    output_dir: Path,
    name: str,
    stored: Mapping[str, Any],
    described: Mapping[str, Any],
    items: Sequence[Mapping[str, Any]],
    hashes: Sequence[str],
) -> None:
    advice = f"Pick another `output_dir`, or delete its {TASKS_FILE} to start anew."
    changed = [key for key in described if stored.get(key) != described[key]]
    if changed:
        raise ValueError(f"{output_dir} holds {name} as it was before it changed ({', '.join(changed)}). {advice}")
    if [item["doc_hash"] for item in items] != list(hashes):
        raise ValueError(
            f"{output_dir} holds {name} with other documents: {len(items)} there, {len(hashes)} now, not the same. "
            f"{advice}"
        )


def _pool_finished(groups: Mapping[str, Sequence[str]], tasks: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    return {
        group: {"tasks": list(members), "metrics": pool_group({name: tasks[name] for name in members})}
        for group, members in groups.items()
        if all(name in tasks for name in members)
    }


def _different_settings(settings: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    own = ("model", "model_fingerprint", "model_kwargs", "tokenizer")
    return [name for name in settings if name not in own and settings[name] != other.get(name)]


def _versions() -> dict[str, str]:
    versions = {}
    for package in ("sae-posttrain", "torch", "transformers", "datasets"):
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:  # run from a checkout
            continue
    return versions
