"""
The state of SAELens' trainer of one SAE, in one file: tensors in safetensors, numbers as JSON in its header.

SAELens' own checkpoints hold pickled objects.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

_COUNTERS = ("n_training_samples", "n_training_steps", "n_frac_active_samples", "started_fine_tuning")
_STATISTICS = ("act_freq_scores", "n_forward_passes_since_fired")


def write_state(file: Path, trainer: Any, more: Mapping[str, Tensor]) -> None:
    """
    Write everything that a training goes on from.

    Args:
        file (`pathlib.Path`):
            File to write.
        trainer (`sae_lens.training.sae_trainer.SAETrainer`):
            The trainer, between two steps.
        more (`Mapping[str, torch.Tensor]`):
            Other tensors to keep in the file.
    """
    optimizer = trainer.optimizer.state_dict()
    tensors = {f"sae.{name}": tensor for name, tensor in trainer.sae.state_dict().items()}
    for number, state in optimizer["state"].items():
        tensors |= {f"adam.{number}.{name}": tensor for name, tensor in state.items()}
    tensors |= {name: getattr(trainer, name) for name in _STATISTICS}
    numbers = {
        "optimizer": optimizer["param_groups"],
        "learning_rate": trainer.lr_scheduler.state_dict(),
        "coefficients": {name: each.state_dict() for name, each in trainer.coefficient_schedulers.items()},
        "counters": {name: getattr(trainer, name) for name in _COUNTERS},
        "scale": trainer.activation_scaler.scaling_factor,
    }
    tensors = {name: tensor.detach().contiguous() for name, tensor in {**tensors, **more}.items()}
    save_file(tensors, file, metadata={"numbers": json.dumps(numbers)})


def read_state(file: Path, device: torch.device) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """
    Tensors and numbers of a file of [`write_state`].

    Raises:
        OSError, safetensors.SafetensorError, ValueError: If it cannot be read.
    """
    with safe_open(file, framework="pt", device=str(device)) as opened:
        metadata = opened.metadata() or {}
        tensors = {name: opened.get_tensor(name) for name in opened.keys()}
    try:
        numbers = json.loads(metadata.get("numbers", ""))
    except RecursionError as error:
        raise ValueError(f"{file.name} is nested too deep") from error
    return tensors, numbers


def set_state(trainer: Any, tensors: Mapping[str, Tensor], numbers: Mapping[str, Any]) -> None:
    """
    Put a new trainer of the same recipe into the state that was read.

    Raises:
        ValueError, KeyError, RuntimeError: If the state is not one of such a trainer.
    """
    sae = {name.removeprefix("sae."): tensor for name, tensor in tensors.items() if name.startswith("sae.")}
    trainer.sae.load_state_dict(sae)
    state: dict[int, dict[str, Tensor]] = {}
    parameters = list(trainer.sae.parameters())
    for name, tensor in tensors.items():
        if name.startswith("adam."):
            _, number, part = name.split(".")
            if part != "step" and tensor.shape != parameters[int(number)].shape:
                raise ValueError(f"{name} has the shape {tuple(tensor.shape)}")
            state.setdefault(int(number), {})[part] = tensor.cpu() if part == "step" else tensor
    if sorted(state) != list(range(len(parameters))):
        raise ValueError(f"it holds the state of {len(state)} of {len(parameters)} parameters")
    groups = [{**group, "betas": tuple(group["betas"])} for group in numbers["optimizer"]]
    trainer.optimizer.load_state_dict({"state": state, "param_groups": groups})
    trainer.lr_scheduler.load_state_dict(numbers["learning_rate"])
    for name, scheduler in trainer.coefficient_schedulers.items():
        scheduler.load_state_dict(numbers["coefficients"][name])
    for name in _STATISTICS:
        if tensors[name].shape != getattr(trainer, name).shape:
            raise ValueError(f"{name} has the shape {tuple(tensors[name].shape)}")
        setattr(trainer, name, tensors[name])
    for name in _COUNTERS:
        setattr(trainer, name, numbers["counters"][name])
    trainer.activation_scaler.scaling_factor = float(numbers["scale"])
