"""
Tables and the picture of the help-page experiment, from the raw results.

    python benchmarks/help/report.py            # prints Markdown, writes results/code_switching.png
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from code_switching import read_results

from sae_posttrain.measure.statistics.intervals import wilson

HERE = Path(__file__).parent
OTHERS = ("en", "ko", "ru", "es")
BASELINE = "plain"


def main() -> None:
    """Print the table of each split, and draw that of the test split."""
    for split in ("test", "dev"):
        results = read_results(HERE / "results" / f"{split}.jsonl")
        if results:
            print(f"\n### {split}\n\n{table(results)}\n\n{prose(results)}")
    results = read_results(HERE / "results" / "test.jsonl")
    if results:
        draw(results, HERE / "results" / "code_switching.png")


def by_arm(results: Sequence[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """Runs of each arm, the baseline first."""
    arms: dict[str, list[dict[str, Any]]] = {BASELINE: []}
    for result in results:
        arms.setdefault(result["arm"], []).append(result)
    return {name: runs for name, runs in arms.items() if runs}


def pooled(runs: Sequence[dict[str, Any]], rule: str = "any", threshold: str = "1") -> tuple[int, int]:
    """Answers that switch, and answers, over the seeds."""
    rates = [run["overall"][rule][threshold] for run in runs]
    return sum(rate["count"] for rate in rates), sum(rate["n"] for rate in rates)


def mean(values: Sequence[float]) -> float:
    """Arithmetic mean."""
    return sum(values) / len(values)


def loss_changes(runs: Sequence[dict[str, Any]], baseline: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Relative change of the held-out loss per language, each seed against the baseline of that seed."""
    plain = {run["seed"]: run["loss"] for run in baseline}
    paired = [run for run in runs if run["seed"] in plain]
    langs = sorted(paired[0]["loss"]) if paired else []
    return {lang: mean([run["loss"][lang] / plain[run["seed"]][lang] - 1 for run in paired]) for lang in langs}


def over_others(runs: Sequence[dict[str, Any]], measure: str) -> float:
    """A measure, averaged over the languages that are not the target, and over the seeds."""
    return mean([mean([run[measure][lang] for lang in OTHERS]) for run in runs])


def table(results: Sequence[dict[str, Any]]) -> str:
    """A row for each arm."""
    arms = by_arm(results)
    plain = arms[BASELINE]
    head = ["arm", "seeds", "answers with Han", "rate (95 % interval)", "change", "Han probability", "in nucleus"]
    head += [f"loss {lang}" for lang in (*OTHERS, "zh")]
    lines = [head, ["---"] * len(head)]
    plain_count, plain_n = pooled(plain)
    for name, runs in arms.items():
        count, n = pooled(runs)
        low, high = wilson(count, n)
        per_seed = ", ".join(str(run["overall"]["any"]["1"]["count"]) for run in sorted(runs, key=lambda r: r["seed"]))
        changes = loss_changes(runs, plain)
        row = [name, str(len(runs)), f"{count} of {n} ({per_seed})", f"{count / n:.1%} ({low:.1%} to {high:.1%})"]
        row.append("" if name == BASELINE else f"{count / n / (plain_count / plain_n) - 1:+.0%}")
        for measure in ("han_probability", "han_in_nucleus"):
            value, reference = over_others(runs, measure), over_others(plain, measure)
            row.append(f"{value:.2e}" + ("" if name == BASELINE else f" ({value / reference - 1:+.0%})"))
        for lang in (*OTHERS, "zh"):
            level = mean([run["loss"][lang] for run in runs])
            row.append(f"{level:.3f}" if name == BASELINE else f"{level:.3f} ({changes[lang]:+.2%})")
        lines.append(row)
    return "\n".join(f"| {' | '.join(row)} |" for row in lines)


def prose(results: Sequence[dict[str, Any]]) -> str:
    """The side measures of each arm, a line each."""
    lines = []
    for name, runs in by_arm(results).items():
        chinese = [run["groups"]["zh"]["right_language"] for run in runs]
        right = f"{sum(rate['count'] for rate in chinese)} of {sum(rate['n'] for rate in chinese)}"
        unexpected, n = pooled(runs, "unexpected")
        long, _ = pooled(runs, "any", "5")
        tokens = mean([run["overall"]["mean_tokens"] for run in runs])
        truncated = mean([run["overall"]["truncated"]["rate"] for run in runs])
        by_lang = {lang: sum(run["groups"][lang]["any"]["1"]["count"] for run in runs) for lang in OTHERS}
        counts = ", ".join(f"{lang} {count}" for lang, count in by_lang.items())
        lines.append(
            f"- {name}: {counts}; Chinese answers in Chinese {right}; `unexpected` rule {unexpected} of {n}; 5 Han "
            f"characters or more {long} of {n}; {tokens:.0f} tokens an answer, {truncated:.0%} cut at the limit."
        )
    return "\n".join(lines)


def draw(results: Sequence[dict[str, Any]], path: Path) -> None:
    """Rate with its interval, and change of the loss per language, for each arm."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    arms = by_arm(results)
    figure = Figure(figsize=(9, 1.5 + 0.7 * len(arms)), layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2, sharey=True)
    names = list(arms)
    for row, runs in enumerate(arms.values()):
        count, n = pooled(runs)
        low, high = wilson(count, n)
        rate = 100 * count / n
        error = [[rate - 100 * low], [100 * high - rate]]
        left.errorbar([rate], [row], xerr=error, fmt="o", color="#c0392b" if row else "0.35", capsize=3)
        for run in runs:
            each = run["overall"]["any"]["1"]
            left.plot([100 * each["rate"]], [row + 0.18], "|", color="0.6")
        for place, (lang, change) in enumerate(loss_changes(runs, arms[BASELINE]).items()):
            right.plot([100 * change], [row + 0.12 * (place - 2)], "o", markersize=4, color=f"C{place}", label=lang)
    left.set_yticks(range(len(names)), names)
    left.invert_yaxis()
    left.set_xlim(left=0)
    left.set_xlabel("answers with Chinese in them, %\n(95 % interval; ticks: single seeds)")
    right.set_xlabel("change of held-out loss, %")
    right.axvline(0.5, color="0.7", linestyle=":", linewidth=1)
    right.axvline(0, color="0.8", linewidth=0.8)
    handles, labels = right.get_legend_handles_labels()
    unique = dict(zip(labels, handles))
    right.legend(unique.values(), unique.keys(), frameon=False, fontsize=8)
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=150)


if __name__ == "__main__":
    main()
