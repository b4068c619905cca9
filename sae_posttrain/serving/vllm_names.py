"""
The names inside vLLM that steering rests on, in one place. vLLM does not promise them.

A test of the slow vLLM suite compares each with the release that is installed, and fails first when one moves. The two
runners are wrapped on the instance: vLLM's classes are left as they are.
"""

import re
from collections.abc import Callable, Iterable, Sequence
from functools import wraps
from typing import Any

import numpy as np
from torch import nn

from .engine_steering import NewRequest

Fill = Callable[[Sequence[str], np.ndarray, np.ndarray, int], None]
"""Takes request ids, starts, computed tokens and the number of tokens of a step: `EngineSteering.fill`."""

WORKERS = {
    "cpu": "vllm.v1.worker.cpu_worker.CPUWorker",
    "cuda": "vllm.v1.worker.gpu_worker.Worker",
    "rocm": "vllm.v1.worker.gpu_worker.Worker",
    "xpu": "vllm.v1.worker.xpu_worker.XPUWorker",
}
"""Worker of each platform, as vLLM's `worker_cls="auto"` chooses it."""

_BLOCK = re.compile(r"(.*\.)?(?:layers|h)\.(\d+)")


def base_worker() -> type:
    """
    The worker class of this platform.

    Raises:
        ValueError: If the platform is not in [`WORKERS`].
    """
    from vllm.platforms import current_platform
    from vllm.utils.import_utils import resolve_obj_by_qualname

    platform = current_platform._enum.name.lower()
    if platform not in WORKERS:
        raise ValueError(f"Requests can be steered in vLLM on {', '.join(WORKERS)}, not on {platform!r}.")
    return resolve_obj_by_qualname(WORKERS[platform])


def new_requests(scheduler_output: Any) -> Iterable[NewRequest]:
    """The requests that a step begins, from vLLM's `SchedulerOutput`."""
    for request in scheduler_output.scheduled_new_reqs:
        extra = (request.sampling_params.extra_args if request.sampling_params else None) or {}
        prompt = request.prompt_token_ids if request.prompt_token_ids is not None else request.prompt_embeds
        yield NewRequest(request.req_id, extra, None if prompt is None else len(prompt))


def finished_requests(scheduler_output: Any) -> Iterable[str]:
    """Ids of the requests that have finished since the last step."""
    return scheduler_output.finished_req_ids


def watch_runner(runner: Any, fill: Fill) -> None:
    """
    Call `fill` in each step, after the runner has ordered its batch and before it runs the model.

    Raises:
        ValueError: If the runner has neither of the two methods that order a batch.
    """
    if hasattr(runner, "_prepare_inputs"):
        _watch_v1(runner, fill)
    elif hasattr(runner, "prepare_inputs"):
        _watch_v2(runner, fill)
    else:
        raise ValueError(
            f"Requests cannot be steered with the runner {type(runner).__name__}: it has neither `_prepare_inputs` "
            "nor `prepare_inputs`. This version of vLLM is not supported; 0.31 is."
        )


def decoder_blocks(model: Any, num_blocks: int) -> list[nn.Module]:
    """
    Decoder blocks of a vLLM model, counted from 0; those of the language model where there are others.

    Raises:
        ValueError: If no list of `num_blocks` blocks is found, or several are.
    """
    if hasattr(model, "get_language_model"):
        model = model.get_language_model()
    lists: dict[str, dict[int, nn.Module]] = {}
    for name, module in model.named_modules():
        if found := _BLOCK.fullmatch(name):
            lists.setdefault(found[1] or "", {})[int(found[2])] = module
    whole = [found for found in lists.values() if sorted(found) == list(range(num_blocks))]
    if len(whole) != 1:
        held = ", ".join(f"{len(found)} at {name or 'the top'}" for name, found in lists.items()) or "none"
        raise ValueError(
            f"{type(model).__name__} should have one list of {num_blocks} decoder blocks; found {held}. Its requests "
            "cannot be steered."
        )
    return [whole[0][i] for i in range(num_blocks)]


def _watch_v1(runner: Any, fill: Fill) -> None:
    prepare = runner._prepare_inputs

    @wraps(prepare)
    def prepare_inputs(scheduler_output: Any, *args: Any, **kwargs: Any) -> Any:
        prepared = prepare(scheduler_output, *args, **kwargs)
        batch = runner.input_batch
        num = batch.num_reqs
        starts, computed = runner.query_start_loc.np[: num + 1], batch.num_computed_tokens_cpu[:num]
        fill(batch.req_ids, starts, computed, scheduler_output.total_num_scheduled_tokens)
        return prepared

    runner._prepare_inputs = prepare_inputs


def _watch_v2(runner: Any, fill: Fill) -> None:
    prepare = runner.prepare_inputs

    @wraps(prepare)
    def prepare_inputs(*args: Any, **kwargs: Any) -> Any:
        batch = prepare(*args, **kwargs)
        fill(batch.req_ids, batch.query_start_loc_np, batch.num_computed_tokens_np, batch.num_tokens)
        return batch

    runner.prepare_inputs = prepare_inputs
