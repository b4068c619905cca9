"""Pictures that the reports share: what tuning saw, and rates of arms with their intervals and seeds."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tables import Run, widest

from sae_posttrain.measure.resampling import ResampledEstimate

Points = Mapping[str, Mapping[str, tuple[float, float]]]
"""By arm and configuration: change of the held-out loss and rate of the fault, %."""


def new_figure(width: float, height: float) -> Any:
    """A figure that needs no display."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def draw_tuning(
    points: Points,
    names: Mapping[str, str],
    chosen: Mapping[str, str],
    budget: float,
    labels: tuple[str, str],
    path: Path,
) -> None:
    """Rate of the fault against held-out loss for every configuration; what is far above all chosen is cut off."""
    figure = new_figure(9, 5.5)
    axes = figure.subplots()
    top = 1.4 * max(points[arm][chosen[arm]][1] for arm in points)
    for place, (arm, own) in enumerate(points.items()):
        colour, marker = f"C{place % 10}", "osD^vP*Xhp<>"[place % 12]
        inside = [(x, y) for x, y in own.values() if y <= top]
        axes.plot(*zip(*inside), marker, color=colour, markersize=5, alpha=0.6, ls="")
        axes.plot(*own[chosen[arm]], marker, color=colour, markersize=10, label=names[arm], ls="")
        for x, y in set(own.values()) - set(inside):
            axes.plot(x, top, ls="")  # so that the axis reaches it
            axes.annotate(f"↑ {y:.0f} %", (x, top), fontsize=8, color=colour, ha="center", va="bottom")
    axes.axvline(budget, color="0.6", linestyle=":", linewidth=1)
    axes.annotate("loss budget", (budget, 1), xycoords=("data", "axes fraction"), fontsize=8, color="0.4", va="bottom")
    axes.set_xscale("symlog", linthresh=1)
    least, most = axes.get_xlim()
    ticks = [tick for tick in (-10, -5, -2, -1, -0.5, 0, 0.5, 1, 2, 5, 10, 20, 50) if least <= tick <= most]
    axes.set_xticks(ticks, [f"{tick:+g}" if tick else "0" for tick in ticks])
    axes.set_xticks([], minor=True)
    axes.set_ylim(0, top)
    axes.set_xlabel(labels[0])
    axes.set_ylabel(labels[1])
    axes.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
    save(figure, [axes], path)


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


def tuning_points(arms: Mapping[str, Sequence[Run]], measured: Any) -> Points:
    """What `measured` says of each run."""
    return {arm: {run["config"]: measured(run) for run in own} for arm, own in arms.items()}
