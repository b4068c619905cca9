"""Record what decoder blocks write. The hooks only store the tensor; arithmetic comes after the forward."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from .blocks import block_output, get_block


class BlockRecorder:
    """
    Hooks on decoder blocks, registered once and armed when their outputs are wanted.

    A trainer builds it before the first forward: a hook that is added after `torch.compile` has seen the graph never
    fires. The blocks' outputs are stored as they are, attached to the graph, so a loss on them reaches the model.

    Args:
        model (`torch.nn.Module`):
            The model to listen to, wrapped or not.
        blocks (`Sequence[int]`):
            Numbers of the decoder blocks, from 0.

    Raises:
        ValueError: If the model has no such block.
    """

    def __init__(self, model: nn.Module, blocks: Sequence[int]):
        self._captures: dict[int, list[Tensor]] | None = None
        modules = {block: get_block(model, block) for block in dict.fromkeys(blocks)}
        self._handles = [module.register_forward_hook(self._hook(block)) for block, module in modules.items()]
        self.blocks = tuple(modules)

    def _hook(self, block: int):
        def store(_module, _args, output):
            if self._captures is not None:
                self._captures[block].append(block_output(output))

        return store

    @contextmanager
    def armed(self) -> Iterator[dict[int, list[Tensor]]]:
        """Record every forward made inside, into the dictionary that is yielded: block to the list of its outputs."""
        captures: dict[int, list[Tensor]] = {block: [] for block in self.blocks}
        self._captures = captures
        try:
            yield captures
        finally:
            self._captures = None

    def remove(self) -> None:
        """Take the hooks off the model."""
        for handle in self._handles:
            handle.remove()
        self._handles = []


@contextmanager
def record_blocks(model: nn.Module, blocks: Sequence[int]) -> Iterator[dict[int, list[Tensor]]]:
    """
    Record the residual stream after some decoder blocks, in every forward pass made inside the context.

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
        `dict[int, list[torch.Tensor]]`: for each block its outputs, one of shape `(B, T, D)` per forward pass.

    Raises:
        ValueError: If the model has no such block, or if no forward pass reached one of the blocks.
    """
    recorder = BlockRecorder(model, blocks)
    try:
        with recorder.armed() as captures:
            yield captures
    finally:
        recorder.remove()
    silent = [block for block, outputs in captures.items() if not outputs]
    if silent:
        raise ValueError(f"No forward pass of this model reached block {silent[0]}: nothing was recorded.")


def training_capture(captures: dict[int, list[Tensor]], block: int) -> Tensor:
    """
    The output to put a loss on: with gradients enabled the first capture that requires grad, else the first.

    Some losses run a second forward without gradients (label smoothing after the first, preference losses before it).

    Raises:
        ValueError: If the block was not reached, or no capture is attached to a trainable parameter.
    """
    outputs = captures[block]
    if not outputs:
        raise ValueError(
            f"Block {block} did not run in the forward pass of the loss, so its features cannot be penalised. "
            "Was the model replaced after the trainer was built?"
        )
    if not torch.is_grad_enabled():
        return outputs[0]
    attached = [output for output in outputs if output.requires_grad]
    if not attached:
        raise ValueError(
            f"The output of block {block} does not depend on a trainable parameter, so a penalty on it would change "
            f"nothing. Train a layer up to block {block}, or choose features of a later block."
        )
    return attached[0]
