"""
Table and picture of the repetition experiment, from the raw results.

    python benchmarks/help/repetition_report.py   # prints Markdown, writes results/repetition.png
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from code_switching import read_results
from report import mean

from sae_posttrain.measure.statistics.intervals import wilson

HERE = Path(__file__).parent
START = "before"
PLAIN = "plain"
LABELS = {
    START: "start, not trained",
    PLAIN: "plain DAPO",
    "sae": "steered: SAE feature",
    "random": "steered: random direction",
    "difference_of_means": "steered: difference of means",
    "handmade": "hand-made loops",
    "greedy": "the model's greedy answer",
}


def main() -> None:
    """Print the table, and draw."""
    arms = by_arm(read_results(HERE / "results" / "repetition_test.jsonl"))
    print(table(arms))
    draw(arms, HERE / "results" / "repetition.png")


def by_arm(results: Sequence[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """Runs of each arm, in the order of the labels."""
    return {name: runs for name in LABELS if (runs := [r for r in results if r["arm"] == name])}


def pooled(runs: Sequence[dict[str, Any]], measure: str) -> tuple[int, int]:
    """Answers that loop, and answers, over the seeds; `greedy` counts greedy answers."""
    rates = [run["greedy"] if measure == "greedy" else run["overall"][measure] for run in runs]
    return sum(rate["endless" if measure == "greedy" else "count"] for rate in rates), sum(r["n"] for r in rates)


def change(runs: Sequence[dict[str, Any]], reference: Sequence[dict[str, Any]], measure: str) -> str:
    """Relative change of a rate, as text."""
    (count, n), (reference_count, reference_n) = pooled(runs, measure), pooled(reference, measure)
    return f"{count / n / (reference_count / reference_n) - 1:+.0%}" if reference_count else "-"


def loss(run: dict[str, Any]) -> float:
    """Held-out loss, the mean of the languages."""
    return mean(list(run["loss"].values()))


def hit_rates(runs: Sequence[dict[str, Any]]) -> str:
    """Share of the negatives that loop, in the first and the last five steps."""
    rates = [[entry["steer/hit_rate"] for entry in run["log"] if "steer/hit_rate" in entry] for run in runs]
    if not any(rates):
        return "-"
    return f"{mean([mean(r[:5]) for r in rates]):.2f}, {mean([mean(r[-5:]) for r in rates]):.2f}"


def table(arms: dict[str, list[dict[str, Any]]]) -> str:
    """A row for each arm."""
    head = ["negative", "seeds", "endless", "rate (95 % interval)", "against the start", "against plain", "near loops"]
    head += ["greedy endless", "tokens", "held-out loss", "copying", "negatives that loop: first, last 5 steps"]
    lines = [head, ["---"] * len(head)]
    for name, runs in arms.items():
        count, n = pooled(runs, "endless")
        low, high = wilson(count, n)
        seeds = ", ".join(str(run["overall"]["endless"]["count"]) for run in sorted(runs, key=lambda r: r["seed"]))
        near, near_n = pooled(runs, "near_loop")
        greedy, greedy_n = pooled(runs, "greedy")
        row = [LABELS[name], str(len(runs)), f"{count} of {n} ({seeds})", f"{count / n:.1%} ({low:.1%} to {high:.1%})"]
        row += ["" if name == START else change(runs, arms[START], "endless")]
        row += ["" if name in (START, PLAIN) else change(runs, arms[PLAIN], "endless")]
        row += [f"{near / near_n:.1%}", f"{greedy / greedy_n:.0%}"]
        row += [f"{mean([run['overall']['mean_tokens'] for run in runs]):.0f}", f"{mean([loss(r) for r in runs]):.3f}"]
        row += [f"{mean([run['copying'] for run in runs]):.3f}", hit_rates(runs)]
        lines.append(row)
    return "\n".join(f"| {' | '.join(row)} |" for row in lines)


def draw(arms: dict[str, list[dict[str, Any]]], path: Path) -> None:
    """Endless answers with their interval, near loops and held-out loss of each arm."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 1.6 + 0.5 * len(arms)), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, 3, sharey=True)
    for row, (name, runs) in enumerate(arms.items()):
        color = {START: "0.35", PLAIN: "0.35", "sae": "#c0392b"}.get(name, "#2c6fbb")
        for axes, measure in ((panels[0], "endless"), (panels[1], "near_loop")):
            count, n = pooled(runs, measure)
            low, high = wilson(count, n)
            error = [[100 * (count / n - low)], [100 * (high - count / n)]]
            axes.errorbar([100 * count / n], [row], xerr=error, fmt="o", color=color, capsize=3)
            for run in runs:
                axes.plot([100 * run["overall"][measure]["rate"]], [row + 0.2], "|", color="0.6")
        for run in runs:
            panels[2].plot([loss(run)], [row], "o", color=color, markersize=5)
    panels[0].set_yticks(range(len(arms)), [LABELS[name] for name in arms])
    panels[0].invert_yaxis()
    panels[0].set_xlabel("endless answers, %\n(95 % interval; ticks: single seeds)")
    panels[1].set_xlabel("answers that end in a near loop, %")
    panels[2].set_xlabel("held-out loss, nats per token\n(each seed; mean of five languages)")
    for axes in panels[:2]:
        axes.set_xlim(left=0)
    for axes in panels:
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=150)


if __name__ == "__main__":
    main()
