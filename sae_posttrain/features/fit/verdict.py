"""
[`judge`]: whether an SAE belongs to a model, in words, with the numbers it stands on; and the figures as a table.

The limits below were set by what right and wrong pairs measure on three small trained models: one of 6 blocks of
width 256 with TopK SAEs of k = 32, two trainings of 4 blocks of width 192 with k = 16. Fraction of variance
unexplained (FVU) where the SAE is said to read, and what [`judge`] calls it, about 2,800 tokens each:

| SAE | FVU | verdict |
| --- | --- | --- |
| of this model and block (14) | 0.02 to 0.12 | belongs: all |
| of this model, another block (54) | 0.09 to 1.02 | does not belong: all |
| of another training of the same sizes (8) | 1.15 to 1.56 | does not belong: all |
| its input and output turned to random axes (10) | 0.80 to 1.47 | does not belong: 8, doubtful: 2 |
| with the directions of other features (10) | 1.24 to 1.74 | does not belong: all |
| on a model of random weights (6) | above 200 | does not belong: all |
| on a copy fine-tuned on conversations (6) | 0.02 to 0.13 | belongs: all; 12 to 32 % worse than on the base |
| with a quarter of its k, right block (10) | 0.24 to 0.37 | belongs: all |
| with a quarter of its k, another block (42) | 0.32 to 0.97 | does not belong: 37, doubtful: 5 |
| with an eighth of its k, right block (10) | 0.44 to 0.58 | belongs: 8, doubtful: 2 |
| with an eighth of its k, another block (42) | 0.52 to 1.08 | does not belong: 18, doubtful: 23, belongs: 1 |

A wrong block can be described better (0.09) than the right one by a weaker SAE (0.58), so no limit on the FVU tells
them apart: the blocks next door do. The loss recovered does not tell either: an SAE turned to random axes recovered
84 % of it in one block. So the figures decide in this order: next to nothing explained, explained better next door,
little explained.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

from ...saes.describe import printable
from ...tables import align
from .fit import SAEFit

FVU_OF_STRANGERS = 0.9
"""From here on an SAE is not of this model."""

FVU_OF_DOUBT = 0.75
"""From here on it may be a weak SAE or one of another model."""

CLEARLY_BETTER = 0.9
"""Below this times its own FVU, an SAE's FVU next door says that it reads another block."""

AS_WELL = 1.02
"""Up to this times another FVU, one is as good as that one."""


_LOSSES = ("loss", "SAE", "mean", "zero", "rec.", "rec. mean")


class Verdict(NamedTuple):
    """
    Whether an SAE belongs to a model.

    Attributes:
        word: `"belongs"`, `"belongs to a relative"` (fits, but worse than the model it was trained on), `"doubtful"`
            or `"does not belong"`.
    """

    word: str
    reason: str


def judge(fit: SAEFit, on_base: SAEFit | None = None) -> Verdict:
    """
    Whether an SAE belongs to the model it was measured on; `on_base` is the same SAE on the model it was trained on.

    It does not if it describes what is there hardly better than the mean does, or describes the block before or after
    clearly better: blocks of one model are so alike that a wrong block can look well described by itself. Whether a
    well described model is the SAE's own or a fine-tuned copy, only a measurement on the base model tells.
    """
    if on_base is not None and (fit.block, fit.site, fit.file) != (on_base.block, on_base.site, on_base.file):
        raise ValueError(
            f"Compare one SAE on two models; these are {fit.file} of block {fit.block} and {on_base.file} of block "
            f"{on_base.block}."
        )
    found = f"It leaves {fit.fvu:.3f} of the variance unexplained{_loss(fit)}."
    if not fit.fvu < FVU_OF_STRANGERS:  # a sum that overflowed is not below it either
        return Verdict("does not belong", f"{found} The mean alone leaves 1: it was not trained on this.")
    block, elsewhere = min(fit.fvu_next_door.items(), key=lambda item: item[1], default=(fit.block, math.inf))
    if elsewhere < CLEARLY_BETTER * fit.fvu:
        reason = f"{found} In block {block} it leaves only {elsewhere:.3f}: it reads that one, or one beyond."
        return Verdict("does not belong", reason)
    if elsewhere < AS_WELL * fit.fvu:
        reason = f"{found} In block {block} it leaves {elsewhere:.3f}: which of the two it reads cannot be told."
        return Verdict("doubtful", reason)
    if fit.fvu >= FVU_OF_DOUBT:
        reason = f"{found} That is little better than the mean, which leaves 1: a weak SAE, or not of this model."
        return Verdict("doubtful", reason)
    if fit.fvu_next_door:
        others = " and ".join(f"{fvu:.3f} in block {block}" for block, fvu in fit.fvu_next_door.items())
        found += f" Next door it leaves more: {others}."
    if on_base is None:
        return Verdict("belongs", found + _names(fit))
    base = on_base.model or "the base model"
    if fit.fvu <= AS_WELL * on_base.fvu:
        return Verdict("belongs", f"{found} That is as good as on {base} ({on_base.fvu:.3f}).")
    worse = f"{100 * (fit.fvu / max(on_base.fvu, 1e-9) - 1):.0f} % worse"
    reason = f"{found} On {base} it leaves {on_base.fvu:.3f} of it{_loss(on_base)}: here it is {worse}."
    return Verdict("belongs to a relative", reason)


def _loss(fit: SAEFit) -> str:
    return "" if math.isnan(fit.loss_recovered) else f" and recovers {100 * fit.loss_recovered:.1f} % of the loss"


def _names(fit: SAEFit) -> str:
    """What the names of the models say where nothing was measured on the base."""
    own, here = (name.rpartition("/")[2].casefold() for name in (fit.base_model, fit.model))
    if not own or not here or own == here:
        return ""
    return (
        f" Its files name {fit.base_model}, this is {fit.model}: measure that one too (`--base-model`) to see what a "
        "fine-tuning between them changed."
    )


def format_fits(fits: Sequence[SAEFit], on_base: Sequence[SAEFit] = ()) -> str:
    """Figures and verdicts of [`measure_fit`]'s results, for a terminal."""
    header = ("block", "site", "FVU", "before/after", "L0", "dead", "cosine", "norm", *_LOSSES)
    rows = [header, *(_row(fit) for fit in fits)]
    lines = [f"On {fits[0].model or 'the model'}, {fits[0].num_tokens} tokens", *align(rows)]
    if on_base:
        rows = [header, *(_row(fit) for fit in on_base)]
        lines += ["", f"On {on_base[0].model or 'the base model'}, {on_base[0].num_tokens} tokens", *align(rows)]
    groups = list(dict.fromkeys(group for fit in fits for group in fit.fvu_by_group))
    if len(groups) > 1:
        rows = [("block", *groups)]
        rows += [(str(fit.block), *(_number(fit.fvu_by_group.get(g, math.nan)) for g in groups)) for fit in fits]
        lines += ["", "FVU by group of texts", *align(rows)]
    lines.append("")
    for i, fit in enumerate(fits):
        word, reason = judge(fit, on_base[i] if on_base else None)
        lines.append(f"Block {fit.block}, {fit.site}: {word.upper()}. {reason}")
        if fit.stated_l0 is not None and not 0.5 <= fit.l0 / fit.stated_l0 <= 2:
            lines.append(f"  {fit.l0:.1f} features are active on a token; its files say {fit.stated_l0:g}.")
    lines += [
        "",
        "FVU: fraction of variance unexplained, 0 to 1 (the mean); before/after: the same in the blocks next door; "
        "L0: active features a token; dead: share never active here; cosine and norm: of the reconstruction to what "
        "is there; loss: nats a token as it is, with the reconstruction, with the mean, with zeros; rec.: share that "
        "the reconstruction recovers of what zeros cost, rec. mean: of what the mean costs.",
    ]
    return "\n".join(printable(line) for line in lines)


def _row(fit: SAEFit) -> tuple[str, ...]:
    next_door = "/".join(_number(fit.fvu_next_door.get(block, math.nan)) for block in (fit.block - 1, fit.block + 1))
    losses = (fit.loss, fit.loss_with_sae, fit.loss_with_mean, fit.loss_with_zero)
    shares = (fit.loss_recovered, fit.loss_recovered_from_mean)
    figures = (fit.dead_features, fit.cosine, fit.norm_ratio, *losses, *shares)
    return (str(fit.block), fit.site, _number(fit.fvu), next_door, f"{fit.l0:.1f}", *map(_number, figures))


def _number(value: float) -> str:
    if math.isnan(value):
        return "-"
    return f"{value:.3f}" if abs(value) < 100 else f"{value:.3g}"
