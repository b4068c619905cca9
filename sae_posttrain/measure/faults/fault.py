"""What makes an answer a bad one: the form of every fault, and the default one."""

from collections.abc import Callable, Sequence

from .loops import find_loop

Fault = Callable[[Sequence[int], bool], bool]
"""Tells whether an answer is faulty, from its token ids (without the end token) and whether the model ended it."""


def is_endless(token_ids: Sequence[int], finished: bool) -> bool:
    """The default fault: an exact loop of any period that goes on up to the length limit ([`find_loop`])."""
    return find_loop(token_ids, finished=finished).endless
