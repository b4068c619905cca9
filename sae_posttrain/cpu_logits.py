"""
Keep generation with frozen weights fast on CPU.

`generate` computes the logits of a prompt's last position only, from a strided slice of the states. torch multiplies
such a slice with frozen bfloat16 weights by a batched product that copies the weights for every row
(https://github.com/pytorch/pytorch/issues/151934). Under LoRA every output embedding is frozen.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch


@contextmanager
def contiguous_states(model: Any) -> Iterator[None]:
    """
    Hand the output embedding of a model contiguous states until the context exits, where it is frozen, on CPU and in
    bfloat16. Everywhere else nothing changes. The logits are the same.

    Args:
        model (`torch.nn.Module`):
            A causal language model, wrapped or not.
    """
    head: Any = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    weight = getattr(head, "weight", None)
    if weight is None or weight.requires_grad or weight.device.type != "cpu" or weight.dtype != torch.bfloat16:
        yield
        return
    handle = head.register_forward_pre_hook(_copied)
    try:
        yield
    finally:
        handle.remove()


def _copied(_: Any, given: tuple[Any, ...]) -> tuple[Any, ...]:
    # Of one row a slice counts as contiguous with the strides of all positions, which torch does not fold either.
    return (given[0].clone(memory_format=torch.contiguous_format), *given[1:])
