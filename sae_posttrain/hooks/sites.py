"""The sites of a model's blocks: how wide they are, and how to read and change their values."""

from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from ..sites import SITES, is_site, near_name, near_site, parse_hook
from .blocks import get_block, get_width
from .layouts import site_paths

Place = tuple[int, str]
"""Decoder block, counted from 0, and site in it: `(20, "resid_post")`."""


def place_name(place: Place) -> str:
    """The name of a place in names of features: `"20"` for a block's output, `"20.mlp_out"` for another site."""
    block, site = place
    return str(block) if site == "resid_post" else f"{block}.{site}"


def describe_place(place: Place) -> str:
    """The name of a place in messages: `"block 20"` for a block's output, `"mlp_out of block 20"` for another site."""
    block, site = place
    return f"block {block}" if site == "resid_post" else f"{site} of block {block}"


@dataclass(frozen=True)
class _ModuleEnd:
    """The place where hidden states `(B, T, D)` enter a module (`end` is `"input"`) or leave it (`"output"`)."""

    module: nn.Module
    end: str

    def hook(self, see: Callable[[Tensor], Tensor | None]) -> RemovableHandle:
        """Call `see` with the value in every forward pass, and add what it returns, if anything; never in place."""
        if self.end == "output":
            return self.module.register_forward_hook(_at_output(see))
        return self.module.register_forward_pre_hook(_at_input(see), with_kwargs=True)


@dataclass(frozen=True)
class Site:
    """
    One site of one model, on which hooks can be registered. Made by [`find_site`].

    Attributes:
        place (`Place`):
            Block and site.
    """

    place: Place
    _model: nn.Module
    _read: _ModuleEnd
    _write: _ModuleEnd
    _base: _ModuleEnd | None

    @property
    def width(self) -> int | None:
        """Width of the values at the site; `None` if the module there does not say it."""
        module, is_input = self._read.module, self._read.end == "input"
        names = ("in_features", "nx") if is_input else ("out_features", "nf")  # `nn.Linear`, GPT-2's `Conv1D`
        for width in (getattr(module, name, None) for name in names):
            if isinstance(width, int):
                return width
        block = get_block(self._model, self.place[0])
        is_of_the_stream = module is block or any(module is child for child in block.children())
        return get_width(self._model) if is_of_the_stream else None

    def on_read(self, see: Callable[[Tensor], None]) -> list[RemovableHandle]:
        """Register hooks that call `see` with the site's value, `(B, T, D)`, in every forward pass."""
        return [self._read.hook(see)]

    def on_write(self, push: Callable[[Tensor], Tensor | None]) -> list[RemovableHandle]:
        """Register hooks that add `push(value)` to the site, in the value's dtype and shape; `None` adds nothing."""
        if self._base is None:
            return [self._write.hook(push)]
        kept: list[Tensor] = []

        def keep(base: Tensor) -> None:
            kept[:] = [base]

        def push_sum(added: Tensor) -> Tensor | None:
            return push(kept.pop() + added)

        return [self._base.hook(keep), self._write.hook(push_sum)]


def find_site(model: nn.Module, place: Place) -> Site:
    """
    A site of a model, by the names of the block's modules.

    Args:
        model (`torch.nn.Module`):
            A causal language model, wrapped or not.
        place (`Place`):
            Block and site: a name of `SITES`, or a module of the block with `.input` or `.output`.

    Raises:
        ValueError: If there is no such block or site, or the block's layout is unknown.
    """
    block, site = place
    module = get_block(model, block)
    if not is_site(site):
        is_module = site in dict(module.named_modules())
        hint = f" Did you mean '{site}.output'?" if is_module and site else near_site(site)
        raise ValueError(
            f"Unknown site {site!r}. Known: {', '.join(SITES)}, or a module of the block with '.input' or '.output', "
            f"such as 'mlp.down_proj.input'.{hint}"
        )
    paths = site_paths(module, site, block)
    return Site(
        place=place,
        _model=model,
        _read=_end(module, paths.read, block),
        _write=_end(module, paths.write, block),
        _base=None if paths.base is None else _end(module, paths.base, block),
    )


def hook_sites(
    model: nn.Module, places: Iterable[Place], register: Callable[[Site], list[RemovableHandle]]
) -> ExitStack:
    """
    Register hooks at several sites. Closing the returned stack removes them.

    Raises:
        ValueError: If the model lacks one of the sites; then no hook is registered.
    """
    with ExitStack() as hooks:
        for place in places:
            for handle in register(find_site(model, place)):
                hooks.callback(handle.remove)
        return hooks.pop_all()


def require_width(model: nn.Module, place: Place, width: int, reader: str, question: str) -> None:
    """
    Check that a model has this site, with the width that the reader or writer of the site needs.

    Args:
        model (`torch.nn.Module`):
            A causal language model, wrapped or not.
        place (`Place`):
            Block and site.
        width (`int`):
            Width that the site must have.
        reader, question (`str`):
            Beginning and end of the message, such as `"The SAE reads"` and `"was it trained on this model?"`.

    Raises:
        ValueError: If there is no such site, or it has another width.
    """
    found = find_site(model, place).width
    if found is not None and found != width:
        block, site = place
        there = f"block {block} writes {found}" if site == "resid_post" else f"{site} of block {block} has {found}"
        raise ValueError(f"{reader} width {width}, {there}; {question}")


def _at_output(see: Callable[[Tensor], Tensor | None]):
    def hook(module, _args, output):
        push = see(_hidden(output, module))
        if push is None:
            return None
        if isinstance(output, tuple):  # attention returns (hidden, weights); before Transformers 5, blocks did too
            return (output[0] + push, *output[1:])
        return output + push

    return hook


_INPUT_NAMES = ("hidden_states", "input", "x")


def _at_input(see: Callable[[Tensor], Tensor | None]):
    def hook(module, args, kwargs):
        if args:
            push = see(_hidden(args[0], module))
            return None if push is None else ((args[0] + push, *args[1:]), kwargs)
        name = next((name for name in _INPUT_NAMES if name in kwargs), None)
        if name is None:
            raise ValueError(
                f"A {type(module).__name__} is called with {', '.join(kwargs) or 'nothing'}: no hidden states."
            )
        push = see(_hidden(kwargs[name], module))
        return None if push is None else (args, {**kwargs, name: kwargs[name] + push})

    return hook


def _hidden(value: Any, module: nn.Module) -> Tensor:
    hidden = value[0] if isinstance(value, tuple) else value
    if not isinstance(hidden, Tensor) or hidden.ndim != 3:
        found = tuple(hidden.shape) if isinstance(hidden, Tensor) else type(hidden).__name__
        raise ValueError(
            f"A site holds a vector for each row and position, (B, T, D); at this {type(module).__name__} there is "
            f"{found}."
        )
    return hidden


def _end(block: nn.Module, path: str, number: int) -> _ModuleEnd:
    name, _, end = path.rpartition(".")
    module = block
    for part in name.split(".") if name else ():
        children = dict(module.named_children())
        if part not in children:
            inside = "Block" if module is block else f"The {type(module).__name__} of block"
            hint = near_site(path) if parse_hook(path) is not None else near_name(part, list(children))
            raise ValueError(
                f"{inside} {number} has no module {part!r}; it has {', '.join(children) or 'none'}.{hint}"
            )
        module = children[part]
    return _ModuleEnd(module, end)
