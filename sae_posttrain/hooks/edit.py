"""Change what decoder blocks write, for the passes made inside a context. Nothing is written in place."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager

from torch import Tensor, nn

from .blocks import block_output, get_block, replace_output


@contextmanager
def edit_blocks(model: nn.Module, edits: Mapping[int, Callable[[Tensor], Tensor]]) -> Iterator[None]:
    """
    Pass the output of each named block through a function, until the context exits.

    Args:
        model (`torch.nn.Module`):
            A causal language model, wrapped or not.
        edits (`Mapping[int, Callable]`):
            For each block a function from hidden states `(B, T, D)` to new ones of the same shape and dtype.

    Raises:
        ValueError: If the model has no such block, or if no forward pass reached one of them.
    """
    reached: set[int] = set()

    def hook(block: int, edit: Callable[[Tensor], Tensor]):
        def apply(_module, _args, output):
            reached.add(block)
            return replace_output(output, edit(block_output(output)))

        return apply

    with ExitStack() as hooks:
        for block, edit in edits.items():
            hooks.enter_context(get_block(model, block).register_forward_hook(hook(block, edit)))
        yield
    missed = sorted(set(edits) - reached)
    if missed:
        raise ValueError(f"No forward pass of this model reached block {missed[0]}: nothing was edited.")
