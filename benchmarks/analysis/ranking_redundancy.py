"""
Does redundancy in features predict redundancy in how tasks rank models?

Qwen-Scope, section 4: `R(D)` is the mean over n of the expected Kendall tau between the ranking of models by a task
and by n random questions of it; `R̂(D)` is that of features (`coverage`). The population is that of
`model_population.py`, whose answers are read from its results. Features are those of SmolLM2-135M-Instruct at the last
token. Ties are counted as in tau-b, and a part that ties all models counts 0.

Two comparisons: all tasks with as many questions, so that N explains nothing; and random sizes, many times, where N is
known to drive both sides and is then held fixed (partial correlation). Baselines that cost nothing: N, the same
coverage of words (TF-IDF's vocabulary), and the spread of the models' accuracies.

    python benchmarks/analysis/ranking_redundancy.py --data data/bigbench/tasks --model smollm2-135m-instruct \
        --saes models/real/smollm2-135m-instruct/blocks.{9,14}.hook_resid_post --blocks 9 14 --kept kept
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
from model_population import RESULTS as POPULATION
from scipy import sparse
from scipy.stats import spearmanr
from sklearn.feature_extraction.text import TfidfVectorizer
from tasks import activations_of, task_rows

sys.path.insert(0, str(Path(__file__).parents[1]))
from machine import hardware, versions

from sae_posttrain.analysis import select
from sae_posttrain.analysis.covered import coverage_curve

RESULTS = Path(__file__).parents[1] / "results" / "ranking_redundancy.json"
NUM_ORDERS, NUM_SIZES, SHARE = 200, 200, 0.1


def taus(right_MN: np.ndarray, order: np.ndarray) -> np.ndarray:
    """Tau-b between the ranking by all questions and by the first n of this order, for n from 1 to N."""
    one, two = np.triu_indices(len(right_MN), 1)
    scores_MN = np.cumsum(right_MN[:, order], axis=1)
    part_PN = np.sign(scores_MN[one] - scores_MN[two])
    full_P = part_PN[:, -1]
    norm_N = np.sqrt((full_P != 0).sum() * (part_PN != 0).sum(axis=0))
    return np.divide(full_P @ part_PN, norm_N, out=np.zeros(len(norm_N)), where=norm_N > 0)


def ranking_redundancy(right_MN: np.ndarray, rng: np.random.Generator, num_orders: int = NUM_ORDERS) -> float:
    num = right_MN.shape[1]
    return float(np.mean([taus(right_MN, rng.permutation(num)).mean() for _ in range(num_orders)]))


def feature_redundancy(fired_NF: Any) -> tuple[float, float]:
    """`R̂` as published, and the mean of the coverage curve."""
    counts = np.asarray(fired_NF.sum(axis=0)).ravel().astype(int)
    counts, num = counts[counts > 0], fired_NF.shape[0]
    curve = coverage_curve(counts, num, np.arange(1, num + 1))
    return float(curve.sum() / len(counts)), float(curve.mean())


def spearman(x: np.ndarray, y: np.ndarray) -> dict[str, float]:
    """With the interval of Fisher's z, with Spearman's variance (Bonett and Wright 2000), and the p-value."""
    found = spearmanr(x, y)
    rho, num = float(found.statistic), len(x)
    half = 1.96 * np.sqrt((1 + rho**2 / 2) / (num - 3))
    low, high = np.tanh(np.arctanh(min(rho, 0.9999)) + np.array([-half, half]))
    return {"rho": rho, "low": float(low), "high": float(high), "p": float(found.pvalue)}


def partial(x: np.ndarray, y: np.ndarray, given: np.ndarray) -> float:
    xy, xz, yz = (spearmanr(a, b).statistic for a, b in ((x, y), (x, given), (y, given)))
    return float((xy - xz * yz) / np.sqrt((1 - xz**2) * (1 - yz**2)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("data", "model", "kept"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--saes", type=Path, nargs="+", required=True)
    parser.add_argument("--blocks", type=int, nargs="+", required=True)
    parser.add_argument("--examples", type=int, default=40, help="of each task that were read")
    parser.add_argument("--population", type=Path, default=POPULATION)
    parser.add_argument("--out", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    population = json.loads(arguments.population.read_text(encoding="utf-8"))
    tasks, models = list(population["tasks"]), population["models"]
    right = {
        task: np.array([[int(each) for each in one["right"][model]] for model in models])
        for task, one in population["tasks"].items()
    }
    num = next(iter(right.values())).shape[1]
    read = activations_of(
        arguments.data, "last", arguments.model, arguments.saes, arguments.blocks, arguments.kept, None,
        arguments.examples,
    )  # fmt: skip
    texts = [row["text"] for row in task_rows(arguments.data, arguments.examples)]
    rows_of = {task: [i for i, group in enumerate(read.groups) if group == task][:num] for task in tasks}
    incidence: dict[str, dict[str, Any]] = {}
    for block in arguments.blocks:
        fired = sparse.csr_array(read.fires(block).astype(np.int32))
        incidence[f"features of block {block}"] = {task: fired[rows] for task, rows in rows_of.items()}
    words = sparse.csr_array(
        (TfidfVectorizer().fit_transform([texts[i] for rows in rows_of.values() for i in rows]) > 0).astype(np.int32)
    )
    incidence["words"] = {task: words[np.arange(n * num, (n + 1) * num)] for n, task in enumerate(rows_of)}
    rng = np.random.default_rng(0)
    accuracy_TM = np.array([right[task].mean(axis=1) for task in tasks])
    ranking = np.array([ranking_redundancy(right[task], rng) for task in tasks])
    halves = np.array([
        [ranking_redundancy(right[task][:, half], rng, 50) for half in np.array_split(rng.permutation(num), 2)]
        for task in tasks
    ])  # fmt: skip
    compared: dict[str, Any] = {"halves of the questions": spearman(halves[:, 0], halves[:, 1])}
    measured = {name: np.array([feature_redundancy(held[task]) for task in tasks]) for name, held in incidence.items()}
    for name, pair in measured.items():
        compared[f"{name}, R̂"] = spearman(ranking, pair[:, 0])
        compared[f"{name}, mean c_n"] = spearman(ranking, pair[:, 1])
    compared["spread of accuracies"] = spearman(ranking, accuracy_TM.std(axis=1))
    sizes = np.linspace(num // 4, num, len(tasks)).round().astype(int)
    draws: dict[str, list[float]] = {}
    for _ in range(NUM_SIZES):
        size_T = rng.permutation(sizes)
        parts = [rng.permutation(num)[:size] for size in size_T]
        ranked = np.array([ranking_redundancy(right[t][:, p], rng, 10) for t, p in zip(tasks, parts)])
        draws.setdefault("N", []).append(float(spearmanr(ranked, size_T).statistic))
        for name, held in incidence.items():
            found = np.array([feature_redundancy(held[task][part])[0] for task, part in zip(tasks, parts)])
            draws.setdefault(f"{name}, R̂", []).append(float(spearmanr(ranked, found).statistic))
            draws.setdefault(f"{name}, R̂, N held fixed", []).append(partial(ranked, found, size_T))
            draws.setdefault(f"{name}, R̂ with N", []).append(float(spearmanr(found, size_T).statistic))
    order = [i for rows in rows_of.values() for i in rows]
    everything_MN = np.concatenate([right[task] for task in tasks], axis=1)
    left: dict[str, Any] = {}
    number = round(SHARE * len(order))

    def kept_ranking(chosen: np.ndarray) -> float:
        return float(taus(everything_MN, np.r_[chosen, np.setdiff1d(np.arange(len(order)), chosen)])[len(chosen) - 1])

    for block in arguments.blocks:
        chosen = select(read[order], number, block)
        left[f"select, block {block}"] = {
            "tau": kept_ranking(chosen.rows), "covered": chosen.covered[-1], "random_covered": chosen.expected
        }  # fmt: skip
    random = [kept_ranking(rng.permutation(len(order))[:number]) for _ in range(1000)]
    left["random"] = {"tau": float(np.mean(random)), "middle_95": np.quantile(random, [0.025, 0.975]).tolist()}
    results = {
        "question": "Does redundancy in features predict redundancy in how tasks rank models?",
        "models": models,
        "num_questions": num,
        "tasks": {
            task: {
                "ranking_redundancy": ranking[t],
                "chance": population["tasks"][task]["chance"],
                "accuracy": dict(zip(models, accuracy_TM[t].round(3).tolist())),
                **{name: dict(zip(("redundancy", "mean_share"), pair[t].tolist())) for name, pair in measured.items()},
            }
            for t, task in enumerate(tasks)
        },
        "mean_accuracy": dict(zip(models, accuracy_TM.mean(axis=0).round(3).tolist())),
        "equal_size_spearman": compared,
        "random_sizes_median_spearman": {
            name: [float(np.median(each)), *np.quantile(each, [0.025, 0.975]).tolist()] for name, each in draws.items()
        },
        "ranking_left_at_a_tenth": {"questions": number, "of": len(order), **left},
        "machine": hardware(),
        "versions": versions("scipy", "numpy", "scikit-learn"),
    }
    arguments.out.write_text(json.dumps(results, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    for name in ("mean_accuracy", "equal_size_spearman", "random_sizes_median_spearman", "ranking_left_at_a_tenth"):
        print(name, json.dumps(results[name], indent=1, ensure_ascii=False))


if __name__ == "__main__":
    main()
