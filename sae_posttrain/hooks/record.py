"""Record the values at sites of decoder blocks. Hooks only store tensors; arithmetic comes after the forward pass."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from .sites import Place, describe_place, hook_sites


class SiteRecorder:
    """
    Hooks on sites of decoder blocks, registered once and armed when their values are wanted.

    A trainer creates the recorder before the first forward pass, because a hook that is added after `torch.compile`
    has seen the graph never fires. The values stay attached to the graph, so a loss on them reaches the model.

    Args:
        model (`torch.nn.Module`):
            The model to listen to, wrapped or not.
        places (`Sequence[Place]`):
            Blocks and sites to record.

    Raises:
        ValueError: If the model has no such block or site.
    """

    def __init__(self, model: nn.Module, places: Sequence[Place]):
        self._captures: dict[Place, list[Tensor]] | None = None
        self.places = tuple(dict.fromkeys(places))
        self._hooks = hook_sites(model, self.places, lambda site: site.on_read(self._store(site.place)))

    def _store(self, place: Place):
        def store(value: Tensor) -> None:
            if self._captures is not None:
                self._captures[place].append(value)

        return store

    @contextmanager
    def armed(self) -> Iterator[dict[Place, list[Tensor]]]:
        """Record every forward pass inside the context, in the yielded dictionary: place to the list of its values."""
        captures: dict[Place, list[Tensor]] = {place: [] for place in self.places}
        self._captures = captures
        try:
            yield captures
        finally:
            self._captures = None

    def remove(self) -> None:
        """Remove the hooks from the model."""
        self._hooks.close()


@contextmanager
def record_sites(model: nn.Module, places: Sequence[Place]) -> Iterator[dict[Place, list[Tensor]]]:
    """
    Record the values at some sites of decoder blocks, in every forward pass inside the context.

    ```python
    with record_sites(model, [(10, "attn_z"), (20, "mlp.down_proj.input")]) as values:
        model(**inputs)
    heads = values[10, "attn_z"][0]  # (batch, tokens, width of the site)
    ```

    Args:
        model (`torch.nn.Module`):
            A causal language model, wrapped or not.
        places (`Sequence[tuple[int, str]]`):
            Decoder block, from 0, and site in it: `"resid_pre"` (the block's input), `"resid_mid"` (between attention
            and MLP), `"resid_post"` (the block's output), `"attn_z"` (input of the attention's output projection),
            `"attn_out"` and `"mlp_out"` (what these add to the residual stream), or a module of the block with
            `.input` or `.output`.

    Yields:
        `dict[tuple[int, str], list[torch.Tensor]]`: for each place, the list of its values, one tensor of shape
        `(B, T, D)` per forward pass.

    Raises:
        ValueError: If the model has no such block or site, or if no forward pass reached one of them.
    """
    recorder = SiteRecorder(model, places)
    try:
        with recorder.armed() as captures:
            yield captures
    finally:
        recorder.remove()
    silent = [place for place, values in captures.items() if not values]
    if silent:
        raise ValueError(f"No forward pass of this model reached {describe_place(silent[0])}: nothing was recorded.")


@contextmanager
def record_blocks(model: nn.Module, blocks: Sequence[int]) -> Iterator[dict[int, list[Tensor]]]:
    """
    Record the residual stream after some decoder blocks, in every forward pass inside the context.

    ```python
    with record_blocks(model, [10, 20]) as outputs:
        model(**inputs)
    residual = outputs[20][0]  # (batch, tokens, width), as the block wrote it
    ```

    Args:
        model (`torch.nn.Module`):
            A causal language model, wrapped or not.
        blocks (`Sequence[int]`):
            Numbers of the decoder blocks, from 0.

    Yields:
        `dict[int, list[torch.Tensor]]`: for each block, the list of its outputs, one tensor of shape `(B, T, D)` per
        forward pass.

    Raises:
        ValueError: If the model has no such block, or if no forward pass reached one of the blocks.
    """
    with record_sites(model, [(block, "resid_post") for block in blocks]) as captures:
        yield {block: values for (block, _), values in captures.items()}


def training_capture(captures: dict[Place, list[Tensor]], place: Place) -> Tensor:
    """
    The captured value to put a loss on: if gradients are enabled, the first that requires grad, else the first.

    Some losses run a second forward pass without gradients: label smoothing runs it after the first pass, preference
    losses before it.

    Raises:
        ValueError: If the site was not reached, or no capture is attached to a trainable parameter.
    """
    values = captures[place]
    where = describe_place(place)
    if not values:
        raise ValueError(
            f"The forward pass of the loss did not reach {where}, so its features cannot be penalised. "
            "Was the model replaced after the trainer was built?"
        )
    if not torch.is_grad_enabled():
        return values[0]
    attached = [value for value in values if value.requires_grad]
    if not attached:
        raise ValueError(
            f"What passes at {where} does not depend on a trainable parameter, so a penalty on it would change "
            f"nothing. Train a layer up to block {place[0]}, or choose features of a later block. With gradient "
            "checkpointing, a site inside a block needs `gradient_checkpointing_kwargs={'use_reentrant': False}`."
        )
    return attached[0]
