"""Names of the places in a decoder block that SAEs read, and what other libraries call them."""

import re
from collections.abc import Sequence
from difflib import get_close_matches

SITES = {
    "resid_pre": "the block's input",
    "resid_mid": "the residual stream between attention and MLP",
    "resid_post": "the block's output",
    "attn_z": "the input of the attention's output projection",
    "attn_out": "what the attention adds to the residual stream",
    "mlp_out": "what the MLP adds to the residual stream",
}
"""Sites that every model has. Any module of a block is one too: `"mlp.down_proj.input"`, `"self_attn.output"`."""

_MODULE_SITE = re.compile(r"[A-Za-z_]\w*(\.\w+)*\.(input|output)")


def is_site(site: str) -> bool:
    """Whether `site` is a known site, or has the form of a module's input or output."""
    return site in SITES or _MODULE_SITE.fullmatch(site) is not None


def near_site(site: str) -> str:
    """
    The site that an unknown name probably means, as the end of a message; empty if no site is similar.

    It knows hook points of other libraries (`layers.3.mlp`, `blocks.3.hook_mlp_out`, `hook_mlp_out`) and misspelt
    names.
    """
    place = parse_hook(site)
    if place is not None:
        return f" Did you mean the site {place[1]!r} of block {place[0]}? The block is given by its number."
    near = [TRANSFORMER_LENS_SITES[site]] if site in TRANSFORMER_LENS_SITES else []
    near += get_close_matches(site.lower().replace("-", "_"), SITES, n=1, cutoff=0.7)
    return f" Did you mean {near[0]!r}?" if near else ""


def near_name(name: str, names: Sequence[str]) -> str:
    """The known name that is most similar to an unknown one, as the end of a message; empty if none is similar."""
    inside = [known for known in names if name.lower() in known.lower()]
    near = inside or get_close_matches(name, names, n=1)
    return f" Did you mean {near[0]!r}?" if near else ""


def parse_hook(hook: str) -> tuple[int, str] | None:
    """
    Block and site of a hook point as SAE files write it; `None` if it is not in a decoder block.

    It takes TransformerLens' names (`blocks.5.hook_resid_post`) and paths of transformers modules
    (`model.layers.5`, `model.layers.5.mlp.output`, `layers.5`, `transformer.h.5`); a path without `.input` or
    `.output` means the module's output. The input of block n is returned as the output of block n - 1, except for
    block 0.
    """
    if found := re.fullmatch(r"blocks\.(\d{1,4})\.((?:attn\.|mlp\.)?hook_\w+)", hook):
        block, site = int(found[1]), TRANSFORMER_LENS_SITES.get(found[2])
        return None if site is None else _canonical(block, site)
    if found := re.fullmatch(r"(?:[A-Za-z_]\w*\.)*(?:layers|h)\.(\d{1,4})((?:\.[A-Za-z_]\w*)*)", hook):
        block, path = int(found[1]), found[2].removeprefix(".")
        if path.rpartition(".")[2] not in ("input", "output"):
            path = f"{path}.output".removeprefix(".")
        return _canonical(block, {"input": "resid_pre", "output": "resid_post", **_MODULES}.get(path, path))
    return None


TRANSFORMER_LENS_SITES = {
    "hook_resid_pre": "resid_pre",
    "hook_resid_mid": "resid_mid",
    "hook_resid_post": "resid_post",
    "attn.hook_z": "attn_z",
    "hook_attn_out": "attn_out",
    "hook_mlp_out": "mlp_out",
}
"""Site of a TransformerLens hook point, by its name in the block."""

_MODULES = {"self_attn.o_proj.input": "attn_z"}
"""Modules that are the same site in every model that has them. `mlp.output` is not one: Gemma has a norm after it."""


def transformer_lens_hook(block: int, site: str) -> str | None:
    """TransformerLens' name for a site, or `None` if there is none."""
    names = {site: name for name, site in TRANSFORMER_LENS_SITES.items()}
    return f"blocks.{block}.{names[site]}" if site in names else None


def _canonical(block: int, site: str) -> tuple[int, str]:
    return (block - 1, "resid_post") if site == "resid_pre" and block > 0 else (block, site)
