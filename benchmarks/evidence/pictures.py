"""What the pictures of the reports share: rates of arms with their intervals and seeds, names, legends."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tables import widest

from sae_posttrain.measure.statistics.resampling import ResampledEstimate


def new_figure(width: float, height: float) -> Any:
    """A figure that needs no display."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def draw_rates(axes: Any, rates: Sequence[ResampledEstimate], emphasised: Sequence[bool]) -> None:
    """A row a rate, from the top: estimate and 95 % interval, below it a tick for each seed."""
    for row, (rate, strong) in enumerate(zip(rates, emphasised)):
        low, high = widest(rate)
        error = [[100 * (rate.estimate - max(low, 0))], [100 * (high - rate.estimate)]]
        colour = "C3" if strong else "0.35"
        axes.errorbar([100 * rate.estimate], [row], xerr=error, fmt="o", color=colour, capsize=3)
        seeds = [100 * value for value in rate.per_seed.values()]
        axes.plot(seeds, [row + 0.22] * len(seeds), "|", color="0.5")
    axes.set_xlim(left=0)


def name_rows(axes: Any, names: Sequence[str]) -> None:
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()


def legend_above(axes: Any) -> None:
    """One entry a label, above the axes."""
    unique = {label: handle for handle, label in zip(*axes.get_legend_handles_labels())}
    axes.legend(unique.values(), unique.keys(), frameon=False, fontsize=8, loc="lower center", bbox_to_anchor=(0.5, 1))


def save(figure: Any, panels: Sequence[Any], path: Path) -> None:
    for axes in panels:
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=150)
