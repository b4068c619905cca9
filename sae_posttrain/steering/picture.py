"""The picture of a dose curve: faults, right language and loss against the strength."""

import math
import os
from pathlib import Path
from typing import Any

from .dose import RATES, DoseCurve
from .strengths import describe_strengths

_COLORS = {"endless": "#c0392b", "switched": "#2c7fb8", "right language": "#41ab5d"}
_FAULTS = ("endless", "switched")


def draw_dose_curve(curve: DoseCurve, path: str | os.PathLike) -> Path:
    """
    Draw the rates with their intervals, and the loss, against the strength.

    Args:
        curve ([`DoseCurve`]):
            The sweep.
        path (`str` or `os.PathLike`):
            File to write; its ending decides the format (`.png`, `.svg`, `.pdf`).

    Raises:
        ValueError: If the format is unknown.
        ImportError: If matplotlib is missing.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("The picture needs matplotlib: pip install 'sae_posttrain[plots]'.") from error
    path = Path(path)
    figure = Figure(figsize=(6.4, 6.6), layout="constrained")
    known = FigureCanvasAgg(figure).get_supported_filetypes()
    if path.suffix[1:] not in known:
        raise ValueError(f"A picture ends in {', '.join(f'.{each}' for each in sorted(known))}; got {path}.")
    faults, right, loss = figure.subplots(3, 1, sharex=True, height_ratios=[1.5, 1, 1])
    for name in RATES:
        _draw_rate(faults if name in _FAULTS else right, curve, name)
    measured = [row for row in curve.rows if not math.isnan(row.loss)]
    loss.plot([row.strength for row in measured], [row.loss for row in measured], "o-", color="0.3", markersize=4)
    faults.set_ylabel("answers, %")
    faults.legend(frameon=False, fontsize=8)
    right.set_ylabel("right language, %")
    right.set_ylim(-3, 103)
    loss.set_ylabel("loss per token, nats")
    unit = "median residual norms" if curve.settings["unit"] == "norm" else "raw units"
    loss.set_xlabel(f"strength, {unit}")
    settings = curve.settings
    faults.set_title(
        f"{describe_strengths(curve.weights)}: {settings['num_prompts']} answers a strength, "
        f"temperature {settings['temperature']:g}, top-p {settings['top_p']:g}",
        fontsize=10,
    )
    for panel in (faults, right, loss):
        panel.axvline(0, color="0.8", linewidth=0.9, zorder=0)
        panel.spines[["top", "right"]].set_visible(False)
        panel.grid(axis="y", color="0.92", linewidth=0.7)
        panel.set_axisbelow(True)
    figure.align_ylabels()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)
    return path


def _draw_rate(panel: Any, curve: DoseCurve, name: str) -> None:
    measured = [(row.strength, rate) for row in curve.rows if (rate := row.rates[name]) is not None]
    steps = [step for step, _ in measured]
    values, low, high = ([100 * rate[key] for _, rate in measured] for key in ("rate", "low", "high"))
    panel.plot(steps, values, "o-", color=_COLORS[name], markersize=4, linewidth=1.6, label=name)
    panel.fill_between(steps, low, high, color=_COLORS[name], alpha=0.15, linewidth=0)
