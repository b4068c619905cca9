"""The table and pictures of `sensitivity.yaml`, from its raw results alone: a picture a sweep."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from choose import loss_increase
from code_switching_measures import OTHERS, TARGET
from code_switching_report import probabilities
from pictures import new_figure, save
from settings import Experiment
from tables import Run, markdown, percent, same_seeds, widest

from sae_posttrain.measure.statistics.resampling import ResampledEstimate, bootstrap_mean, bootstrap_ratio

BASELINE = "plain"
SAES = Path(__file__).resolve().parent / "results" / "sensitivity_saes.json"

Settings = dict[str, Any]


@dataclass(frozen=True)
class Sweep:
    """One picture: what is varied, in which arms, and where the reference stands in it."""

    name: str
    label: str
    value: Callable[[Settings], Any]  # of a point; points are sorted by it
    text: Callable[[Any], str] = str
    arms: tuple[tuple[str, str], ...] = ()  # with their names in the legend, if more than the one of the sweep's name
    reference: str = "reference"
    joined: bool = True  # by a line: the values are in an order

    @property
    def lines(self) -> tuple[tuple[str, str], ...]:
        return self.arms or ((self.name, ""),)


def blocks_text(value: tuple[int, list[int]]) -> str:
    _, blocks = value
    return str(blocks[0]) if len(blocks) == 1 else f"{blocks[0]} to {blocks[-1]}"


def level_text(value: tuple[str, str, str]) -> str:
    level, unit, positions = value
    return "\n".join([{"sasft": "mean", "zero": "zero"}[level], unit, positions])


SWEEPS = (
    Sweep("weight", "weight of the penalty", lambda s: s["training"]["penalty_weight"], "{:g}".format),
    Sweep("margin", "margin, standard deviations", lambda s: s["training"]["margin"], "{:g}".format),
    Sweep(
        "num_features",
        "features a block",
        lambda s: s["features"]["num_features"],
        arms=(("num_features", "same weight"), ("num_features_scaled", "weight in\nproportion")),
    ),
    Sweep("blocks", "blocks", lambda s: (len(s["features"]["blocks"]), s["features"]["blocks"]), blocks_text),
    Sweep(
        "level",
        "level, unit and positions",
        lambda s: tuple(s["training"][name] for name in ("penalty", "penalty_unit", "penalty_positions")),
        level_text,
        joined=False,
    ),
    Sweep("num_texts", "texts a group to find the features", lambda s: s["features"]["max_texts"]),
    Sweep(
        "sae_width",
        "features of the SAE (k = 32, last block)",
        lambda s: s["features"]["sae"]["width"],
        reference="sae_reference",
    ),
    Sweep(
        "sae_k",
        "active features a token, k (4096 features, last block)",
        lambda s: s["features"]["sae"]["k"],
        reference="sae_reference",
    ),
)


@dataclass(frozen=True)
class Point:
    """A setting of a sweep: its runs in order of seeds, beside them those of the reference and of plain SFT."""

    value: Any
    config: str
    is_reference: bool
    runs: list[Run]
    reference: list[Run]
    plain: list[Run]

    @cached_property
    def rate(self) -> ResampledEstimate:
        """Probability of switching, with its interval."""
        return bootstrap_mean(probabilities(self.runs))

    def increase(self, langs: Sequence[str]) -> float:
        """Mean over seeds of the relative change of held-out loss against plain SFT, %."""
        changes = [loss_increase(run, plain, langs) for run, plain in zip(self.runs, self.plain)]
        return 100 * float(np.mean(changes))


def write(experiment: Experiment, results: list[Run], pictures: Path) -> str:
    """Draw a picture a sweep to a folder; returns the table as Markdown, and names the points that are not run yet."""
    head = ["sweep", "value", "seeds", "switching (95 % interval over prompts)", "against the sweep's reference"]
    head += ["held-out loss, others", "loss zh"]
    plain = of_arm(results, BASELINE, "only")
    if not plain:
        raise ValueError(f"No run of {BASELINE!r} yet: every change of loss is against it.")
    rate = bootstrap_mean(probabilities(plain))
    lines = [head, ["---"] * len(head), ["plain SFT", "", str(len(plain)), percent(rate, least=0.0), "", "", ""]]
    for sweep in SWEEPS:
        points = {arm: points_of(experiment, sweep, arm, results) for arm, _ in sweep.lines}
        if any(len(own) > 1 for own in points.values()):
            draw(experiment, sweep, points, rate, pictures / f"sensitivity_{sweep.name}.png")
        for place, (arm, name) in enumerate(sweep.lines):
            label = f"{sweep.label}, {' '.join(name.split())}" if name else sweep.label
            lines += [row_of(sweep, label, point) for point in points[arm] if not (place and point.is_reference)]
    return "\n\n".join([markdown(lines), *sae_table(), *not_run(experiment, results)])


def of_arm(results: Sequence[Run], arm: str, config: str) -> list[Run]:
    """Runs of a configuration in order of seeds."""
    runs = [run for run in results if (run["arm"], run["config"], run["split"]) == (arm, config, "dev")]
    return sorted(runs, key=lambda run: run["seed"])


def points_of(experiment: Experiment, sweep: Sweep, arm: str, results: Sequence[Run]) -> list[Point]:
    """
    The points of an arm that have been run and the reference, in the order of their values.

    Raises:
        ValueError: If plain SFT or the reference has not been run with a seed of a point.
    """
    points = []
    for name, config in [(sweep.reference, "only"), *((arm, config) for config in experiment.configs(arm))]:
        runs = of_arm(results, name, config)
        beside = [same_seeds(of_arm(results, other, "only"), runs) for other in (sweep.reference, BASELINE)]
        if runs:
            value = sweep.value(experiment.settings(name, config))
            points.append(Point(value, config, name == sweep.reference, runs, *beside))
    return sorted(points, key=lambda point: point.value)


def row_of(sweep: Sweep, label: str, point: Point) -> list[str]:
    """A row of the table; the reference's value in bold."""
    text = sweep.text(point.value).replace("\n", ", ")
    change = ""
    if not point.is_reference:
        change = percent(bootstrap_ratio(probabilities(point.reference), probabilities(point.runs)), "+.0f")
    losses = [f"{point.increase(langs):+.2f} %" for langs in (OTHERS, (TARGET,))]
    return [
        label,
        f"**{text}**" if point.is_reference else text,
        str(len(point.runs)),
        percent(point.rate, least=0.0),
        change,
        *losses,
    ]


def sae_table() -> list[str]:
    """How good the SAEs of the last two sweeps are, where `train_saes.py` has left its file."""
    if not SAES.exists():
        return []
    lines = [["features of the SAE", "k", "variance unexplained", "dead features"], ["---"] * 4]
    for sae in json.loads(SAES.read_text(encoding="utf-8"))["saes"]:
        unexplained, dead = sae["fraction_of_variance_unexplained"], sae["dead_features"]
        lines.append([str(sae["width"]), str(sae["k"]), f"{unexplained:.3f}", f"{100 * dead:.1f} %"])
    return [markdown(lines)]


def not_run(experiment: Experiment, results: Sequence[Run]) -> list[str]:
    missing = [
        f"`{arm}` {config}"
        for arm in experiment.arms
        for config in experiment.configs(arm)
        if not of_arm(results, arm, config)
    ]
    return [f"Not run yet: {', '.join(missing)}."] if missing else []


def draw(
    experiment: Experiment, sweep: Sweep, points: dict[str, list[Point]], plain: ResampledEstimate, path: Path
) -> None:
    """Switching with its interval over prompts, and below it the change of held-out loss, at each value of a sweep."""
    figure = new_figure(7, 5.5)
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=[3, 2])
    values: list[Any] = []
    for value in sorted(point.value for own in points.values() for point in own):
        if value not in values:  # lists of blocks cannot be put in a set
            values.append(value)
    style = "-" if sweep.joined else ""
    for place, (arm, name) in enumerate(sweep.lines):
        own = points[arm]
        at = [values.index(point.value) + 0.08 * place for point in own]
        rates = [point.rate for point in own]
        bounds = [widest(rate) for rate in rates]
        below = [100 * (rate.estimate - max(low, 0.0)) for rate, (low, _) in zip(rates, bounds)]
        above = [100 * (high - rate.estimate) for rate, (_, high) in zip(rates, bounds)]
        means = [100 * rate.estimate for rate in rates]
        colour = ("C0", "C1")[place]
        upper.errorbar(at, means, yerr=[below, above], fmt=f"o{style}", color=colour, capsize=3, lw=1, label=name)
        for x, rate in zip(at, rates):
            if rate.num_seeds > 1:
                seeds = [100 * value for value in rate.per_seed.values()]
                upper.plot([x + 0.12] * len(seeds), seeds, "_", color="0.5")
        others = [point.increase(OTHERS) for point in own]
        lower.plot(at, others, f"o{style}", color=colour, lw=1)
        target = [point.increase((TARGET,)) for point in own]
        lower.plot(at, target, "D", color=colour, mfc="white", ms=5)
        if not place:
            where = [point.is_reference for point in own].index(True)
            for axes, heights in ((upper, means), (lower, others)):
                axes.plot(at[where], heights[where], "o", color="C3", mfc="none", mew=2, ms=13, ls="")
    draw_plain(upper, plain)
    lower.axhline(0, color="0.5", ls="--", lw=1)
    budget = 100 * experiment.tune["loss_budget"]
    lower.axhline(budget, color="0.6", ls=":", lw=1)
    upper.set_ylim(bottom=0)
    upper.set_ylabel("probability that an answer\nswitches to Chinese, %")
    lower.set_ylabel("change of\nheld-out loss, %")
    lower.set_xticks(range(len(values)), [sweep.text(value) for value in values], fontsize=9 if sweep.joined else 7.5)
    lower.set_xlim(-0.5, len(values) - 0.5)
    lower.set_xlabel(sweep.label)
    explain(upper, lower, budget)
    save(figure, [upper, lower], path)


def draw_plain(axes: Any, rate: ResampledEstimate) -> None:
    """Plain SFT as a band over all values."""
    low, high = widest(rate)
    axes.axhspan(100 * max(low, 0.0), 100 * high, color="0.93", zorder=0)
    axes.axhline(100 * rate.estimate, color="0.5", ls="--", lw=1, zorder=0)


def explain(upper: Any, lower: Any, budget: float) -> None:
    """Legends beside the panels."""
    from matplotlib.lines import Line2D

    def key(text: str, **style: Any) -> Line2D:
        return Line2D([], [], label=text, **style)

    named = [handle for handle, name in zip(*upper.get_legend_handles_labels()) if name]
    reference = key("reference", color="C3", marker="o", mfc="none", mew=2, ms=10, ls="")
    plain = key("plain SFT", color="0.5", ls="--", lw=1)
    others = key("en, es, ko, ru", color="0.3", marker="o", ls="")
    target = key("zh", color="0.3", marker="D", mfc="white", ms=5, ls="")
    allowed = key(f"budget of the\narms, {budget:g} %", color="0.6", ls=":", lw=1)
    for axes, handles in ((upper, [*named, reference, plain]), (lower, [others, target, allowed])):
        axes.legend(handles=handles, frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
