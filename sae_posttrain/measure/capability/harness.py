"""
Tasks of lm-evaluation-harness (https://github.com/EleutherAI/lm-evaluation-harness): loading them, running one on a
model. The only file that imports it.
"""

import hashlib
import json
import os
import random
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from difflib import get_close_matches
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

_CONFIRM = (
    "Look at the task, then run it in a container and pass `confirm_run_unsafe_code=True` "
    "(`--confirm-run-unsafe-code`)."
)
_NOT_HASHED = ("task_alias", "tag", "dataset_path", "dataset_name", "dataset_kwargs", "custom_dataset", "metadata")
"""What a task's configuration says about names and places; the documents themselves are compared instead."""


def require_harness() -> None:
    """
    Check that lm-evaluation-harness is there, before anything long is done.

    Raises:
        ImportError: If it is not.
    """
    if find_spec("lm_eval") is None:
        raise ImportError("Capability tasks need lm-evaluation-harness: pip install 'sae_posttrain[eval]'.")


def harness_version() -> str:
    """Version of the harness that is installed."""
    return metadata.version("lm_eval")


@dataclass(frozen=True)
class LoadedTasks:
    """
    Tasks that are ready to run.

    Attributes:
        tasks (`dict[str, lm_eval.api.task.Task]`):
            Every single task, by name.
        groups (`dict[str, list[str]]`):
            Names of the tasks in each group that was asked for or lies in one.
    """

    tasks: dict[str, Any]
    groups: dict[str, list[str]]


def load_tasks(
    names: Sequence[str],
    *,
    include_path: str | os.PathLike[str] | None = None,
    num_fewshot: int | None = None,
    seed: int = 0,
    confirm_run_unsafe_code: bool = False,
) -> LoadedTasks:
    """
    Loads tasks and their documents.

    The harness's own tasks are looked through only if a name is not found otherwise: that takes it ten seconds.

    Args:
        names (`Sequence[str]`):
            Tasks, groups and tags by name, and YAML files by path.
        include_path (path, *optional*):
            Folder with YAML files of further tasks; they come before the harness's own of the same name.
        num_fewshot (`int`, *optional*):
            Solved examples before each question; by default what each task says.
        seed (`int`, *optional*, defaults to `0`):
            For tasks that shuffle their documents.
        confirm_run_unsafe_code (`bool`, *optional*, defaults to `False`):
            Allow tasks that run code which the model writes, or which is downloaded.

    Raises:
        ValueError: If a name is unknown; if a task runs unsafe code and this is not confirmed; if its documents cannot
            be loaded; if it is defined without examples and some are asked for.
    """
    from lm_eval.tasks import TaskManager

    if include_path is not None and not Path(include_path).is_dir():
        raise ValueError(f"There is no folder {include_path} to look for tasks in (`include_path`).")
    folders = [os.fspath(include_path)] if include_path is not None else None
    manager = TaskManager(include_path=folders, include_defaults=False)
    members = _members(names, manager.task_index)
    if None in members.values():
        manager = TaskManager(include_path=folders, include_defaults=True)
        members = _members(names, manager.task_index)
    unknown = [name for name, config in members.items() if config is None]
    if unknown:
        close = get_close_matches(unknown[0], [str(name) for name in manager.task_index], n=3)
        raise ValueError(
            f"No task is called {', '.join(unknown)}"
            + (f"; did you mean {', '.join(close)}?" if close else ".")
            + " Own tasks are given as a path of a .yaml file, or by name with `include_path`."
        )
    if not confirm_run_unsafe_code:
        _refuse_unsafe([name for name, config in members.items() if config and config.get("unsafe_code")])
    try:
        with _seeded(seed), _downloaded_code(confirm_run_unsafe_code):
            loaded = manager.load(list(dict.fromkeys(names)))
            groups = {  # asking a task for its name draws a random number
                name: [task.task_name for task in group.get_all_tasks()]
                for name, group in loaded.get("groups", {}).items()
            }
    except OSError as error:
        raise ValueError(
            f"The documents of {', '.join(names)} cannot be loaded: {error}. Relative paths in a task file count from "
            "the folder the command is run in; what lies on the Hub has to be in its cache to be used offline."
        ) from error
    tasks = dict(loaded["tasks"])
    if not confirm_run_unsafe_code:
        _refuse_unsafe([name for name, task in tasks.items() if getattr(task, "UNSAFE_CODE", False)])
    for name, task in tasks.items():
        _set_num_fewshot(name, task, num_fewshot)
    return LoadedTasks(tasks, groups)


def _members(names: Sequence[str], index: Mapping[str, Any]) -> dict[str, Mapping[str, Any] | None]:
    """The unresolved configuration of everything that the names stand for; `None` of what is not known."""
    members: dict[str, Mapping[str, Any] | None] = {}

    def visit(spec: str | Mapping[str, Any]) -> None:
        name = spec if isinstance(spec, str) else str(spec.get("group") or spec.get("task"))
        if name in members:
            return
        if name in index:
            config: Mapping[str, Any] | None = index[name].cfg or {"task": sorted(index[name].tags)}
        elif isinstance(spec, Mapping):
            config = spec  # a task or group that is defined inside a group
        else:
            config = _read_yaml(Path(spec)) if Path(spec).suffix in (".yaml", ".yml") else None
        members[name] = config
        inside = config.get("task") if config else None
        for member in inside if isinstance(inside, list) else []:
            visit(member)

    for name in names:
        visit(name)
    return members


def _read_yaml(path: Path) -> Mapping[str, Any] | None:
    """A task file in which the functions it names are left as names: nothing runs by reading it."""
    import yaml

    class Loader(yaml.SafeLoader):
        pass

    Loader.add_constructor("!function", lambda loader, node: loader.construct_scalar(node))
    if not path.is_file():
        raise ValueError(f"There is no task file {path}.")
    try:
        config = yaml.load(path.read_text(encoding="utf-8"), Loader)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not YAML: {error}.") from error
    if not isinstance(config, dict) or not {"task", "group"} & set(config):
        raise ValueError(f"{path} defines no task: it needs a line `task: name` (or `group: name`).")
    return config


def _refuse_unsafe(names: Sequence[str]) -> None:
    if names:
        raise ValueError(f"{', '.join(names)}: the score comes from running code that the model wrote. {_CONFIRM}")


@contextmanager
def _downloaded_code(allowed: bool) -> Iterator[None]:
    """
    Unless allowed, metrics of the `evaluate` library are refused: it downloads their code and runs it without asking.
    """
    if allowed:
        yield
        return
    import evaluate

    wanted: list[str] = []
    message = f"A metric of this task is code that is downloaded and run ({{}} of the `evaluate` library). {_CONFIRM}"

    def refuse(path: str, *_args: Any, **_kwargs: Any) -> None:
        wanted.append(path)
        raise ValueError(message.format(path))

    load, evaluate.load = evaluate.load, refuse
    cause = None
    try:
        yield
    except Exception as error:  # the harness goes on without a metric that it could not load, and stumbles later
        if not wanted:
            raise
        cause = error
    finally:
        evaluate.load = load
    if wanted:
        raise ValueError(message.format(wanted[0])) from cause


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """A fixed random state inside the context, then the caller's again."""
    import torch

    python_state, numpy_state = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        random.seed(seed)
        np.random.seed(seed % 2**32)
        torch.manual_seed(seed)
        try:
            yield
        finally:
            random.setstate(python_state)
            np.random.set_state(numpy_state)


def _set_num_fewshot(name: str, task: Any, num_fewshot: int | None) -> None:
    own = task.get_config("num_fewshot")
    if num_fewshot is None:
        task.set_config("num_fewshot", own or 0)
        return
    if own == 0 and num_fewshot > 0:
        raise ValueError(
            f"The task {name} is defined without examples (`num_fewshot: 0`), {num_fewshot} are asked for. Run it by "
            "itself, in another folder, without `num_fewshot`."
        )
    task.set_config("num_fewshot", num_fewshot)


def describe_task(task: Any) -> dict[str, Any]:
    """What a stored result of a task must agree with to be used again, but for its documents."""
    config = {key: value for key, value in task.dump_config().items() if key not in _NOT_HASHED}
    text = json.dumps(config, sort_keys=True, default=lambda value: getattr(value, "__qualname__", str(value)))
    text = re.sub(r" at 0x[0-9a-f]+", "", text)  # of functions without a source
    return {
        "version": str(task.VERSION),
        "num_fewshot": task.get_config("num_fewshot"),
        "config_sha256": hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16],
    }


def document_hashes(task: Any, limit: int | None) -> list[str]:
    """Hash of each document that will be asked, as the harness computes it for its samples."""
    from lm_eval.utils import handle_non_serializable, hash_string

    return [
        hash_string(json.dumps(document, indent=2, default=handle_non_serializable, ensure_ascii=False))
        for _, document in task.doc_iterator(limit=limit)
    ]


def wrap_model(
    model: Any, tokenizer: Any, batch_size: int, chat_template_kwargs: Mapping[str, Any] | None = None
) -> Any:
    """A loaded causal language model as the harness calls it. Code of the model's repository is not run."""
    from copy import deepcopy

    from lm_eval.models.huggingface import HFLM

    if tokenizer.pad_token_id is None:
        tokenizer = deepcopy(tokenizer)  # the harness chooses one, which is not to reach the caller's
    variables = {"chat_template_args": dict(chat_template_kwargs)} if chat_template_kwargs else {}
    return HFLM(pretrained=model, backend="causal", tokenizer=tokenizer, batch_size=batch_size, **variables)


def run_task(
    wrapped: Any,
    task: Any,
    *,
    limit: int | None,
    chat_template: bool,
    seed: int,
    confirm_run_unsafe_code: bool = False,
) -> tuple[dict[str, dict[str, Any]], list[dict[str, Any]]]:
    """
    Asks a model everything in a task.

    Seeded task by task, so that a result does not depend on which others are run before it. Goes through the harness's
    `evaluate` rather than `simple_evaluate`, which describes the whole machine at each call.

    Returns:
        `tuple[dict, list[dict]]`: of each metric (`acc`, or with the name of an answer filter `exact_match,strict`)
        its `value` and whether `higher_is_better` (`None` if the task does not say); and an item for each document:
        `task`, `doc_id`, `doc_hash`, `prompt_hash`, `metrics`.
    """
    from lm_eval.evaluator import evaluate

    with _seeded(seed), _downloaded_code(confirm_run_unsafe_code):
        name = task.task_name  # draws a random number, so it belongs here
        task.set_fewshot_seed(seed)
        result = evaluate(
            lm=wrapped,
            task_dict={"tasks": {name: task}},
            limit=limit,
            bootstrap_iters=0,
            apply_chat_template=chat_template,
            fewshot_as_multiturn=chat_template,
            confirm_run_unsafe_code=confirm_run_unsafe_code,
        )
    higher = result["higher_is_better"].get(name) or {}
    metrics = {}
    for key, value in result["results"][name].items():
        metric, comma, filter_name = key.partition(",")
        if comma and not metric.endswith("_stderr"):
            metrics[_metric_name(metric, filter_name)] = {
                "value": _plain(value),
                "higher_is_better": higher.get(metric),
            }
    items: dict[int, dict[str, Any]] = {}
    for sample in result["samples"][name]:
        item = items.setdefault(
            sample["doc_id"],
            {
                "task": name,
                "doc_id": sample["doc_id"],
                "doc_hash": sample["doc_hash"],
                "prompt_hash": sample["prompt_hash"],
                "metrics": {},
            },
        )
        for metric in sample["metrics"]:
            item["metrics"][_metric_name(metric, sample["filter"])] = _plain(sample[metric])
    return metrics, list(items.values())


def _metric_name(metric: str, filter_name: str) -> str:
    return metric if filter_name == "none" else f"{metric},{filter_name}"


def _plain(value: Any) -> Any:
    """As JSON can hold it: numbers, text and lists of them. Not a number is `None`."""
    if isinstance(value, np.ndarray | np.generic):
        value = value.tolist()
    if isinstance(value, list | tuple | set):
        return [_plain(part) for part in value]
    if isinstance(value, Mapping):
        return {str(key): _plain(part) for key, part in value.items()}
    if isinstance(value, float):
        return value if np.isfinite(value) else None
    return value if isinstance(value, bool | int | str) or value is None else str(value)
