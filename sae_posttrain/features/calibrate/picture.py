"""The picture of a calibration: what rising strength does to the answers, beside that of controls."""

import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .calibration import Calibration

_COLOR = "#c0392b"
_OTHER_COLORS = ("#2c7fb8", "#7f8c8d", "#41ab5d", "#8e6bbf", "#b8860b", "#17a2a2")


def draw_calibration(
    calibration: Calibration, path: str | os.PathLike, *, others: Mapping[str, Calibration] | None = None
) -> Path:
    """
    Draw hit rate with its interval, mean length, and the unsteered model's loss per token against the strength.

    Args:
        calibration ([`Calibration`]):
            The sweep.
        path (`str` or `os.PathLike`):
            File to write; its ending decides the format (`.png`, `.svg`, `.pdf`).
        others (`Mapping[str, Calibration]`, *optional*):
            Sweeps to draw beside it, by label: a random direction, a difference of means.

    Raises:
        ImportError: If matplotlib is missing.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("The picture needs matplotlib: pip install 'sae_posttrain[plots]'.") from error
    figure = Figure(figsize=(6.4, 6.6), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(3, 1, sharex=True, height_ratios=[1.5, 1, 1])
    names = calibration.feature_set.names
    own = ", ".join(names) if len(names) <= 3 else f"{', '.join(names[:2])} and {len(names) - 2} more"
    sweeps = {own: calibration, **(others or {})}
    for number, (label, sweep) in enumerate(sweeps.items()):
        color = _COLOR if number == 0 else _OTHER_COLORS[(number - 1) % len(_OTHER_COLORS)]
        _draw_sweep(panels, sweep, label, color, is_own=number == 0)
    rate, length, loss = panels
    rate.axhline(100 * calibration.target, color="0.45", linewidth=0.9, linestyle="--", zorder=0)
    rate.annotate(
        f"target {100 * calibration.target:g} %",
        (0.0, 100 * calibration.target),
        xycoords=("axes fraction", "data"),
        xytext=(6, 3),
        textcoords="offset points",
        fontsize=8,
        color="0.35",
    )
    if calibration.strength is not None:
        for panel in panels:
            panel.axvline(calibration.strength, color=_COLOR, linewidth=0.9, linestyle=":", zorder=0)
        rate.annotate(
            f"strength {calibration.strength:g}",
            (calibration.strength, 0.0),
            xycoords=("data", "axes fraction"),
            xytext=(-4, 30),
            textcoords="offset points",
            horizontalalignment="right",
            fontsize=8,
            color=_COLOR,
            bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 1.0},
            zorder=10,
        )
    rate.set_ylim(-3, 103)
    rate.set_ylabel("faulty answers, %")
    length.set_ylabel("mean length, tokens")
    length.set_ylim(0, 1.08 * max(row.mean_length for sweep in sweeps.values() for row in sweep.rows) + 1)
    loss.set_ylabel("unsteered loss\nper token, nats")
    loss.set_ylim(bottom=0)
    loss.set_xlabel("strength, median residual norms")
    settings = calibration.settings
    rate.set_title(
        f"{settings['fault'].capitalize()}: {settings['num_prompts']} answers a strength, "
        f"temperature {settings['temperature']:g}, top-p {settings['top_p']:g}",
        fontsize=10,
    )
    figure.legend(*rate.get_legend_handles_labels(), loc="outside lower center", frameon=False, fontsize=8, ncols=3)
    for panel in panels:
        panel.spines[["top", "right"]].set_visible(False)
        panel.grid(axis="y", color="0.92", linewidth=0.7)
        panel.set_axisbelow(True)
    figure.align_ylabels()
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)
    return path


def _draw_sweep(panels: Any, sweep: Calibration, label: str, color: str, *, is_own: bool) -> None:
    rate, length, loss = panels
    strengths = [row.strength for row in sweep.rows]
    style: dict[str, Any] = {
        "color": color,
        "marker": "o",
        "markersize": 4 if is_own else 3,
        "linewidth": 1.6 if is_own else 1.0,
    }
    style["zorder"] = 3 if is_own else 2
    rate.plot(strengths, [100 * row.hit_rate for row in sweep.rows], label=label, **style)
    low, high = [100 * row.low for row in sweep.rows], [100 * row.high for row in sweep.rows]
    rate.fill_between(strengths, low, high, color=color, alpha=0.15, linewidth=0)
    length.plot(strengths, [row.mean_length for row in sweep.rows], **style)
    measured = [row for row in sweep.rows if not math.isnan(row.loss)]
    loss.plot([row.strength for row in measured], [row.loss for row in measured], **style)
