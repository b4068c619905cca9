"""
What a model can still do: tasks of lm-evaluation-harness, run one by one into a folder; resumable, comparable by item.

Everything that is compared comes from `task_items.jsonl`, one line a document.
"""

import json
import os
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...eval_mode import eval_mode
from ...model_loading import load_model, load_tokenizer
from ...model_records import installed_versions, recorded_kwargs, recorded_model, recorded_name, weights_fingerprint
from ..answers.folder import describe_differences, read_answers, read_json, write_json
from .harness import describe_task, document_hashes, load_tasks, require_harness, run_task, wrap_model
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
    Measure a model on tasks of lm-evaluation-harness (`pip install 'sae_posttrain[eval]'`).

    After each task, `tasks.json` (the returned dict without the comparison, for all tasks in the folder) and
    `task_items.jsonl` (a line for each document: `task`, `doc_id`, `doc_hash`, `prompt_hash`, `metrics`) are written
    to `output_dir`. A task that is finished there is not run again, and the model is loaded only if one is left. The
    folder may be that of [`evaluate`]. These files hold only the last part of a local path.

    Args:
        model (`PreTrainedModel`, `PeftModel`, `str` or path):
            A causal language model or an adapter, as in [`evaluate`].
        tasks (`Sequence[str]`):
            Tasks, groups and tags of the harness by name, and YAML files of own tasks by path. A YAML file can name
            Python functions beside it, which are run: use only files that you trust.
        output_dir (path):
            Folder for the results; made if missing.
        tokenizer, device, model_kwargs (*optional*):
            As in [`evaluate`].
        include_path (path, *optional*):
            Folder with YAML files of further tasks, which can then be given by name. They come before the harness's
            own tasks of the same name.
        limit (`int`, *optional*):
            Use only this many documents of each task, from the first on.
        num_fewshot (`int`, *optional*):
            Solved examples before each question; by default what each task says.
        chat_template (`bool`, *optional*):
            Whether prompts go through the tokenizer's chat template, examples as earlier turns; by default if it has
            one. Most published figures of base models come from plain prompts.
        chat_template_kwargs (`Mapping[str, Any]`, *optional*):
            Further variables of the template, e.g. `{"enable_thinking": False}`.
        batch_size (`int`, *optional*, defaults to `32`):
            Requests at once. It may change between the tasks of a folder: it moves figures by rounding only.
        seed (`int`, *optional*, defaults to `0`):
            Seed of the examples, and of answers that a task samples; the same for each task.
        compare (path, *optional*):
            `output_dir` of another model on the same tasks. This adds `comparison`: this model minus the other, paired
            by document.
        margin (`float`, *optional*, defaults to `0.02`):
            Largest acceptable loss, as a rate: what the comparison has to rule out.
        confirm_run_unsafe_code (`bool`, *optional*, defaults to `False`):
            Allow tasks that run code which the model writes (humaneval) or metrics whose code is downloaded.

    Returns:
        `dict`: `tasks` and `groups` by name, each metric with `value`, `n` and, if it is 0 or 1 for each item, the
        95 % Wilson interval `low` to `high`; `settings`; `versions`; with `compare`, `comparison` as of
        [`compare_tasks`]. [`format_tasks`] makes a table of it.

    Raises:
        ImportError: If the harness is not installed.
        ValueError: If a task or setting is not usable, before the model is loaded; if `output_dir` holds tasks with
            other settings, or the same task with another configuration or other documents; if the run to compare with
            lacks a task or was asked other documents.
    """
    if isinstance(tasks, str) or not tasks:
        raise ValueError(f"`tasks` is a list of one or more names or YAML files, got {tasks!r}.")
    for name, value, least in (("limit", limit, 1), ("batch_size", batch_size, 1), ("num_fewshot", num_fewshot, 0)):
        if value is not None and value < least:
            raise ValueError(f"`{name}` must be {least} or more, got {value}.")
    if not 0 < margin < 1:
        raise ValueError(f"`margin` is a rate between 0 and 1, 0.02 for 2 points; got {margin}.")
    require_harness()
    output_dir = Path(output_dir)
    other, other_items = (None, {}) if compare is None else _read_folder(Path(compare))
    if compare is not None and other is None:
        raise ValueError(f"Nothing to compare with: {compare} holds no results of tasks ({TASKS_FILE}).")
    loaded, groups = load_tasks(
        tasks,
        include_path=include_path,
        num_fewshot=num_fewshot,
        seed=seed,
        confirm_run_unsafe_code=confirm_run_unsafe_code,
    )
    described = {name: describe_task(task) for name, task in loaded.items()}
    hashes = {name: document_hashes(task, limit) for name, task in loaded.items()}
    if compare is not None and other is not None:
        if missing := [name for name in loaded if name not in other["tasks"]]:
            raise ValueError(
                f"{compare} has no result of {', '.join(missing)} to compare with. Run the same tasks there."
            )
        for name in loaded:
            check_same_items(name, hashes[name], other_items.get(name, []), Path(compare))

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
        **installed_versions("lm_eval"),
    }
    stored, items = _read_folder(output_dir)
    if stored is None:
        versions = installed_versions("sae-posttrain", "torch", "transformers", "datasets")
        stored = {"settings": settings, "versions": versions, "tasks": {}, "groups": {}}
    advice = f"Pick another `output_dir`, or delete its {TASKS_FILE} to start again."
    if differences := describe_differences(stored["settings"], settings):
        raise ValueError(f"{output_dir} holds tasks with other settings: {differences}. {advice}")
    for name in set(stored["tasks"]) & set(loaded):
        before = stored["tasks"][name]
        if changed := [key for key, value in described[name].items() if before.get(key) != value]:
            raise ValueError(f"{output_dir} holds {name} as it was before it changed ({', '.join(changed)}). {advice}")
        check_same_items(name, hashes[name], items.get(name, []), output_dir)

    output_dir.mkdir(parents=True, exist_ok=True)
    if left := [name for name in loaded if name not in stored["tasks"]]:
        loaded_model = load_model(model, device, model_kwargs)
        with eval_mode(loaded_model):
            wrapped = wrap_model(loaded_model, tokenizer, batch_size, chat_template_kwargs or {})
            for name in left:
                metrics, items[name] = run_task(
                    wrapped,
                    loaded[name],
                    limit=limit,
                    chat_template=use_template,
                    seed=seed,
                    confirm_run_unsafe_code=confirm_run_unsafe_code,
                )
                metrics = add_intervals(metrics, items[name])
                stored["tasks"][name] = {**described[name], "batch_size": batch_size, "metrics": metrics}
                _write_folder(output_dir, stored, items)
    for name, members in groups.items():
        metrics = pool_group([stored["tasks"][member]["metrics"] for member in members])
        stored["groups"][name] = {"tasks": members, "metrics": metrics}
    _write_folder(output_dir, stored, items)

    result = {
        **stored,
        "tasks": {name: stored["tasks"][name] for name in loaded},
        "groups": {name: stored["groups"][name] for name in groups},
    }
    if compare is not None and other is not None:
        of_model = ("model", "model_fingerprint", "model_kwargs", "tokenizer")
        compared = [name for name in settings if name not in of_model]
        result["comparison"] = {
            "other": recorded_name(compare),
            "other_model": other["settings"]["model"],
            "different_settings": [name for name in compared if settings[name] != other["settings"].get(name)],
            **compare_tasks(result, other_items, items, margin),
        }
    return result


def _read_folder(folder: Path) -> tuple[dict[str, Any] | None, Items]:
    """Content of `tasks.json` (`None` if there is none), and the items of the tasks that are finished there."""
    record, items = read_json(folder / TASKS_FILE), defaultdict(list)
    if record is not None:
        for item in read_answers(folder / ITEMS_FILE):
            if item["task"] in record["tasks"]:
                items[item["task"]].append(item)
    return record, items


def _write_folder(folder: Path, record: dict[str, Any], items: Items) -> None:
    """Write both files, each as a whole: a run that is cut off leaves them as they were after its last task."""
    part = folder / (ITEMS_FILE + ".part")
    with part.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(item, ensure_ascii=False) + "\n" for of_task in items.values() for item in of_task)
    os.replace(part, folder / ITEMS_FILE)
    write_json(folder / TASKS_FILE, record)
