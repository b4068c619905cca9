"""
Read sites in a forward pass that stops after the deepest block that is read, and computes no logits.

An exception that only this file knows leaves the block; hooks and contexts on its way end as after any other error.
Where a wrapper would not survive that, or a pass is not what it seems, the whole pass runs and a warning says why.
"""

import logging
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from .blocks import get_block, wrappers
from .sharded import is_sharded
from .sites import Place, describe_place, hook_sites

logger = logging.getLogger(__name__)


def read_sites(
    model: nn.Module, places: Sequence[Place], *, input_ids: Tensor, attention_mask: Tensor
) -> dict[Place, Tensor]:
    """
    The values at some sites of decoder blocks, from a forward pass that stops after the deepest of these blocks.

    They are the values of the whole pass, bit for bit, without gradients. Later blocks, the output head and a cache
    are not computed. The pass runs in the model's present mode: put it into evaluation mode if there is dropout.
    Pushes of a [`steer`] context apply, but one that pushes only later blocks raises, because nothing reached them.

    A model that `torch.compile` has compiled is read without its graph, whose hooks cannot be changed. The whole pass
    runs, with one warning, if the parameters are sharded over processes, if accelerate offloads the parameters of a
    module around the blocks, and with two kinds of PEFT adapters (X-LoRA and activated LoRA).

    ```python
    values = read_sites(model, [(9, "resid_post"), (14, "mlp_out")], input_ids=ids, attention_mask=mask)
    residual = values[9, "resid_post"]  # (batch, tokens, width)
    ```

    Args:
        model (`torch.nn.Module`):
            A causal language model, wrapped or not.
        places (`Sequence[Place]`):
            Blocks and sites to read; one or more.
        input_ids, attention_mask (`torch.Tensor` of shape `(B, T)`):
            The texts.

    Returns:
        `dict[Place, torch.Tensor]`: for each place its values `(B, T, D)`, on the device of `input_ids`. Prompt tuning
        puts its virtual tokens in front of the `T` tokens.

    Raises:
        ValueError: If there are no places, the model has no such block or site, or the pass did not reach one.
    """
    places = tuple(dict.fromkeys(places))
    if not places:
        raise ValueError("There is no site to read.")
    reading = _Reading(places)
    with hook_sites(model, places, lambda site: site.on_read(reading.store(site.place))) as hooks:
        deepest = max(block for block, _ in places)
        block = get_block(model, deepest)
        reason = _reason_against_stopping(model, block)
        if reason is not None:
            _warn_once(reason)
        elif all(site == "resid_pre" for number, site in places if number == deepest):
            hooks.callback(block.register_forward_pre_hook(reading.stop).remove)
        else:
            hooks.callback(block.register_forward_hook(reading.stop).remove)
        with torch.no_grad(), _uncompiled(model):
            try:
                model(input_ids=input_ids, attention_mask=attention_mask, use_cache=False, logits_to_keep=1)
            except _Stop as stop:
                if stop.reading is not reading:
                    raise
    for place in places:
        if place not in reading.values:
            where = describe_place(place)
            raise ValueError(f"The forward pass of this model did not reach {where}: nothing was read there.")
    return {place: reading.values[place].to(input_ids.device) for place in places}


class _Reading:
    """What one pass reads, in the thread that began it: passes of other threads run through the same hooks."""

    def __init__(self, places: tuple[Place, ...]):
        self.values: dict[Place, Tensor] = {}
        self._places = places
        self._thread = threading.get_ident()

    def store(self, place: Place) -> Callable[[Tensor], None]:
        def store(value: Tensor) -> None:
            if threading.get_ident() == self._thread:
                self.values[place] = value

        return store

    def stop(self, *_passed: Any) -> None:
        if threading.get_ident() == self._thread and len(self.values) == len(self._places):
            raise _Stop(self)


class _Stop(Exception):
    """
    Ends the pass of a reading.

    An `Exception` rather than a `BaseException`: only then does torch run the hooks that ask to be called always.
    It is made where it is raised and kept nowhere, since its traceback holds the activations of the pass.
    """

    def __init__(self, reading: _Reading):
        super().__init__("The forward pass has read what it should.")
        self.reading = reading


def _reason_against_stopping(model: nn.Module, block: nn.Module) -> str | None:
    """Why an exception must not leave this block, or a first value is not the one to take; `None` if it may."""
    if is_sharded(model):
        return "the model's parameters are sharded over processes, and are put away only at the end of a pass"
    for config in _adapters(model):
        if getattr(config, "alora_invocation_tokens", None) is not None:
            return "activated LoRA removes its hooks only at the end of a pass"
        if getattr(config, "peft_type", None) == "XLORA":
            return "X-LoRA runs a pass of its own first, in which it finds its scalings"
    if any(_offloads(module) for module in _around(model, block)):
        return "accelerate puts the parameters of a module around the blocks away only at the end of a pass"
    return None


@cache
def _warn_once(reason: str) -> None:
    logger.warning("Sites are read in whole forward passes, which takes longer: %s.", reason)


def _adapters(model: nn.Module) -> Iterator[Any]:
    """Configs of the adapters of PEFT."""
    for wrapper in wrappers(model):
        if hasattr(wrapper, "get_base_model"):
            yield from wrapper.peft_config.values()


def _around(model: nn.Module, block: nn.Module) -> Iterator[nn.Module]:
    """The modules that contain the block, from the outermost."""
    path = next((name for name, module in model.named_modules() if module is block), "")
    module = model
    for part in path.split(".") if path else ():
        yield module
        module = getattr(module, part)


def _offloads(module: nn.Module) -> bool:
    hook = getattr(module, "_hf_hook", None)
    return any(getattr(each, "offload", False) for each in (hook, *getattr(hook, "hooks", ())))


def _uncompiled(model: nn.Module) -> AbstractContextManager:
    """A context in which compiled modules run as they were written; in a graph, an added hook would never fire."""
    compiled = any(
        "_orig_mod" in module._modules
        or module._compiled_call_impl is not None
        or hasattr(vars(module).get("forward"), "_torchdynamo_orig_callable")
        for module in model.modules()
    )
    return torch.compiler.set_stance("force_eager") if compiled else nullcontext()
