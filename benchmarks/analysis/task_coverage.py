"""
Coverage and redundancy of 51 benchmark tasks in the features of a model.

Near-duplicates by construction (three sizes of `tracking_shuffled_objects`, two forms of `elementary_math_qa`, two of
`arithmetic`) must be each other's nearest. `select` keeps a tenth of all examples. The closed form of the coverage
curve is timed against sampling. The picture shows the matrix of similarities and what `select` covers.

    python benchmarks/analysis/task_coverage.py --data data/bigbench/tasks --model models/help-qwen3-7m \
        --saes models/help-qwen3-7m/sae --blocks 2 4 --k 32 --kept kept
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import spearmanr
from tasks import NUM_EXAMPLES, activations_of

sys.path.insert(0, str(Path(__file__).parents[1]))
from machine import hardware, seconds, versions

from sae_posttrain.analysis import TextActivations, coverage, overlap, select
from sae_posttrain.analysis.coverage_page import coverage_page
from sae_posttrain.analysis.covered import coverage_curve, incidences
from sae_posttrain.analysis.overlapping import Overlap

RESULTS = Path(__file__).parents[1] / "results" / "task_coverage.json"
FAMILIES = ("tracking_shuffled_objects-", "elementary_math_qa-", "arithmetic-")
SHARE = 0.1


def neighbours(found: Overlap, by: str) -> dict[str, Any]:
    """For each member of a family: its nearest other tasks, and whether they are the rest of the family."""
    told = {}
    for name in found.names:
        family = next((family for family in FAMILIES if name.startswith(family)), None)
        if family is not None:
            others = {other for other in found.names if other.startswith(family)} - {name}
            nearest = found.nearest(name, by)[: len(others) + 1]
            told[name] = {"nearest": nearest, "right": {other for other, _ in nearest[: len(others)]} == others}
    return told


def timed(read: TextActivations, block: int, num_orders: int = 50) -> dict[str, float]:
    """Seconds of the exact curves of all sets, of sampled ones, and the largest error of the sampled ones."""
    incidence = incidences(read, block)
    counts = {name: np.asarray(fired.sum(axis=0)).ravel() for name, fired in incidence.items()}
    started = seconds()
    exact = {}
    for name, fired in incidence.items():
        touched = counts[name][counts[name] > 0]
        exact[name] = coverage_curve(touched, fired.shape[0], np.arange(1, fired.shape[0] + 1))
    closed = seconds() - started
    started = seconds()
    rng, error = np.random.default_rng(0), 0.0
    for name, fired in incidence.items():
        dense, total = fired.toarray().astype(bool), int((counts[name] > 0).sum())
        curves = np.zeros(fired.shape[0])
        for _ in range(num_orders):
            curves += np.logical_or.accumulate(dense[rng.permutation(len(dense))]).sum(axis=1) / total
        error = max(error, float(np.abs(curves / num_orders - exact[name]).max()))
    return {"closed_s": closed, "sampled_s": seconds() - started, "orders": num_orders, "largest_error": error}


def of_block(read: TextActivations, block: int) -> dict[str, Any]:
    measured, found = coverage(read, block), overlap(read, block)
    chosen = select(read, round(SHARE * len(read)), block)
    sets = measured.sets
    published = np.array([each.redundancy for each in sets.values()])
    features = np.array([each.num_features for each in sets.values()])
    per_task = np.unique([read.groups[i] for i in chosen.rows], return_counts=True)
    return {
        "nearest": {by: neighbours(found, by) for by in ("similarity", "jaccard", "minimum")},
        "pairs": [
            {
                "pair": [one, two],
                "similarity": found.similarity[i, j],
                "minimum": [found.minimum[i, j], found.minimum_low[i, j], found.minimum_high[i, j]],
                "directed": [found.directed[i, j], found.directed[j, i]],
            }
            for one, two in found.pairs(12)
            for i, j in [(found.names.index(one), found.names.index(two))]
        ],
        "sets": {
            name: {
                "num_examples": each.num_examples,
                "num_features": each.num_features,
                "redundancy": each.redundancy,
                "mean_share": each.mean_share,
                "redundancy_at_equal_size": each.redundancy_at_equal_size,
            }
            for name, each in sets.items()
        },
        "spearman_of_redundancy_with_features": float(spearmanr(published, features).statistic),
        "untouched": len(measured.untouched),
        "num_features": measured.num_features,
        "select": {
            "n": len(chosen),
            "covered": chosen.covered[-1],
            "random": chosen.expected,
            "bound": chosen.bound,
            "examples_of_each_task": dict(zip(per_task[0].tolist(), per_task[1].tolist())),
        },
    } | ({"time": timed(read, block)} if read.pool == "last" else {})


def draw(read: TextActivations, block: int, path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    found, measured = overlap(read, block), coverage(read, block)
    chosen = select(read, len(read), block)
    order = list(found.order)
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(15, 9), width_ratios=[2, 1], layout="constrained")
    shown = left.imshow(found.similarity[np.ix_(order, order)], vmin=0, vmax=1, cmap="Blues")
    left.set_yticks(range(len(order)), [found.names[i] for i in order], fontsize=7)
    left.set_xticks([])
    left.set_title(f"Tasks ordered by clustering: cosine of firing rates above the mean (block {block})")
    figure.colorbar(shown, ax=left, shrink=0.6)
    everything = incidences({"all": read}, block)["all"]
    counts = np.asarray(everything.sum(axis=0)).ravel()
    sizes = np.unique(np.linspace(1, len(read), 300).round().astype(int))
    right.plot(np.arange(1, len(read) + 1), chosen.covered, color="tab:blue", label="select")
    right.plot(sizes, coverage_curve(counts[counts > 0], len(read), sizes), color="tab:gray", label="random, expected")
    right.axvline(SHARE * len(read), color="tab:red", linewidth=0.8, label="a tenth of the examples")
    right.set(xlabel="examples", ylabel="share of the features that all examples fire", xscale="log")
    right.legend()
    right.set_title(f"{len(measured.untouched):,} of {measured.num_features:,} features fire in no task")
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("data", "model", "kept"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--saes", type=Path, nargs="+", required=True)
    parser.add_argument("--blocks", type=int, nargs="+", required=True)
    parser.add_argument("--k", type=int, help="active features per token, if the SAE's files do not say it")
    parser.add_argument("--examples", type=int, default=NUM_EXAMPLES, help="of each task")
    parser.add_argument("--pools", nargs="+", default=["last", "max"])
    parser.add_argument("--page", type=Path, help="page of the last block, at the last token, to write")
    parser.add_argument("--out", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    results: dict[str, Any] = {"model": arguments.model.name, "examples_a_task": arguments.examples, "pools": {}}
    for pool in arguments.pools:
        read = activations_of(
            arguments.data,
            pool,
            arguments.model,
            arguments.saes,
            arguments.blocks,
            arguments.kept,
            arguments.k,
            arguments.examples,
        )
        results["pools"][pool] = {str(block): of_block(read, block) for block in arguments.blocks}
        for block, each in results["pools"][pool].items():
            for by, told in each["nearest"].items():
                wrong = [name for name, one in told.items() if not one["right"]]
                print(f"{pool}, block {block}, {by}: {len(told) - len(wrong)} of {len(told)} right; wrong: {wrong}")
            print({name: each[name] for name in ("select", "time", "untouched") if name in each})
        if pool == "last":
            draw(read, arguments.blocks[-1], arguments.out.with_suffix(".png"))
            if arguments.page is not None:
                block = arguments.blocks[-1]
                chosen = select(read, round(SHARE * len(read)), block)
                subtitle = f"{len(read):,} examples of 51 tasks, block {block}, last token."
                page = coverage_page(coverage(read, block), overlap(read, block), chosen, subtitle=subtitle)
                arguments.page.write_text(page, encoding="utf-8")
        results |= {"machine": hardware(), "versions": versions("scipy", "numpy", "torch")}
        arguments.out.write_text(json.dumps(results, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
