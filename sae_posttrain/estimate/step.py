"""
Memory of one training step, from the model's configuration alone: the step is taken on fake tensors, which have shapes
and no contents, and what is alive is counted.
"""

import copy
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import AutoModelForCausalLM
from trl.trainer import add_fused_lm_head

from ..hooks.blocks import find_blocks
from .live_bytes import LiveBytes

PHASES = ("head", "blocks", "update")
"""Forward pass and the LM head's backward pass; backward pass of the blocks; the optimiser's step."""


@dataclass(frozen=True)
class StepMemory:
    """
    Bytes on one device, each a linear function of the number of blocks while the blocks are alike.

    Attributes:
        trained: Parameters that are trained; their gradients take as much.
        optimiser: Its state, after the first step.
        head, blocks, update: The most that lives beside weights and state in each of [`PHASES`]: activations, and the
            gradients made so far.
    """

    weights: float
    trained: float
    optimiser: float
    head: float
    blocks: float
    update: float

    def extrapolated(self, other: "StepMemory", steps: float) -> "StepMemory":
        """This and so many times the way from here to another."""
        values = {}
        for each in fields(self):
            here, there = getattr(self, each.name), getattr(other, each.name)
            values[each.name] = here + steps * (there - here)
        return StepMemory(**values)


@dataclass(frozen=True)
class StepSettings:
    """
    What a step is made of: `rows` sequences of `length` tokens on one device.

    `autocast`: the forward pass runs in bfloat16 by autocast; `checkpointing`: blocks are computed again in the
    backward pass; `accumulates`: gradients of earlier micro-batches are there already. The loss is on the last
    `scored` tokens of each row, or on all. `adapt` makes a model with adapters.
    """

    rows: int
    length: int
    dtype: torch.dtype
    autocast: bool
    checkpointing: bool
    accumulates: bool
    make_optimiser: Callable[[nn.Module], torch.optim.Optimizer]
    adapt: Callable[[nn.Module], nn.Module] | None = None
    scored: int | None = None


def step_memory(config: Any, settings: StepSettings) -> StepMemory:
    """
    Memory of a step of a causal language model with this configuration, blocks beyond the first few extrapolated. A
    `ValueError` says that the blocks are not alike, so that a few do not speak for all.
    """
    depth, period = config.get_text_config().num_hidden_layers, _period(config)
    first = min(depth, max(2, period))
    if first + period >= depth:
        return _run(config, settings)
    short = _run(_with_depth(config, first), settings)
    found = short.extrapolated(_run(_with_depth(config, first + period), settings), (depth - first) / period)
    _require_alike(config, settings, found)
    return found


def num_parameters(config: Any) -> int:
    """Parameters of a model with this configuration."""
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in AutoModelForCausalLM.from_config(config).parameters())


def _run(config: Any, settings: StepSettings) -> StepMemory:
    with torch.device("meta"):
        inner = model = AutoModelForCausalLM.from_config(config, dtype=settings.dtype)
        if settings.adapt is not None:
            model = settings.adapt(model)
    model.train()
    if settings.checkpointing:
        _checkpoint(inner)
    with FakeTensorMode(allow_non_fake_inputs=True):
        _on_fake_tensors(model)
        add_fused_lm_head(inner, outputs=("log_probs", "entropy", "is_top1"))
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        optimiser = settings.make_optimiser(model)
        for parameter in trained:
            parameter.grad = torch.empty_like(parameter)
        optimiser.step()  # the first step makes the state
        if not settings.accumulates:
            optimiser.zero_grad()
        state = [
            value for own in optimiser.state.values() for value in own.values() if isinstance(value, torch.Tensor)
        ]
        try:
            peaks = _peaks(model, optimiser, settings)
        except RuntimeError as error:  # an operator that says nothing of shapes alone
            raise ValueError(
                f"A training step of {config.model_type} cannot be taken on fake tensors in {settings.dtype}, so its "
                f"memory is not estimated: {error} Mixtures of experts can in bfloat16: set `dtype: bfloat16`."
            ) from error
        own_gradients = _bytes(trained) if settings.accumulates else 0  # made before anything was counted
        return StepMemory(
            weights=_bytes([*model.parameters(), *model.buffers()]),
            trained=_bytes(trained),
            optimiser=_bytes(state),
            **{phase: peak + own_gradients for phase, peak in peaks.items()},
        )


def _peaks(model: nn.Module, optimiser: torch.optim.Optimizer, settings: StepSettings) -> dict[str, int]:
    """The most alive in each phase."""
    peaks: dict[str, int] = {}
    with LiveBytes() as live:

        def end(phase: str) -> None:
            peaks[phase] = live.peak
            live.peak = live.now

        def at_the_last_block(_module: nn.Module, _args: Any, output: Any) -> None:
            value = output[0] if isinstance(output, tuple) else output
            if value.requires_grad:
                value.register_hook(lambda _: end("head"))

        hook = list(find_blocks(model))[-1].register_forward_hook(at_the_last_block)
        ids = torch.zeros(settings.rows, settings.length, dtype=torch.int64)
        labels = ids.clone()
        if settings.scored is not None:
            labels[:, : -settings.scored] = -100
        with torch.autocast("cpu", torch.bfloat16) if settings.autocast else nullcontext():
            output = model(
                input_ids=ids, attention_mask=torch.ones_like(ids), labels=labels, use_cache=False, fused_lm_head=True
            )
        output.loss.backward()
        hook.remove()
        del output
        end("blocks")
        optimiser.step()
        end("update")
    return peaks


def _on_fake_tensors(model: nn.Module) -> None:
    """Put fake tensors of the processor in place of those of no device, which take other ways through a model."""
    made: dict[int, Any] = {}  # shared ones once
    for module in model.modules():
        for own in (module._parameters, module._buffers):
            for name, tensor in own.items():
                if tensor is None:
                    continue
                if id(tensor) not in made:
                    fake = torch.empty(tensor.shape, dtype=tensor.dtype)
                    is_parameter = isinstance(tensor, nn.Parameter)
                    made[id(tensor)] = nn.Parameter(fake, tensor.requires_grad) if is_parameter else fake
                own[name] = made[id(tensor)]


def _checkpoint(model: nn.Module) -> None:
    name = "activation_checkpointing_enable"  # of transformers 5.23 on
    enable: Any = getattr(model, name, None) or model.gradient_checkpointing_enable
    enable({"use_reentrant": False})


def _bytes(tensors: Any) -> int:
    """Bytes of the storages of tensors, shared ones once."""
    return sum({tensor.untyped_storage()._cdata: tensor.untyped_storage().nbytes() for tensor in tensors}.values())


def _period(config: Any) -> int:
    """After how many blocks their kinds repeat."""
    kinds = getattr(config.get_text_config(), "layer_types", None)
    if not kinds:
        return 1
    return next(p for p in range(1, len(kinds) + 1) if all(a == b for a, b in zip(kinds, kinds[p:])))


def _with_depth(config: Any, depth: int) -> Any:
    config = copy.deepcopy(config)
    text = config.get_text_config()
    if getattr(text, "layer_types", None):
        text.layer_types = text.layer_types[:depth]
    text.num_hidden_layers = depth
    return config


def _require_alike(config: Any, settings: StepSettings, found: StepMemory) -> None:
    """The whole model's parameters, counted, have to be those that a few blocks promise."""
    if settings.adapt is not None:
        return  # adapters are of the same blocks; the weights below them were looked at or will be
    counted = num_parameters(config) * settings.dtype.itemsize
    if abs(found.trained - counted) > 0.005 * counted:
        raise ValueError(
            f"The blocks of {config.model_type} are not alike: a few of them promise {found.trained / 1e9:.2f} GB of "
            f"weights, and the model has {counted / 1e9:.2f} GB. Its memory cannot be estimated from a few."
        )
