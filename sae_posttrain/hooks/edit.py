"""Change the values at sites of decoder blocks, in forward passes inside a context. Nothing is written in place."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

from torch import Tensor, nn

from .sites import Place, describe_place, hook_sites


@contextmanager
def edit_sites(model: nn.Module, pushes: Mapping[Place, Callable[[Tensor], Tensor]]) -> Iterator[None]:
    """
    Add to the values at each named site, until the context exits.

    Args:
        model (`torch.nn.Module`):
            A causal language model, wrapped or not.
        pushes (`Mapping[Place, Callable]`):
            For each block and site, a function that takes the values there, `(B, T, D)`, and returns what is added to
            them: a tensor of the same dtype whose shape broadcasts to theirs.

    Raises:
        ValueError: If the model has no such block or site, or if no forward pass reached one of them.
    """
    reached: set[Place] = set()

    def noting(place: Place):
        def push(value: Tensor) -> Tensor:
            reached.add(place)
            return pushes[place](value)

        return push

    with hook_sites(model, pushes, lambda site: site.on_write(noting(site.place))):
        yield
    missed = sorted(set(pushes) - reached)
    if missed:
        raise ValueError(f"No forward pass of this model reached {describe_place(missed[0])}: nothing was edited.")
