"""Tasks of lm-evaluation-harness (https://github.com/EleutherAI/lm-evaluation-harness). Only this file imports it."""

import hashlib
import json
import os
import random
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from difflib import get_close_matches
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

_CONFIRM = (
    "Look at the task, then run it in a container and pass `confirm_run_unsafe_code=True` "
    "(`--confirm-run-unsafe-code`)."
)
_NOT_HASHED = ("task_alias", "tag", "dataset_path", "dataset_name", "dataset_kwargs", "custom_dataset", "metadata")
"""Names and places in a task's configuration. The documents themselves are compared instead."""


def require_harness() -> None:
    """Check that lm-evaluation-harness is installed (`ImportError`), before anything long is done."""
    if find_spec("lm_eval") is None:
        raise ImportError("Capability tasks need lm-evaluation-harness: pip install 'sae_posttrain[eval]'.")


def load_tasks(
    names: Sequence[str],
    *,
    include_path: str | os.PathLike[str] | None = None,
    num_fewshot: int | None = None,
    seed: int = 0,
    confirm_run_unsafe_code: bool = False,
) -> tuple[dict[str, Any], dict[str, list[str]]]:
    """
    Load tasks and their documents; the arguments are those of [`evaluate_tasks`].

    Returns every single task by name, and the names of the tasks in each group.
    """
    from lm_eval.tasks import TaskManager
    from yaml import YAMLError

    if include_path is not None and not Path(include_path).is_dir():
        raise ValueError(f"There is no folder {include_path} to look for tasks in (`include_path`).")
    folders, asked = None if include_path is None else [os.fspath(include_path)], list(dict.fromkeys(names))
    with _downloaded_code(asked, confirm_run_unsafe_code):
        for include_defaults in (False, True):  # the search through the harness's own tasks takes ten seconds
            manager = TaskManager(include_path=folders, include_defaults=include_defaults)
            try:
                with _seeded(seed):  # asking a task for its name draws a random number
                    loaded = manager.load(asked)
                    of_groups = loaded.get("groups", {}).items()
                    groups = {name: [task.task_name for task in group.get_all_tasks()] for name, group in of_groups}
                break
            except (KeyError, OSError, TypeError, ValueError, YAMLError) as error:
                unknown = isinstance(error, (KeyError, TypeError))  # a name, given or inside a group
                if not unknown or include_defaults:
                    raise ValueError(_message(asked, error, manager.all_tasks if unknown else ())) from error
    for name, task in loaded["tasks"].items():
        if getattr(task, "UNSAFE_CODE", False) and not confirm_run_unsafe_code:
            raise ValueError(f"{name}: the score comes from running code that the model wrote. {_CONFIRM}")
        own = task.get_config("num_fewshot")
        if own == 0 and num_fewshot:  # the harness would go on without examples
            raise ValueError(
                f"The task {name} is defined without examples (`num_fewshot: 0`), {num_fewshot} are asked for. Run it "
                "by itself, in another folder, without `num_fewshot`."
            )
        task.set_config("num_fewshot", (own or 0) if num_fewshot is None else num_fewshot)
    return loaded["tasks"], groups


def _message(names: Sequence[str], error: Exception, known: Sequence[str]) -> str:
    """Why tasks cannot be loaded; `known` are the names that there are, if a name is the reason."""
    near = [match for name in names for match in get_close_matches(name, known, n=1)]
    reason = error.args[0] if isinstance(error, KeyError) else error
    return (
        f"{', '.join(names)} cannot be loaded: {reason}. "
        + (f"Did you mean {', '.join(near)}? " if near else "")
        + "Own tasks are given as a path of a .yaml file, or by name with `include_path`. Relative paths in a task "
        "file count from the folder the command is run in; what lies on the Hub has to be in its cache to be used "
        "offline."
    )


@contextmanager
def _downloaded_code(names: Sequence[str], allowed: bool) -> Iterator[None]:
    """Unless allowed, refuse the metrics of the `evaluate` library: it runs downloaded code without asking."""
    import evaluate

    load, refused = evaluate.load, []

    def refuse(path: str, *_args: Any, **_kwargs: Any) -> None:
        refused.append(path)
        raise ValueError(path)

    evaluate.load = load if allowed else refuse
    try:
        yield
    finally:
        evaluate.load = load
        if refused:  # whether the harness stumbled over the missing metric or went on without it
            raise ValueError(
                f"{', '.join(names)}: a metric is code that is downloaded and run ({refused[0]} of the `evaluate` "
                f"library). {_CONFIRM}"
            )


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Fix the random state inside the context, and restore the caller's afterwards."""
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


def describe_task(task: Any) -> dict[str, Any]:
    """What must not change, besides the documents, for a stored result of a task to be used again."""
    config = {key: value for key, value in task.dump_config().items() if key not in _NOT_HASHED}
    text = json.dumps(config, sort_keys=True, default=lambda value: getattr(value, "__qualname__", str(value)))
    text = re.sub(r" at 0x[0-9a-f]+", "", text)  # of functions without a source
    return {
        "version": str(task.VERSION),
        "num_fewshot": task.get_config("num_fewshot"),
        "config_sha256": hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16],
    }


def document_hashes(task: Any, limit: int | None) -> list[str]:
    """Hash of each document that will be asked, as in the harness's samples."""
    from lm_eval.utils import handle_non_serializable, hash_string

    return [
        hash_string(json.dumps(document, indent=2, default=handle_non_serializable, ensure_ascii=False))
        for _, document in task.doc_iterator(limit=limit)
    ]


def wrap_model(model: Any, tokenizer: Any, batch_size: int, chat_template_kwargs: Mapping[str, Any]) -> Any:
    """Wrap a loaded causal language model for the harness. It runs no code of the model's repository."""
    from lm_eval.models.huggingface import HFLM

    return HFLM(
        pretrained=model,
        backend="causal",
        tokenizer=deepcopy(tokenizer),  # the harness sets a padding token
        batch_size=batch_size,
        chat_template_args=dict(chat_template_kwargs),
    )


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
    Ask a model everything in a task.

    The seed is set for each task, so a result does not depend on which others run before it. The harness's `evaluate`
    is called because `simple_evaluate` describes the whole machine at each call. Returns `value` and
    `higher_is_better` (`None` if the task does not say) of each metric (`acc`, or with an answer filter
    `exact_match,strict`), and the line of each document for `task_items.jsonl`.
    """
    from lm_eval.evaluator import evaluate

    with _seeded(seed):
        name = task.task_name  # draws a random number, so it belongs here
        task.set_fewshot_seed(seed)
        with _downloaded_code([name], confirm_run_unsafe_code):
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
    metrics = {
        key.removesuffix(",none"): {"value": _plain(value), "higher_is_better": higher.get(key.partition(",")[0])}
        for key, value in result["results"][name].items()
        if "," in key and "_stderr," not in key
    }
    items: dict[int, dict[str, Any]] = {}
    for sample in result["samples"][name]:
        same = {key: sample[key] for key in ("doc_id", "doc_hash", "prompt_hash")}
        item = items.setdefault(sample["doc_id"], {"task": name, **same, "metrics": {}})
        for metric in sample["metrics"]:
            item["metrics"][f"{metric},{sample['filter']}".removesuffix(",none")] = _plain(sample[metric])
    return metrics, list(items.values())


def _plain(value: Any) -> Any:
    """The value as JSON can hold it. Not a number is `None`."""
    text = json.dumps(value, default=lambda v: list(v) if isinstance(v, set) else getattr(v, "tolist", v.__str__)())
    return json.loads(text, parse_constant=lambda _: None)
