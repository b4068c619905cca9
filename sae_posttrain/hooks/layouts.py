"""How decoder blocks are built: find a named site in a block by the names of the block's modules."""

from dataclasses import dataclass

from torch import nn

_ATTENTIONS = ("self_attn", "linear_attn", "attn", "attention")
_PROJECTIONS = ("o_proj", "out_proj", "dense", "c_proj")
_MLP = "mlp"


@dataclass(frozen=True)
class SitePaths:
    """
    Where a site is read and written, as paths of modules inside the block that end in `.input` or `.output`.

    Args:
        read (`str`):
            Path at which the site's value is read. The block itself is the path `input` or `output`.
        write (`str`):
            Path at which a change is added to the site.
        base (`str`, *optional*):
            Given if reading and writing differ: the site is the sum of the values at `base` and at `write`.
    """

    read: str
    write: str
    base: str | None = None


@dataclass(frozen=True)
class _Layout:
    """
    Paths in a block; `{attention}` stands for that module's name.

    The residual stream enters the block's first half at `pre` and its second half at `mid`. Both are empty if
    attention and MLP run in parallel, because then there is no stream between them. The halves add `attn_out` and
    `mlp_out`.
    """

    pre: str = ""
    mid: str = ""
    attn_out: str = "{attention}.output"
    mlp_out: str = "mlp.output"


_LAYOUTS = {
    # A norm before each half: Llama, Mistral, Qwen, Phi-3; GPT-2.
    "input_layernorm, post_attention_layernorm": _Layout("input_layernorm.input", "post_attention_layernorm.input"),
    "ln_1, ln_2": _Layout("ln_1.input", "ln_2.input"),
    # Norms before and after each half: Gemma 2 and 3.
    "input_layernorm, post_attention_layernorm, post_feedforward_layernorm, pre_feedforward_layernorm": _Layout(
        "input_layernorm.input",
        "pre_feedforward_layernorm.input",
        "post_attention_layernorm.output",
        "post_feedforward_layernorm.output",
    ),
    # A norm only after each half: OLMo 2.
    "post_attention_layernorm, post_feedforward_layernorm": _Layout(
        "{attention}.input",
        "mlp.input",
        "post_attention_layernorm.output",
        "post_feedforward_layernorm.output",
    ),
    # One norm for both halves, which run in parallel: Phi, Cohere; GPT-J.
    "input_layernorm": _Layout(),
    "ln_1": _Layout(),
}
"""Layouts by the sorted names of a block's norms: its modules other than attention, MLP and dropout."""


def site_paths(module: nn.Module, site: str, block: int) -> SitePaths:
    """
    Where a site of `sae_posttrain.sites` lies in a decoder block.

    Args:
        module (`torch.nn.Module`):
            The block.
        site (`str`):
            A name of `SITES`, or a path, which is returned as it is.
        block (`int`):
            The block's number, for the messages.

    Raises:
        ValueError: If the block has no such site, or its layout is unknown.
    """
    if site in ("resid_pre", "resid_post"):
        end = "input" if site == "resid_pre" else "output"
        return SitePaths(end, end)
    if site not in ("resid_mid", "attn_z", "attn_out", "mlp_out"):
        return SitePaths(site, site)
    if site == "attn_z":
        attention = _only(module, _ATTENTIONS)
        projection = _only(module.get_submodule(attention), _PROJECTIONS) if attention else None
        if projection is None:
            raise _unknown(module, site, block)
        path = f"{attention}.{projection}.input"
        return SitePaths(path, path)
    return _in_stream(module, site, block)


def _in_stream(module: nn.Module, site: str, block: int) -> SitePaths:
    children = [name for name, child in module.named_children() if not isinstance(child, nn.Dropout | nn.Identity)]
    attention = _only(module, _ATTENTIONS)
    norms = ", ".join(sorted(name for name in children if name not in (attention, _MLP)))
    layout = _LAYOUTS.get(norms)
    if layout is None or attention is None or _MLP not in children or _scales_its_sum(module):
        raise _unknown(module, site, block)
    if getattr(module, "use_parallel_residual", False):  # GPT-NeoX uses the same names for its norms in both cases
        layout = _Layout()
    attn_out = layout.attn_out.format(attention=attention)
    if site == "attn_out":
        return SitePaths(attn_out, attn_out)
    if site == "mlp_out":
        return SitePaths(layout.mlp_out, layout.mlp_out)
    if not layout.mid:
        raise ValueError(
            f"Block {block} has no site 'resid_mid': in a {type(module).__name__} attention and MLP stand side by "
            "side, with no residual stream between them."
        )
    # The block keeps the stream in a variable besides the norm that reads it, so a push changes what is added to it.
    return SitePaths(layout.mid, write=attn_out, base=layout.pre.format(attention=attention))


def _scales_its_sum(module: nn.Module) -> bool:
    """Whether the block itself has weights or factors (Granite, MiniMax): then names of modules are not enough."""
    own = [*module.parameters(recurse=False), *module.buffers(recurse=False)]
    numbers = {
        name: value for name, value in vars(module).items() if type(value) in (int, float) and "drop" not in name
    }
    return bool(own) or any(
        "factor" in name or (value != 1 and (type(value) is float or "residual" in name))
        for name, value in numbers.items()
    )


def _only(module: nn.Module, names: tuple[str, ...]) -> str | None:
    found = [name for name, _ in module.named_children() if name in names]
    return found[0] if len(found) == 1 else None


def _unknown(module: nn.Module, site: str, block: int) -> ValueError:
    modules = ", ".join(name for name, _ in module.named_children()) or "none"
    return ValueError(
        f"Where {site!r} lies in block {block}, a {type(module).__name__}, is not known; its modules are {modules}. "
        "Give a module's path with '.input' or '.output' instead, such as 'mlp.down_proj.input'."
    )
