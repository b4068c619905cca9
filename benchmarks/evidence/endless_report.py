"""The tables and pictures of `repetition.yaml`, from its raw results alone."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from benign import BUILT
from choose import chosen_configs, loss_increase
from code_switching_report import MARGIN, markdown, percent, verdict, widest
from endless_measures import HELD, fault
from settings import Experiment

from sae_posttrain.measure.resampling import ResampledEstimate, bootstrap_mean, bootstrap_ratio

START = "before"
PLAIN = "plain"
NAMES = {
    START: "start, not trained",
    PLAIN: "plain DAPO",
    "overlong": "DAPO + soft overlong",
    "ngram": "DAPO + n-gram reward",
    "sae": "steered: SAE feature",
    "difference_of_means": "steered: difference of means",
    "random": "steered: random direction",
    "handmade": "hand-made loops",
    "greedy": "the model's greedy answer",
    "unlikelihood": "unlikelihood",
    "repetition_penalty": "repetition penalty while decoding",
}

Run = dict[str, Any]
Rows = list[tuple[str, int, float]]
"""Prompt, seed and value."""


def write(experiment: Experiment, results: list[Run], pictures: Path) -> str:
    """Draw the pictures to a folder; returns the tables as Markdown."""
    dev = [run for run in results if run["split"] == "dev"]
    test = [run for run in results if run["split"] == "test"]
    chosen = chosen_configs(experiment, dev, list(by_arm(dev)))
    draw_tuning(experiment, dev, chosen, pictures / f"{experiment.name}_tuning.png")
    draw_arms(test, pictures / f"{experiment.name}.png")
    return "\n\n".join([main_table(test), side_table(test), tuning_table(dev, chosen)])


def by_arm(runs: Sequence[Run]) -> dict[str, list[Run]]:
    """Runs of each arm in order of seeds, the start first, then in the order of `NAMES`."""
    return {
        arm: sorted((run for run in runs if run["arm"] == arm), key=lambda run: run["seed"])
        for arm in NAMES
        if any(run["arm"] == arm for run in runs)
    }


def same_seeds(reference: Sequence[Run], own: Sequence[Run]) -> list[Run]:
    """The runs of the reference with the seeds of an arm."""
    seeds = {run["seed"] for run in own}
    return [run for run in reference if run["seed"] in seeds]


def flagged(runs: Sequence[Run], name: str, part: str = "sampled", langs: Sequence[str] = HELD) -> Rows:
    """Share of a page's answers with a flag, by page and seed; those that could not be told count as 0."""
    return [
        (f"{lang}/{place}", run["seed"], sum(flag == "1" for flag in of_page) / len(of_page))
        for run in runs
        for lang in langs
        for place, of_page in enumerate(zip(*run[part][lang][name]))
    ]


def recalled(runs: Sequence[Run], kinds: Sequence[str], name: str = "likeliest") -> Rows:
    """How well repeated tokens are foreseen, by passage and seed."""
    return [
        (f"{kind}/{place}", run["seed"], value)
        for run in runs
        for kind in kinds
        for place, value in enumerate(run["benign"][kind][name])
    ]


def mean_of(rows: Rows) -> float:
    return float(np.mean([value for _, _, value in rows]))


def main_table(runs: Sequence[Run]) -> str:
    """Endless answers, the loops next to them, and held-out loss."""
    arms = by_arm(runs)
    names = ["arm", "chosen", "endless (95 % interval)", "by seed", "against the start", "against plain DAPO"]
    names += ["near loops", "greedy endless", "held-out loss", "negatives that loop: first, last third"]
    lines = [names, ["---"] * len(names)]
    for arm, own in arms.items():
        rate = bootstrap_mean(flagged(own, "endless"))
        row = [NAMES[arm], f"`{own[0]['config']}`" if arm != START else "", percent(rate)]
        row.append(", ".join(f"{100 * value:.1f}" for value in rate.per_seed.values()))
        for reference, itself in ((START, (START,)), (PLAIN, (START, PLAIN))):
            row.append("" if arm in itself else change(same_seeds(arms[reference], own), own))
        row += [f"{100 * mean_of(flagged(own, 'near_loop')):.1f} %"]
        row += [f"{100 * mean_of(flagged(own, 'endless', 'greedy')):.0f} %"]
        level = np.mean([run["loss"][lang] for run in own for lang in HELD])
        row.append(f"{level:.3f}" + ("" if arm == START else f" ({100 * mean_increase(own, arms[START]):+.2f} %)"))
        row.append(hit_rates(own))
        lines.append(row)
    return markdown(lines)


def change(reference: Sequence[Run], own: Sequence[Run]) -> str:
    """Relative change of the rate of endless answers, with its interval."""
    return percent(endless_ratio(reference, own), "+.0f")


def endless_ratio(reference: Sequence[Run], own: Sequence[Run]) -> ResampledEstimate:
    return bootstrap_ratio(flagged(reference, "endless"), flagged(own, "endless"))


def mean_increase(own: Sequence[Run], start: Sequence[Run]) -> float:
    """Relative change of the held-out loss, mean over seeds."""
    return float(np.mean([loss_increase(run, other, HELD) for run, other in zip(own, same_seeds(start, own))]))


def hit_rates(runs: Sequence[Run]) -> str:
    """Share of the negatives that loop, at the beginning and at the end of the training."""
    rates = [[entry["steer/hit_rate"] for entry in run["log"] if "steer/hit_rate" in entry] for run in runs]
    if not all(rates):
        return ""
    first = np.mean([np.mean(rate[: math.ceil(len(rate) / 3)]) for rate in rates])
    last = np.mean([np.mean(rate[-math.ceil(len(rate) / 3) :]) for rate in rates])
    return f"{first:.2f}, {last:.2f}"


def side_table(runs: Sequence[Run]) -> str:
    """What the arms did to repetition that belongs there, and to everything else; differences are to the start."""
    arms = by_arm(runs)
    head = ["arm", "pages' own repetition, likeliest", "nats a token", "built repetition, likeliest", "nats a token"]
    head += ["copying", "right language", "Chinese elsewhere", "tokens", "cut", "empty"]
    lines = [head, ["---"] * len(head)]
    for arm, own in arms.items():
        start = same_seeds(arms[START], own)
        row = [NAMES[arm]]
        for kinds in (("page",), BUILT):
            row.append(with_verdict(recalled(start, kinds), recalled(own, kinds), arm))
            row.append(f"{-mean_of(recalled(own, kinds, 'log_prob')):.3f}")
        row.append(f"{np.mean([run['copying'] for run in own]):.3f}")
        row.append(with_verdict(flagged(start, "right_language"), flagged(own, "right_language"), arm))
        others = [lang for lang in HELD if lang != "zh"]
        row.append(f"{100 * mean_of(flagged(own, 'switched', langs=others)):.1f} %")
        row.append(f"{np.mean([run['sampled'][lang]['mean_tokens'] for run in own for lang in HELD]):.1f}")
        row.append(f"{100 - 100 * mean_of(flagged(own, 'finished')):.0f} %")
        row.append(f"{100 * mean_of(flagged(own, 'empty')):.1f} %")
        lines.append(row)
    return markdown(lines)


def with_verdict(before: Rows, after: Rows, arm: str) -> str:
    """A share, and whether it is within the margin of the start's."""
    return f"{100 * mean_of(after):.1f} %" + ("" if arm == START else f"; {verdict(before, after)}")


def tuning_table(runs: Sequence[Run], chosen: dict[str, str]) -> str:
    """Every configuration on the dev pages; the chosen ones in bold."""
    arms = by_arm(runs)
    lines = [["arm", "configurations: endless answers on the dev pages, change of held-out loss"], ["---", "---"]]
    for arm, own in arms.items():
        cells = []
        for run in own:
            increase = 100 * loss_increase(run, arms[START][0], HELD)
            text = f"`{run['config']}` {100 * fault(run):.1f} %, {increase:+.2f} %"
            cells.append(f"**{text}**" if run["config"] == chosen[arm] else text)
        lines.append([NAMES[arm], "; ".join(cells)])
    return markdown(lines)


def draw_tuning(experiment: Experiment, runs: Sequence[Run], chosen: dict[str, str], path: Path) -> None:
    """Endless answers against held-out loss for every configuration on the dev pages."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 5.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    arms = by_arm(runs)
    for place, (arm, own) in enumerate(arms.items()):
        points = {run["config"]: (100 * loss_increase(run, arms[START][0], HELD), 100 * fault(run)) for run in own}
        colour, marker = f"C{place % 10}", "osD^vP*Xhp<>"[place % 12]
        axes.plot(*zip(*points.values()), marker, color=colour, markersize=5, alpha=0.5, ls="")
        axes.plot(*points[chosen[arm]], marker, color=colour, markersize=10, label=NAMES[arm], ls="")
    budget = 100 * experiment.tune["loss_budget"]
    axes.axvline(budget, color="0.6", linestyle=":", linewidth=1)
    axes.annotate("loss budget", (budget, 1), xycoords=("data", "axes fraction"), fontsize=8, color="0.4", va="bottom")
    axes.set_xscale("symlog", linthresh=1)
    axes.set_ylim(bottom=0)
    axes.set_xlabel("change of held-out loss against the start, % (dev pages)")
    axes.set_ylabel("endless answers, %")
    axes.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=150)


def draw_arms(runs: Sequence[Run], path: Path) -> None:
    """Endless answers of each arm on the test pages, with interval and seeds; what it costs; what it leaves alone."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    arms = by_arm(runs)
    figure = Figure(figsize=(11, 1.2 + 0.42 * len(arms)), layout="constrained")
    FigureCanvasAgg(figure)
    left, middle, right = figure.subplots(1, 3, sharey=True, width_ratios=[2, 1, 1.2])
    for row, (arm, own) in enumerate(arms.items()):
        rate = bootstrap_mean(flagged(own, "endless"))
        low, high = widest(rate)
        error = [[100 * (rate.estimate - max(low, 0))], [100 * (high - rate.estimate)]]
        colour = "0.35" if arm in (START, PLAIN) else "C3"
        left.errorbar([100 * rate.estimate], [row], xerr=error, fmt="o", color=colour, capsize=3)
        left.plot([100 * value for value in rate.per_seed.values()], [row + 0.22] * len(own), "|", color="0.5")
        middle.plot([100 * mean_increase(own, arms[START])], [row], "o", color="C0")
        for place, (kinds, label) in enumerate([(("page",), "on people's pages"), (BUILT, "built: list, refrain, …")]):
            kept = 100 * (mean_of(recalled(own, kinds)) - mean_of(recalled(same_seeds(arms[START], own), kinds)))
            name = label if row == 0 else None
            right.plot([kept], [row + 0.12 * place], "sD"[place], color=f"C{place + 1}", label=name)
    left.set_yticks(range(len(arms)), [NAMES[arm] for arm in arms])
    left.invert_yaxis()
    left.set_xlim(left=0)
    left.set_xlabel("endless answers, %\n(95 % interval; ticks: seeds)")
    middle.set_xlabel("change of held-out loss, %")
    right.set_xlabel("change of repetition that belongs there,\npoints of tokens foreseen")
    right.axvline(-100 * MARGIN, color="0.6", linestyle=":", linewidth=1)
    right.legend(frameon=False, fontsize=8, loc="lower center", bbox_to_anchor=(0.5, 1))
    for axes in (left, middle, right):
        axes.spines[["top", "right"]].set_visible(False)
    for axes in (middle, right):
        axes.axvline(0, color="0.8", linewidth=0.8)
    figure.savefig(path, dpi=150)
