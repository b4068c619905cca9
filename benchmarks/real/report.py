"""
The table and the picture of the arms of `repetition.yaml`, all seeds of an arm together.

    python benchmarks/real/report.py --answers results/repetition.json --loss results/loss.json

Rates and differences are over prompts and training seeds (`sae_posttrain.measure.statistics.resampling`); of the two
intervals, the wider one is given. Writes `results/repetition.md` and `results/repetition.png`.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent / "evidence")]

from pictures import new_figure, save  # noqa: E402
from tables import widest  # noqa: E402

from sae_posttrain.measure.statistics.resampling import Row, bootstrap_difference, bootstrap_mean  # noqa: E402

BEFORE = "before"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--answers", type=Path, default=HERE / "results" / "repetition.json")
    parser.add_argument("--loss", type=Path, default=HERE / "results" / "loss.json")
    parser.add_argument("--temperature", default="0")
    arguments = parser.parse_args()
    answers = json.loads(arguments.answers.read_text(encoding="utf-8"))["answers"]
    losses = json.loads(arguments.loss.read_text(encoding="utf-8"))["losses"]
    arms: dict[str, dict[int, dict[str, Any]]] = {}
    for name, temperatures in answers.items():
        if arguments.temperature in temperatures:
            arm, _, seed = name.partition("-")
            arms.setdefault(arm, {})[int(seed or 0)] = temperatures[arguments.temperature]
    lines = [
        "| arm | seeds | endless | against before | near loops | tokens | loss on help pages | loss on reviews |",
        "|---|---|---|---|---|---|---|---|",
    ]
    lines += [line(arm, seeds, arms[BEFORE], losses) for arm, seeds in arms.items()]
    ours = [arm for arm in arms if arm.startswith("steered")]
    pairs = [(one, other) for one in ours for other in arms if other not in (BEFORE, one)]
    lines += ["", "| endless, in points | difference | p |", "|---|---|---|"]
    for one, other in pairs:
        shared = arms[one].keys() & arms[other].keys()
        if not shared:
            continue
        ours, theirs = ({seed: arms[arm][seed] for seed in sorted(shared)} for arm in (one, other))
        found = bootstrap_difference(before=rows(theirs, "endless"), after=rows(ours, "endless"))
        lines.append(f"| `{one}` less `{other}` | {points(found)} | {p_value(found)} |")
    text = "\n".join(lines) + "\n"
    print(text)
    arguments.answers.with_suffix(".md").write_text(text, encoding="utf-8")
    draw(arms, losses, arguments.answers.with_suffix(".png"))


def rows(seeds: dict[int, dict[str, Any]], what: str) -> list[Row]:
    return [(prompt, seed, flag == "1") for seed, seen in seeds.items() for prompt, flag in enumerate(seen[what])]


def line(arm: str, seeds: dict[int, Any], before: dict[int, Any], losses: dict[str, dict[str, float]]) -> str:
    tokens = sum(seen["mean_tokens"] for seen in seeds.values()) / len(seeds)
    cells = [f"`{arm}`", str(len(seeds)), rate(seeds, "endless")]
    if arm == BEFORE:
        cells += ["", rate(seeds, "near"), f"{tokens:.0f}", *(f"{value:.3f}" for value in losses[BEFORE].values())]
    else:
        # The model before is one and the same for every seed of an arm.
        reference = [(prompt, seed, flag) for seed in seeds for prompt, _, flag in rows(before, "endless")]
        found = bootstrap_difference(before=reference, after=rows(seeds, "endless"))
        cells += [points(found), rate(seeds, "near"), f"{tokens:.0f}"]
        cells += [f"{100 * change:+.2f} %" for change in changes(arm, seeds, losses)]
    return "| " + " | ".join(cells) + " |"


def changes(arm: str, seeds: dict[int, Any], losses: dict[str, dict[str, float]]) -> list[float]:
    """Relative change of the loss on each kind of text, the mean over seeds."""
    own = [losses[f"{arm}-{seed}"] for seed in seeds]
    return [sum(loss[kind] / before - 1 for loss in own) / len(own) for kind, before in losses[BEFORE].items()]


def rate(seeds: dict[int, dict[str, Any]], what: str) -> str:
    found = bootstrap_mean(rows(seeds, what))
    low, high = widest(found)
    return f"{100 * found.estimate:.1f} % [{100 * max(low, 0):.1f}, {100 * high:.1f}]"


def points(found: Any) -> str:
    low, high = widest(found)
    return f"{100 * found.estimate:+.1f} [{100 * low:+.1f}, {100 * high:+.1f}]"


def p_value(found: Any) -> str:
    return f"{found.p_value:.3f}" if found.p_value >= 0.001 else "< 0.001"


def draw(arms: dict[str, Any], losses: dict[str, dict[str, float]], path: Path) -> None:
    """One row an arm, by what it costs: endless answers with their interval, and the rise of the loss beside them."""
    costs = {arm: 0.0 if arm == BEFORE else 100 * max(changes(arm, arms[arm], losses)) for arm in arms}
    shown = sorted((arm for arm in arms if costs[arm] <= 2), key=costs.__getitem__)  # ruined ones are in the table
    figure = new_figure(7.5, 0.6 + 0.3 * len(shown))
    axes = figure.subplots()
    for row, arm in enumerate(shown):
        found = bootstrap_mean(rows(arms[arm], "endless"))
        low, high = widest(found)
        share = 100 * found.estimate
        error = [[share - 100 * max(low, 0)], [100 * high - share]]
        axes.errorbar([share], [row], xerr=error, fmt="o", color="C3" if "steered" in arm else "0.35", capsize=3)
        cost = "" if arm == BEFORE else f"{costs[arm]:+.2f} %"
        axes.text(1.02, row, cost, transform=axes.get_yaxis_transform(), va="center", fontsize=8)
    allowed = sum(costs[arm] <= 0.5 for arm in shown)
    axes.axhline(allowed - 0.5, color="0.6", linestyle=":")
    axes.text(0.01, allowed - 0.55, "above: at most 0.5 %", transform=axes.get_yaxis_transform(), fontsize=8)
    axes.set_yticks(range(len(shown)), shown)
    axes.invert_yaxis()
    axes.set_xlim(left=0)
    axes.set_xlabel("endless greedy answers, in %; at the right the rise of the held-out loss, the larger of two")
    save(figure, [axes], path)


if __name__ == "__main__":
    main()
