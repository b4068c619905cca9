"""The table and pictures of `code_switching.yaml`, from its raw results alone."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from choose import chosen_configs, loss_increase
from code_switching_measures import OTHERS, fault
from settings import Experiment

from sae_posttrain.measure.claims import non_inferiority
from sae_posttrain.measure.resampling import ResampledEstimate, bootstrap_mean, bootstrap_ratio

BASELINE = "plain"
MARGIN = 0.02  # of the suppressed language and of what is asked for, set before the first run

NAMES = {
    "plain": "plain SFT",
    "sasft": "SASFT",
    "sasft_zero": "SASFT, level 0",
    "random_features": "random features",
    "difference_of_means": "difference of means",
    "probe": "logistic probe",
    "token_penalty": "token penalty",
    "sasft_and_tokens": "SASFT + token penalty",
    "data_filter": "data filter",
    "lm_head_scaling": "LM head scaling",
    "ablation": "ablation while answering",
    "language_reward": "GRPO, language reward",
}

Run = dict[str, Any]


def write(experiment: Experiment, results: list[Run], pictures: Path) -> str:
    """Draw the pictures to a folder; returns the tables as Markdown."""
    dev = [run for run in results if run["split"] == "dev"]
    test = [run for run in results if run["split"] == "test"]
    draw_tuning(
        experiment,
        dev,
        chosen_configs(experiment, dev, [arm for arm in experiment.arms if arm in NAMES]),
        pictures / "code_switching_tuning.png",
    )
    draw_arms(test, pictures / "code_switching.png")
    return "\n\n".join([main_table(test), side_table(test), tuning_table(experiment, dev)])


def by_arm(runs: Sequence[Run]) -> dict[str, list[Run]]:
    """Runs of each arm in order of seeds, the baseline first, then in the order of `NAMES`."""
    return {
        arm: sorted((run for run in runs if run["arm"] == arm), key=lambda run: run["seed"])
        for arm in NAMES
        if any(run["arm"] == arm for run in runs)
    }


def probabilities(runs: Sequence[Run]) -> list[tuple[str, int, float]]:
    """Probability of switching by prompt and seed, each language as many prompts."""
    return [
        (f"{lang}/{place}", run["seed"], value)
        for run in runs
        for lang in OTHERS
        for place, value in enumerate(run["switch_probability"][lang])
    ]


def flagged(runs: Sequence[Run], name: str, langs: Sequence[str] = OTHERS) -> list[tuple[str, int, float]]:
    """Flags of the sampled answers by prompt and seed; those that could not be told count as 0."""
    return [
        (f"{lang}/{place}", run["seed"], float(flag == "1"))
        for run in runs
        for lang in langs
        for place, flag in enumerate(run["sampled"][lang][name])
    ]


def asked_for(runs: Sequence[Run], kind: str) -> list[tuple[str, int, float]]:
    """Mean probability of Chinese where the reference has it, after prompts that ask for it."""
    return [(str(place), run["seed"], value) for run in runs for place, value in enumerate(run[kind]["mean"])]


def main_table(runs: Sequence[Run]) -> str:
    """Switching and held-out loss."""
    arms = by_arm(runs)
    plain = arms[BASELINE]
    head = ["arm", "chosen", "switching (95 % interval)", "by seed", "against plain SFT", "sampled answers with Han"]
    lines = [[*head, "held-out loss, others", "loss zh"], ["---"] * (len(head) + 2)]
    for arm, own in arms.items():
        rate = bootstrap_mean(probabilities(own))
        sampled = flagged(own, "switched")
        row = [NAMES[arm], own[0]["config"], percent(rate)]
        row.append(", ".join(f"{100 * value:.1f}" for value in rate.per_seed.values()))
        change = "" if arm == BASELINE else percent(bootstrap_ratio(probabilities(plain), probabilities(own)), "+.0f")
        row.append(change)
        row.append(f"{sum(flag for _, _, flag in sampled):.0f} of {len(sampled)}")
        for langs in (OTHERS, ("zh",)):
            changes = [loss_increase(run, other, langs) for run, other in zip(own, plain)]
            level = np.mean([np.mean([run["loss"][lang] for lang in langs]) for run in own])
            row.append(f"{level:.3f}" + ("" if arm == BASELINE else f" ({100 * np.mean(changes):+.2f} %)"))
        lines.append(row)
    return markdown(lines)


def side_table(runs: Sequence[Run]) -> str:
    """What the arms did to Chinese that belongs there, and to everything else."""
    arms = by_arm(runs)
    plain = arms[BASELINE]
    measures: dict[str, Callable[[Sequence[Run]], list[tuple[str, int, float]]]] = {
        "Chinese page in Chinese": lambda own: flagged(own, "right_language", ["zh"]),
        "translation into Chinese": lambda own: asked_for(own, "translate"),
        "Chinese word on request": lambda own: asked_for(own, "word"),
        "right language": lambda own: flagged(own, "right_language"),
    }
    head = ["arm", *measures, "copying", "tokens", "cut", "empty", "endless"]
    lines = [head, ["---"] * len(head)]
    for arm, own in arms.items():
        row = [NAMES[arm]]
        for rows_of in measures.values():
            rate = 100 * bootstrap_mean(rows_of(own), num_resamples=100).estimate
            kept = "" if arm == BASELINE else verdict(rows_of(plain), rows_of(own))
            row.append(f"{rate:.1f} %{kept}")
        row.append(f"{np.mean([run['copying'] for run in own]):.3f}")
        row.append(f"{np.mean([run['sampled'][lang]['mean_tokens'] for run in own for lang in OTHERS]):.1f}")
        row.append(f"{100 - 100 * mean_flag(own, 'finished'):.0f} %")
        row += [f"{100 * mean_flag(own, name):.1f} %" for name in ("empty", "endless")]
        lines.append(row)
    return markdown(lines)


def verdict(before: list[tuple[str, int, float]], after: list[tuple[str, int, float]]) -> str:
    """Difference in points with its interval, and whether it is within the margin."""
    claim = non_inferiority(before, after, MARGIN)
    difference = claim.difference
    points = f"{100 * difference.estimate:+.1f} [{100 * difference.low:+.1f}, {100 * difference.high:+.1f}]"
    return f"; {points}, {claim.verdict}"


def tuning_table(experiment: Experiment, runs: Sequence[Run]) -> str:
    """Every configuration on the dev pages; the chosen ones in bold."""
    chosen = chosen_configs(experiment, list(runs), [arm for arm in experiment.arms if arm in NAMES])
    plain = next(run for run in runs if run["arm"] == BASELINE)
    lines = [["arm", "configurations: switching on the dev pages, change of held-out loss"], ["---", "---"]]
    for arm, own in by_arm(runs).items():
        cells = []
        for run in own:
            increase = 100 * loss_increase(run, plain, OTHERS)
            text = f"`{run['config']}` {100 * fault(run):.1f} %, {increase:+.2f} %"
            cells.append(f"**{text}**" if run["config"] == chosen[arm] else text)
        lines.append([NAMES[arm], "; ".join(cells)])
    return markdown(lines)


def mean_flag(runs: Sequence[Run], name: str) -> float:
    """Share of a flag over the languages that should not switch."""
    values = [value for _, _, value in flagged(runs, name)]
    return sum(values) / len(values)


def percent(estimate: ResampledEstimate, form: str = ".1f") -> str:
    """An estimate with its interval, the wider of the two where seeds give one."""
    low, high = widest(estimate)
    return f"{100 * estimate.estimate:{form}} % ({100 * low:{form}} to {100 * high:{form}})"


def widest(estimate: ResampledEstimate) -> tuple[float, float]:
    """The wider of the intervals over prompts and seeds and over seeds alone."""
    other = estimate.seed_interval or (estimate.low, estimate.high)
    own = (estimate.low, estimate.high)
    return own if own[1] - own[0] >= other[1] - other[0] else (max(other[0], -1.0), other[1])


def markdown(lines: Sequence[Sequence[str]]) -> str:
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def draw_tuning(experiment: Experiment, runs: Sequence[Run], chosen: dict[str, str], path: Path) -> None:
    """Switching against held-out loss for every configuration on the dev pages."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 5.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    plain = next(run for run in runs if run["arm"] == BASELINE)
    for place, (arm, own) in enumerate(by_arm(runs).items()):
        points = [(100 * loss_increase(run, plain, OTHERS), 100 * fault(run), run["config"]) for run in own]
        colour, marker = f"C{place % 10}", "osD^vP*Xhp<>"[place % 12]
        axes.plot(*zip(*[(x, y) for x, y, _ in points]), marker, color=colour, markersize=5, alpha=0.6, ls="")
        best = next(point for point in points if point[2] == chosen[arm])
        axes.plot(best[0], best[1], marker, color=colour, markersize=10, label=NAMES[arm], ls="")
    budget = 100 * experiment.tune["loss_budget"]
    axes.axvline(budget, color="0.6", linestyle=":", linewidth=1)
    axes.annotate("loss budget", (budget, 1), xycoords=("data", "axes fraction"), fontsize=8, color="0.4", va="bottom")
    axes.set_xscale("symlog", linthresh=1)
    axes.set_ylim(bottom=0)
    axes.set_xlabel("change of held-out loss against plain SFT, % (dev pages)")
    axes.set_ylabel("probability that an answer switches to Chinese, %")
    axes.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=150)


def draw_arms(runs: Sequence[Run], path: Path) -> None:
    """Switching of each arm on the test pages, with its interval and seeds; what it costs; what is left of Chinese."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    arms = by_arm(runs)
    plain = arms[BASELINE]
    figure = Figure(figsize=(11, 1.2 + 0.42 * len(arms)), layout="constrained")
    FigureCanvasAgg(figure)
    left, middle, right = figure.subplots(1, 3, sharey=True, width_ratios=[2, 1, 1.2])
    for row, own in enumerate(arms.values()):
        rate = bootstrap_mean(probabilities(own))
        low, high = widest(rate)
        error = [[100 * (rate.estimate - max(low, 0))], [100 * (high - rate.estimate)]]
        left.errorbar([100 * rate.estimate], [row], xerr=error, fmt="o", color="C3" if row else "0.35", capsize=3)
        left.plot([100 * value for value in rate.per_seed.values()], [row + 0.22] * len(own), "|", color="0.5")
        increases = [100 * loss_increase(run, other, OTHERS) for run, other in zip(own, plain)]
        middle.plot([np.mean(increases)], [row], "o", color="C0")
        for place, (kind, label) in enumerate(
            [("translate", "translation into Chinese"), ("word", "Chinese word on request")]
        ):
            kept = bootstrap_mean(asked_for(own, kind), num_resamples=1000)
            right.plot([100 * kept.estimate], [row + 0.12 * place], "sD"[place], color=f"C{place + 1}", label=label)
    left.set_yticks(range(len(arms)), [NAMES[arm] for arm in arms])
    left.invert_yaxis()
    left.set_xlim(left=0)
    left.set_xlabel("probability that an answer switches, %\n(95 % interval; ticks: seeds)")
    middle.set_xlabel("change of held-out loss, %")
    middle.axvline(0, color="0.8", linewidth=0.8)
    right.set_xlabel("probability of Chinese\nwhere it was asked for, %")
    handles, labels = right.get_legend_handles_labels()
    unique = dict(zip(labels, handles))
    right.legend(
        unique.values(), unique.keys(), frameon=False, fontsize=8, loc="lower center", bbox_to_anchor=(0.5, 1)
    )
    for axes in (left, middle, right):
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=150)
