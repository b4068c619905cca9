"""
Find complete checkpoints of a run. When training resumes, a checkpoint whose writing was interrupted is skipped.

The trainer writes a checkpoint in place: weights, optimizer, scheduler, random states, and `trainer_state.json` last.
So a killed process leaves a folder without a readable `trainer_state.json`, which is how it is recognised. Every file
that resuming reads is also checked by its size and its table of contents. This finds interrupted copies and deletions.
Nothing is unpickled.

Some damage cannot be found. A safetensors file has its full size before its content is written. If the machine itself
goes down, data that the operating system had not yet written can be missing from a file of the right size.
"""

import json
import logging
import os
import re
import zipfile
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

logger = logging.getLogger(__name__)

STATE_FILE = "trainer_state.json"
"""The file of a checkpoint that is written last."""

_CHECKPOINT = re.compile(r"checkpoint-(\d{1,18})")
_WEIGHTS = (
    "*model.safetensors",  # adapter_model.safetensors too, as below
    "*model.bin",
    "*/adapter_model.safetensors",  # of several adapters, each has a folder
    "*/adapter_model.bin",
    "*.index.json",
    "pytorch_model_fsdp*",
    "global_step*",
)
_OPTIMIZER = ("optimizer.pt", "optimizer.bin", "optimizer_*", "rank*-optimizer.pt", "global_step*")
_SCHEDULER = ("scheduler.pt", "global_step*")  # DeepSpeed's own scheduler has no file
_RANDOM_STATES = ("rng_state.pth", "rng_state_*.pth")
_WRITTEN_BY_TORCH = re.compile(
    r"(optimizer|rank\d+-of-\d+-optimizer|scheduler|scaler|rng_state|pytorch_model|adapter_model)[\w-]*\.(pt|pth|bin)"
)


def last_complete_checkpoint(output_dir: str | os.PathLike[str]) -> str | None:
    """
    The newest checkpoint of a run's folder from which training can continue as if it had not stopped, for
    `trainer.train(resume_from_checkpoint=…)`; `None` if there is none.

    Newer checkpoints that are damaged or hold only the weights (`save_only_model`) are skipped. A warning names them
    and says what is missing. With several processes, it is not noticed if the random states of the last processes are
    missing; transformers then warns and draws new states.
    """
    for folder in _checkpoints(output_dir):
        try:
            _require_complete(folder)
        except (ValueError, OSError) as error:
            logger.warning("Skipping the checkpoint %s: %s.", folder, error)
        else:
            return str(folder)
    return None


class CompleteCheckpoints:
    """
    Mixin that makes `train(resume_from_checkpoint=True)` continue from the last complete checkpoint.

    List it before a trainer in the bases of a class. If the folder has no checkpoint, training starts from the
    beginning with a warning, so a job that may be killed at any time can always be started in the same way.
    """

    # The trainer's own; declared for the type checker.
    args: Any
    state: Any
    accelerator: Any

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any) -> Any:
        """As the trainer's own."""
        if resume_from_checkpoint is True:
            resume_from_checkpoint = _checkpoint_to_resume(self.args.output_dir)
        return super().train(resume_from_checkpoint, *args, **kwargs)  # type: ignore[misc]

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        # An earlier run may have left a checkpoint of this name. Its last file would make a mix of both look complete.
        run_folder = self._get_output_dir(trial=trial)  # type: ignore[attr-defined]
        if self.args.should_save:
            (Path(run_folder) / f"checkpoint-{self.state.global_step}" / STATE_FILE).unlink(missing_ok=True)
        self.accelerator.wait_for_everyone()
        super()._save_checkpoint(model, trial)  # type: ignore[misc]


def _checkpoint_to_resume(output_dir: str) -> str | None:
    checkpoint = last_complete_checkpoint(output_dir)
    if checkpoint is not None:
        return checkpoint
    if num_damaged := len(_checkpoints(output_dir)):
        raise ValueError(
            f"None of the {num_damaged} checkpoints in {output_dir} is complete, so training cannot go on from one. "
            "Leave `resume_from_checkpoint` out to start from the beginning, which overwrites them."
        )
    logger.warning("There is no checkpoint in %s to resume from: training starts from the beginning.", output_dir)
    return None


def _checkpoints(output_dir: str | os.PathLike[str]) -> list[Path]:
    """Newest first."""
    folders = [path for path in Path(output_dir).glob("checkpoint-*") if path.is_dir()]
    steps = {path: int(match[1]) for path in folders if (match := _CHECKPOINT.fullmatch(path.name))}
    return sorted(steps, key=lambda path: -steps[path])


def _require_complete(folder: Path) -> None:
    """Raise a `ValueError` or `OSError` that says what is wrong with a checkpoint, if it is not complete."""
    _check_state(folder / STATE_FILE, step=int(folder.name.removeprefix("checkpoint-")))
    if not _holds(folder, *_WEIGHTS):
        raise ValueError("it holds no weights")
    if not _holds(folder, *_OPTIMIZER, *_SCHEDULER, *_RANDOM_STATES):
        raise ValueError("it holds the weights only, and training needs the optimizer's state too")
    for what, patterns in (
        ("optimizer's state", _OPTIMIZER),
        ("scheduler's state", _SCHEDULER),
        ("random states", _RANDOM_STATES),
    ):
        if not _holds(folder, *patterns):
            raise ValueError(f"the {what} is missing ({patterns[0]})")
    _check_processes(folder)
    for path in sorted([*folder.glob("*"), *folder.glob("*/*")]):
        _check_file(path)


def _holds(folder: Path, *patterns: str) -> bool:
    return any(any(folder.glob(pattern)) for pattern in patterns)


def _check_state(path: Path, step: int) -> None:
    if not path.is_file():
        raise ValueError(f"it has no {STATE_FILE}, so its writing was cut short")
    state = _read_json(path)
    if state.get("global_step") != step:
        raise ValueError(f"its {STATE_FILE} is of step {str(state.get('global_step'))[:20]}")


def _check_processes(folder: Path) -> None:
    names = [path.name for path in folder.glob("rng_state_*.pth")]
    numbers = sorted(int(match[1]) for name in names if (match := re.fullmatch(r"rng_state_(\d{1,9})\.pth", name)))
    missing = set(range(numbers[0], numbers[-1])) - set(numbers) if numbers else set()
    if missing:
        raise ValueError(f"the random states of process {min(missing)} are missing")


def _check_file(path: Path) -> None:
    """Check that a file that resuming reads is as long as its own table of contents says."""
    name = path.name
    if path.is_dir():
        if name.startswith(("pytorch_model_fsdp_", "optimizer_")) and not (path / ".metadata").is_file():
            raise ValueError(f"{name} has no table of contents (.metadata)")
        if name.startswith("global_step") and not (path.parent / "latest").is_file():
            raise ValueError("DeepSpeed's file `latest` is missing")
    elif name.endswith(".safetensors"):
        try:
            with safe_open(path, framework="np"):
                pass
        except SafetensorError as error:
            raise ValueError(f"{name} is damaged or not whole ({error})") from error
    elif _WRITTEN_BY_TORCH.fullmatch(name) or (path.parent.name.startswith("global_step") and path.suffix == ".pt"):
        try:
            with zipfile.ZipFile(path):  # the table of contents stands at the end
                pass
        # A damaged table, a damaged name in it, or a nonsensical version number of the format.
        except (zipfile.BadZipFile, UnicodeDecodeError, NotImplementedError) as error:
            raise ValueError(f"{name} is damaged or not whole ({error})") from error
    elif name.endswith(".index.json"):
        files = _read_json(path).get("weight_map")
        shards = files.values() if isinstance(files, dict) else ()
        missing = [str(shard) for shard in shards if not (path.parent / Path(str(shard)).name).is_file()]
        if missing or not shards:
            raise ValueError(f"of the files that {name} names, {missing[0][:80] if missing else 'all'} is missing")


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path.name} cannot be read ({error})") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path.name} holds a {type(content).__name__}, not an object")
    return content
