"""[`estimate_memory`]: what a recipe takes on each device, before anything is loaded."""

import copy
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import nn
from transformers import Trainer
from transformers.utils import logging as transformers_logging
from trl import TrlParser, get_peft_config

from ..features.set.feature_set import FeatureSet
from ..model_loading import config_of
from ..tables import align
from .step import PHASES, StepMemory, StepSettings, step_memory

_ASSUMED_BLOCKS, _ASSUMED_FEATURES = 4, 64
_LOGITS_WHILE_GENERATING = 3  # copies of the last position's logits in float32
_STAGES = {
    "head": "forward pass and LM head",
    "blocks": "backward pass of the blocks",
    "update": "optimiser step",
    "generation": "generation of the rollouts",
}


@dataclass(frozen=True)
class MemoryEstimate:
    """
    Bytes on each device.

    Attributes:
        parts: By stage of the training what lives in it, by kind.
    """

    model: str
    parts: dict[str, dict[str, float]]
    notes: tuple[str, ...]

    @property
    def peaks(self) -> dict[str, float]:
        """Bytes by stage."""
        return {stage: sum(kinds.values()) for stage, kinds in self.parts.items()}

    @property
    def peak(self) -> float:
        """Bytes of the fullest stage."""
        return max(self.peaks.values())

    def __str__(self) -> str:
        fullest = max(self.peaks, key=lambda stage: self.peaks[stage])
        lines = [f"{self.model}: {_size(self.peak)} on each device, in the {_STAGES[fullest]}", ""]
        parts = [(f"  {kind}", _size(value)) for kind, value in self.parts[fullest].items() if value]
        lines += align(parts, num_left=1)
        others = ", ".join(f"{_STAGES[stage]} {_size(p)}" for stage, p in self.peaks.items() if stage != fullest)
        lines += ["", f"Other stages: {others}."]
        lines += ["Beside it: what the device's own libraries take, and what its allocator cannot reuse."]
        return "\n".join([*lines, *self.notes])


def estimate_memory(
    config: str | os.PathLike,
    overrides: Sequence[str] = (),
    *,
    num_processes: int = 1,
    sharded: bool = False,
    prompt_length: int = 512,
) -> MemoryEstimate:
    """
    Memory that a recipe takes on each device.

    Weights, gradients, the optimiser's state and activations are those of a training step that is taken on fake
    tensors, with the model's own code and TRL's fused head; rows of features, their readings, the second model of a
    KL term and the cache of keys and values are counted from their shapes. Of the model only its `config.json` is
    read.

    Args:
        config: YAML file of `sae-posttrain sft` or `grpo`.
        overrides: Fields over those of the file, as on the command line: `["--max_length", "4096"]`.
        num_processes: Devices. More than one, each with the whole model, keep their gradients a second time (DDP's
            buckets).
        sharded: Whether weights, gradients and state are divided over the devices (FSDP2, ZeRO-3).
        prompt_length: Tokens of a prompt in RL, which no setting limits.
    """
    path = Path(config)
    if not path.is_file():
        raise FileNotFoundError(f"There is no file {path} (`--config`).")
    if num_processes < 1 or prompt_length < 1:
        raise ValueError("`num_processes` and `prompt_length` must be 1 or more.")
    if sharded and num_processes == 1:
        raise ValueError("`sharded` divides over devices: set `num_processes` to more than 1.")
    generates = _is_rl(path)
    training_args, model_args = _parse(path, overrides, generates)
    if model_args.load_in_4bit or model_args.load_in_8bit:
        raise ValueError("The memory of quantised models is not estimated: leave `load_in_4bit`, `load_in_8bit` out.")
    if not model_args.model_name_or_path:
        raise ValueError(f"{path} names no model: set `model_name_or_path`.")
    model_config = config_of(
        model_args.model_name_or_path,
        revision=model_args.model_revision,
        trust_remote_code=training_args.trust_remote_code,
    )
    notes: list[str] = []
    settings = _settings(training_args, model_args, model_config, generates, prompt_length, notes)
    with _quiet():
        step = step_memory(model_config, settings)
    shared = _of_all_stages(step, training_args, model_args, model_config, settings, generates, notes)
    parts = {stage: {**shared, **_of_stage(step, stage, settings.accumulates)} for stage in PHASES}
    if generates:
        parts["generation"] = {**shared, **_of_generation(training_args, model_config, settings, prompt_length)}
    if num_processes > 1:
        masters = 1
        if sharded and settings.autocast and settings.dtype.itemsize == 2:
            masters = 2  # accelerate makes them float32 before it divides them, as DeepSpeed does
            notes.append("Divided weights, gradients and state are kept in float32, whatever `dtype` says.")
        depth = model_config.get_text_config().num_hidden_layers
        parts = {
            stage: _divided(kinds, step, num_processes, masters, depth, stage)
            if sharded
            else {**kinds, "gradients in DDP's buckets": step.trained}
            for stage, kinds in parts.items()
        }
    return MemoryEstimate(model_args.model_name_or_path, parts, tuple(notes))


@contextmanager
def _quiet() -> Iterator[None]:
    """What models say when they are made is not about this machine: kernels that are missing here, for one."""
    verbosity = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)


def _is_rl(path: Path) -> bool:
    """Whether a recipe is one of `grpo`: by the fields that only that has."""
    from ..rl.config import SteeredGRPOConfig
    from ..sft.config import SASFTConfig

    given = yaml.safe_load(path.read_text(encoding="utf-8"))
    if not isinstance(given, dict):
        raise ValueError(f"{path} holds no settings.")
    only = set(SteeredGRPOConfig.__dataclass_fields__) - set(SASFTConfig.__dataclass_fields__)
    return not given.keys().isdisjoint(only | {"reward_funcs"})


def _parse(path: Path, overrides: Sequence[str], generates: bool) -> tuple[Any, Any]:
    if generates:
        from ..rl.script import ARGUMENTS
    else:
        from ..sft.script import ARGUMENTS
    arguments = ["--config", str(path), "--use_cpu", "true", *overrides]  # bf16 is refused where there is no GPU
    _, training_args, model_args, _ = TrlParser(ARGUMENTS).parse_args_and_config(args=arguments)
    return training_args, model_args


def _settings(
    training_args: Any, model_args: Any, model_config: Any, generates: bool, prompt_length: int, notes: list[str]
) -> StepSettings:
    length, scored = training_args.max_length if not generates else None, None
    if generates:
        scored = training_args.max_completion_length
        length = prompt_length + scored
        notes.append(f"Prompts were taken to have {prompt_length} tokens.")
    if length is None:
        raise ValueError("`max_length` is not set, so rows may have any length. Set it.")
    peft_config = get_peft_config(model_args)

    def adapt(model: nn.Module) -> nn.Module:
        from peft import get_peft_model

        model.enable_input_require_grads()  # type: ignore[operator]
        return get_peft_model(model, copy.deepcopy(peft_config))  # type: ignore[arg-type]  # it is written to

    return StepSettings(
        rows=training_args.per_device_train_batch_size,
        length=length,
        dtype=_dtype(model_args, model_config),
        autocast=bool(training_args.bf16),
        checkpointing=bool(training_args.gradient_checkpointing),
        accumulates=training_args.gradient_accumulation_steps > 1,
        make_optimiser=_optimiser_of(training_args),
        adapt=adapt if peft_config is not None else None,
        scored=scored,
    )


def _dtype(model_args: Any, model_config: Any) -> torch.dtype:
    if model_args.dtype in (None, "auto"):
        return model_config.dtype or torch.float32
    return getattr(torch, model_args.dtype)


def _optimiser_of(training_args: Any) -> Callable[[nn.Module], torch.optim.Optimizer]:
    def make(model: nn.Module) -> torch.optim.Optimizer:
        try:
            optimiser_class, options = Trainer.get_optimizer_cls_and_kwargs(training_args, model)  # type: ignore[arg-type]
        except (ImportError, RuntimeError) as error:
            raise ValueError(f"`optim={training_args.optim}` cannot be made here: {error}") from error
        return optimiser_class([p for p in model.parameters() if p.requires_grad], **options)

    return make


def _of_all_stages(
    step: StepMemory,
    training_args: Any,
    model_args: Any,
    model_config: Any,
    settings: StepSettings,
    generates: bool,
    notes: list[str],
) -> dict[str, float]:
    """What is there throughout."""
    text = model_config.get_text_config()
    kinds = {"weights": step.weights, "optimiser's state": step.optimiser}
    if training_args.features is not None:
        num_blocks, num_features, rows = _features(training_args.features, text.hidden_size, notes)
        kinds["rows of the features"] = rows
        if not generates:
            reading = 4.0 * settings.rows * settings.length * num_features / num_blocks  # float32, of one block
            # Two of each block are kept for the backward pass, and four live while a block is read.
            kinds["readings of the features"] = reading * (2 * num_blocks + 4)
    if generates and training_args.beta and not model_args.use_peft:
        kinds["reference model"] = step.weights
    return kinds


def _features(name: str, width: int, notes: list[str]) -> tuple[int, int, float]:
    """Blocks and features of a set, and the bytes of their rows; of one that is not here yet, a large one."""
    if Path(name).exists():
        features = FeatureSet.from_pretrained(name)
        num_blocks, num = len(features.places), len(features)
    else:
        num_blocks, num = _ASSUMED_BLOCKS, _ASSUMED_BLOCKS * _ASSUMED_FEATURES
        notes.append(
            f"{name} is not here yet; {_ASSUMED_FEATURES} features in each of {_ASSUMED_BLOCKS} blocks count."
        )
    return num_blocks, num, 4.0 * num * (2 * width + 1)


def _of_stage(step: StepMemory, stage: str, accumulates: bool) -> dict[str, float]:
    """Gradients, as far as there are any for sure, and the rest: activations, or what the update needs for a while."""
    alive = getattr(step, stage)
    gradients = min(step.trained, alive) if stage != "head" or accumulates else 0.0
    rest = "activations, logits of a tile" if stage == "head" else "activations and gradients on the way"
    return {"gradients": gradients, rest: alive - gradients}


def _of_generation(
    training_args: Any, model_config: Any, settings: StepSettings, prompt_length: int
) -> dict[str, float]:
    """The cache of keys and values of all rollouts that are generated at once, and their logits."""
    text = model_config.get_text_config()
    rows = training_args.per_device_train_batch_size * (training_args.steps_per_generation or 1)
    heads = getattr(text, "num_key_value_heads", None) or text.num_attention_heads
    head_dim = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    size = torch.bfloat16.itemsize if settings.autocast else settings.dtype.itemsize
    tokens = prompt_length + training_args.max_completion_length
    kinds = getattr(text, "layer_types", None) or ["full_attention"] * text.num_hidden_layers
    num_attending = sum("attention" in kind and "linear" not in kind for kind in kinds)
    cache = 2.0 * num_attending * heads * head_dim * tokens * rows * size
    logits = 4.0 * _LOGITS_WHILE_GENERATING * rows * text.vocab_size
    return {"keys and values of the rollouts": cache, "logits of the last position": logits}


def _divided(
    kinds: dict[str, float], step: StepMemory, num_processes: int, masters: int, depth: int, stage: str
) -> dict[str, float]:
    """The same on one of several devices that share weights, gradients and state."""
    shared = ("weights", "optimiser's state", "gradients", "reference model")
    found = {kind: masters * value / num_processes if kind in shared else value for kind, value in kinds.items()}
    of_a_block = step.weights / depth
    return {**found, "blocks that are gathered": (3 if stage == "blocks" else 2) * of_a_block}


def _size(num_bytes: float) -> str:
    return f"{num_bytes / 2**30:.2f} GiB" if num_bytes >= 2**28 else f"{num_bytes / 2**20:.1f} MiB"
