"""Find the decoder blocks of any wrapped model: plain, PEFT, DDP, compiled."""

from collections.abc import Iterator
from typing import Any

from torch import nn

from ..sites import near_site


def find_blocks(model: nn.Module) -> nn.ModuleList:
    """
    Decoder blocks of a causal language model, counted from 0.

    The output of block n is the residual stream after it (`resid_post`). Wrappers (DDP, `torch.compile`, PEFT) are
    unwrapped; the blocks inside are the same modules that the wrapped model runs.

    Args:
        model (`torch.nn.Module`):
            A transformers model, or one wrapped by PEFT, DistributedDataParallel or `torch.compile`.

    Returns:
        `torch.nn.ModuleList`: the blocks.

    Raises:
        ValueError: If the model has no decoder with a list of `layers`, or `h` as GPT-2 calls it.
    """
    inner = unwrap(model)
    decoder = inner.get_decoder() if hasattr(inner, "get_decoder") else None
    for name in ("layers", "h"):
        blocks = getattr(decoder, name, None)
        if isinstance(blocks, nn.ModuleList) and len(blocks) > 0:
            return blocks
    raise ValueError(
        f"{type(inner).__name__} has no decoder blocks at `get_decoder().layers` or `.h`. "
        "Pass a causal language model of transformers, or one wrapped by PEFT."
    )


def get_block(model: nn.Module, block: int) -> nn.Module:
    """Decoder block number `block`. If there is no such block, the error says which blocks exist."""
    blocks = find_blocks(model)
    if isinstance(block, str):
        raise ValueError(
            f"A block is given by its number, counted from 0, got {block!r}: the model has blocks 0 to "
            f"{len(blocks) - 1}.{near_site(block)}"
        )
    if not 0 <= block < len(blocks):
        raise ValueError(f"Unknown block {block}: the model has blocks 0 to {len(blocks) - 1}.")
    return blocks[block]


def get_width(model: nn.Module) -> int:
    """Width of the residual stream that the blocks write."""
    return unwrap(model).config.get_text_config().hidden_size


def unwrap(model: Any) -> Any:
    """The transformers model inside DistributedDataParallel, `torch.compile` and PEFT."""
    *_, inner = wrappers(model)
    return inner


def wrappers(model: Any) -> Iterator[Any]:
    """The model, and what is inside each of its wrappers, down to the transformers model."""
    while model is not None:
        yield model
        if isinstance(model, nn.parallel.DistributedDataParallel):
            model = model.module
        elif hasattr(model, "_orig_mod"):  # torch.compile
            model = model._orig_mod
        elif hasattr(model, "get_base_model") and hasattr(model, "peft_config"):
            model = model.get_base_model()
        else:
            model = None
