"""The tables and pictures of `repetition.yaml`, from its raw results alone."""

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from benign import BUILT
from choose import loss_increase
from endless_measures import HELD, fault
from pictures import draw_rates, legend_above, name_rows, new_figure, save
from settings import Experiment
from tables import MARGIN, Rows, Run, by_arm, markdown, percent, same_seeds, verdict
from tuning import report_tuning

from sae_posttrain.measure.statistics.resampling import ResampledEstimate, bootstrap_mean, bootstrap_ratio

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
    "unlikelihood": "unlikelihood",
    "repetition_penalty": "repetition penalty while decoding",
}


def write(experiment: Experiment, results: list[Run], pictures: Path) -> str:
    """Draw the pictures to a folder; returns the tables as Markdown."""
    test = by_arm([run for run in results if run["split"] == "test"], NAMES)
    draw_arms(test, pictures / f"{experiment.name}.png")
    return "\n\n".join(
        [
            main_table(test),
            side_table(test),
            report_tuning(experiment, results, NAMES, fault, ("endless answers", "endless answers, %"), pictures),
        ]
    )


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


def main_table(arms: dict[str, list[Run]]) -> str:
    """Endless answers, the loops next to them, and held-out loss."""
    names = ["arm", "chosen", "endless (95 % interval)", "by seed", "against the start", "against plain DAPO"]
    names += ["near loops", "greedy endless", "held-out loss", "negatives that loop: first, last third"]
    lines = [names, ["---"] * len(names)]
    for arm, own in arms.items():
        rate = bootstrap_mean(flagged(own, "endless"))
        row = [NAMES[arm], f"`{own[0]['config']}`" if arm != START else "", percent(rate, least=0.0)]
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


def side_table(arms: dict[str, list[Run]]) -> str:
    """What the arms did to repetition that belongs there, and to everything else; differences are to the start."""
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


def draw_arms(arms: dict[str, list[Run]], path: Path) -> None:
    """Endless answers of each arm on the test pages, with interval and seeds; what it costs; what it leaves alone."""
    figure = new_figure(11, 1.2 + 0.42 * len(arms))
    left, middle, right = figure.subplots(1, 3, sharey=True, width_ratios=[2, 1, 1.2])
    rates = [bootstrap_mean(flagged(own, "endless")) for own in arms.values()]
    draw_rates(left, rates, [arm not in (START, PLAIN) for arm in arms])
    for row, own in enumerate(arms.values()):
        middle.plot([100 * mean_increase(own, arms[START])], [row], "o", color="C0")
        for place, (kinds, label) in enumerate([(("page",), "on people's pages"), (BUILT, "built: list, refrain, …")]):
            kept = 100 * (mean_of(recalled(own, kinds)) - mean_of(recalled(same_seeds(arms[START], own), kinds)))
            right.plot([kept], [row + 0.12 * place], "sD"[place], color=f"C{place + 1}", label=label)
    name_rows(left, [NAMES[arm] for arm in arms])
    left.set_xlabel("endless answers, %\n(95 % interval; ticks: seeds)")
    middle.set_xlabel("change of\nheld-out loss, %")
    right.set_xlabel("change of benign repetition,\npoints of tokens foreseen")
    right.axvline(-100 * MARGIN, color="0.6", linestyle=":", linewidth=1)
    legend_above(right)
    for axes in (middle, right):
        axes.axvline(0, color="0.8", linewidth=0.8)
    save(figure, [left, middle, right], path)
