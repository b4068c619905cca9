"""What the choice of configurations saw: a picture and a table of every one on the dev pages."""

from collections.abc import Callable, Mapping
from pathlib import Path

from choose import chosen_configs, loss_increase
from pictures import new_figure, save
from settings import Experiment
from tables import Run, by_arm, markdown

Points = Mapping[str, Mapping[str, tuple[float, float]]]
"""By arm and configuration: change of the held-out loss and rate of the fault, %."""


def report_tuning(
    experiment: Experiment,
    results: list[Run],
    names: Mapping[str, str],
    fault: Callable[[Run], float],
    what: tuple[str, str],
    pictures: Path,
) -> str:
    """
    Draw every configuration of the named arms; returns their table as Markdown.

    Args:
        experiment, results:
            The experiment and its raw results.
        names:
            Of the arms that are shown.
        fault:
            Its rate in a run.
        what:
            The fault as the table and as the axis of the picture call it.
        pictures:
            Folder for the picture.
    """
    arms = by_arm([run for run in results if run["split"] == "dev"], names)
    chosen = chosen_configs(experiment, results, list(arms))
    baseline = arms[experiment.baseline][0]
    points = {
        arm: {run["config"]: (100 * loss_increase(run, baseline, experiment.held), 100 * fault(run)) for run in own}
        for arm, own in arms.items()
    }
    budget = 100 * experiment.tune["loss_budget"]
    draw_tuning(points, names, chosen, budget, what[1], pictures / f"{experiment.name}_tuning.png")
    lines = [["arm", f"configurations: {what[0]} on the dev pages, change of held-out loss"], ["---", "---"]]
    for arm, own in points.items():
        cells = []
        for config, (increase, rate) in own.items():
            text = f"`{config}` {rate:.1f} %, {increase:+.2f} %"
            cells.append(f"**{text}**" if config == chosen[arm] else text)
        lines.append([names[arm], "; ".join(cells)])
    return markdown(lines)


def draw_tuning(
    points: Points, names: Mapping[str, str], chosen: Mapping[str, str], budget: float, fault: str, path: Path
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
    axes.set_ylim(-0.02 * top, top)  # markers at 0 stay whole
    axes.set_xlabel("change of held-out loss against the baseline, % (dev pages)")
    axes.set_ylabel(fault)
    axes.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
    save(figure, [axes], path)
