"""
Do rows made for missing features help more than others? A classifier of hotel reviews, with little real data.

English reviews as seeds (`--rows`), with further rows of several kinds: made for features that the seeds never fire
(guided); made in the same way for random features that they fire already (random); made from the requests of random,
and kept whether the feature fires or not (unguided); the seeds once more; further real reviews (the ceiling). All
kinds have as many rows as the one with the fewest. Passages come from 100 other real reviews, the reference. The test
split, 400 reviews, takes no part in anything else. Several draws of the seeds.

The label of a made row is that of the passages in its request. Nothing checks that the generator obeys.

`make` writes a folder for each arm and draw, and goes on where it was interrupted (`timeout 8m …` is fine). It needs
vLLM. `evaluate` trains the classifiers on what is there.

    python benchmarks/analysis/synthesis.py make --data data/bigbench/multiemo --model smollm2-135m-instruct \
        --saes models/real/smollm2-135m-instruct --kept kept --generator gemma-3-270m
    python benchmarks/analysis/synthesis.py evaluate …
"""

import argparse
import json
import random
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from reviews import BLOCKS, OPTIONS, activations_of, review_sets
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline

sys.path.insert(0, str(Path(__file__).parents[1]))
from machine import hardware, versions

from sae_posttrain.analysis import FeatureClassifier, TextActivations, read_activations, synthesise
from sae_posttrain.analysis.feature_rule import f1_score
from sae_posttrain.analysis.synthesis import row_reader
from sae_posttrain.analysis.synthesis.generator import Messages
from sae_posttrain.analysis.synthesis.unfinished import STOP, usable_part

RESULTS = Path(__file__).parents[1] / "results" / "synthesis.json"
ARMS = ("unguided", "guided", "random")
SEEDS = (0, 1, 2)
BLOCK, CHECK_BLOCK = 14, 9
NUM_REFERENCE = 100
ROWS_PER_TARGET, ATTEMPTS_PER_TARGET = 2, 3
NUM_REAL = (24, 50, 100, 150, 200, 300, 400, 600)
RESAMPLES = 2000


def divided(rows: list[dict[str, Any]], draw: int, num: int) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Seeds and reference of a draw, as many of each label."""
    seeds, reference = [], []
    for label in ("negative", "positive"):
        members = [row for row in rows if row["label"] == label]
        random.Random(draw).shuffle(members)
        seeds += members[: num // 2]
        reference += members[num // 2 : num // 2 + NUM_REFERENCE // 2]
    return seeds, reference


def alternating(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows of both labels in turn."""
    by_label = [[row for row in rows if row["label"] == label] for label in ("negative", "positive")]
    return [row for pair in zip(*by_label) for row in pair]


def plain(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{"text": row["text"], "label": row["label"]} for row in rows]


def train_activations(arguments: argparse.Namespace, rows: list[dict[str, Any]], side: str) -> TextActivations:
    return activations_of(rows, f"hotels.en.{side}", arguments.model, arguments.saes, arguments.kept)


def random_targets(read: TextActivations, seeds: list[int], reference: list[int], draw: int, num: int) -> list[int]:
    """Features that fire on seeds and on two or more reference rows, without regard to anything else."""
    fired = read.fires(BLOCK)
    fits = (fired[seeds].sum(axis=0) > 0) & (fired[reference].sum(axis=0) >= 2)
    return random.Random(draw).sample(np.flatnonzero(fits).tolist(), num)


class VllmGenerator:
    """A base model in vLLM, in this process: it goes on with a list of examples up to the end of the line."""

    completions = True

    def __init__(self, arguments: argparse.Namespace):
        self._arguments = arguments
        self._llm: Any = None
        self.settings = {
            "model": arguments.generator.name,
            "max_tokens": arguments.max_new_tokens,
            "temperature": arguments.temperature,
            "min_p": 0.05,
        }

    def __call__(self, conversations: Sequence[Messages], *, seed: int, aim: Any = None) -> list[str | None]:
        from vllm import LLM, SamplingParams

        if self._llm is None:
            self._llm = LLM(
                str(self._arguments.generator), dtype="bfloat16", enforce_eager=True, max_model_len=1024, seed=0
            )
        settings = {name: value for name, value in self.settings.items() if name != "model"}
        sampling = SamplingParams(stop=STOP, **settings)
        torch.manual_seed(seed)  # vLLM's seeds of single requests fail on a CPU
        outputs = self._llm.generate([messages[-1]["content"] for messages in conversations], sampling, use_tqdm=False)
        written = [each.outputs[0] for each in outputs]
        return [usable_part(each.text, each.finish_reason != "length", "trim") for each in written]


def read_once(arguments: argparse.Namespace, rows: list[dict[str, Any]]) -> None:
    """Have seeds and references, which all arms share, taken from what was kept instead of reading them anew."""
    kept = train_activations(arguments, rows, "train")
    number = {row["text"]: i for i, row in enumerate(rows)}

    def read(network: Any, saes: Any, asked: list[dict[str, Any]], **settings: Any) -> TextActivations:
        if all(row["text"] in number for row in asked):
            return kept[[number[row["text"]] for row in asked]]
        return read_activations(network, saes, asked, **settings)

    row_reader.read_activations = read  # type: ignore[assignment]


def make(arguments: argparse.Namespace) -> None:
    rows = review_sets(arguments.data, "en")["train"]
    read_once(arguments, rows)
    generator = VllmGenerator(arguments)
    for draw in arguments.draws:
        seeds, reference = divided(rows, draw, arguments.rows)
        for arm in arguments.arms:
            targets: Any = "missing"
            if arm != "guided":
                number = {row["id"]: i for i, row in enumerate(rows)}
                read = train_activations(arguments, rows, "train")
                targets = random_targets(
                    read,
                    [number[row["id"]] for row in seeds],
                    [number[row["id"]] for row in reference],
                    draw,
                    2 * arguments.rows,
                )
            made = synthesise(
                str(arguments.model),
                str(arguments.saes / f"blocks.{BLOCK}.hook_resid_post"),
                plain(seeds),
                targets,
                generator,
                output_dir=arguments.kept / f"{arm}.{arguments.rows}.{draw}",
                reference=plain(reference),
                label_column="label",
                what="hotel review",
                block=BLOCK,
                check_sae=str(arguments.saes / f"blocks.{CHECK_BLOCK}.hook_resid_post"),
                check_blocks=[CHECK_BLOCK],
                only_missing=arm == "guided",
                max_targets=2 * arguments.rows,
                rows_per_target=ROWS_PER_TARGET,
                attempts_per_target=ATTEMPTS_PER_TARGET,
                max_rows=arguments.rows,
                num_passages=2,
                rewrite_share=0.0,
                min_activation=-1.0 if arm == "unguided" else 0.0,
                batch_size=arguments.batch_size,
                text_options=OPTIONS,
                seed=draw,
            )
            print(f"{arm}, draw {draw}\n{made}\n", flush=True)


def read_made(arguments: argparse.Namespace, rows: list[dict[str, Any]], name: str) -> TextActivations:
    return read_activations(
        str(arguments.model),
        [str(arguments.saes / f"blocks.{block}.hook_resid_post") for block in BLOCKS],
        plain(rows),
        blocks=BLOCKS,
        residuals=True,
        text_options=OPTIONS,
        cache=arguments.kept / f"made.{name}.safetensors",
    )


def read_lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()] if path.exists() else []


def predictions(
    train: list[dict[str, Any]], read: TextActivations, test: list[dict[str, Any]], test_read: TextActivations
) -> dict[str, np.ndarray]:
    """Whether each test review is called negative, by each classifier learnt from these rows."""
    labels = [row["label"] for row in train]
    words = make_pipeline(
        TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True),
        LogisticRegression(C=10.0, max_iter=1000, class_weight="balanced"),  # made rows are not balanced
    )
    found = {
        "TF-IDF + logistic": words.fit([row["text"] for row in train], labels).predict([row["text"] for row in test])
    }
    for rule in ("any", "logistic"):
        classifier = FeatureClassifier(pos_label="negative", rule=rule).fit(read, labels)
        found[f"FeatureClassifier, {rule}"] = classifier.predict(test_read)
    return {name: np.asarray(said) == "negative" for name, said in found.items()}


def evaluate(arguments: argparse.Namespace) -> None:
    sets = review_sets(arguments.data, "en")
    rows, test = sets["train"], sets["test"]
    read, test_read = train_activations(arguments, rows, "train"), train_activations(arguments, test, "test")
    number = {row["id"]: i for i, row in enumerate(rows)}
    truth = np.array([row["label"] == "negative" for row in test])
    found: dict[str, dict[str, list[np.ndarray]]] = {}
    reports: dict[str, Any] = {}
    for draw in arguments.draws:
        seeds, reference = divided(rows, draw, arguments.rows)
        seed_read = read[[number[row["id"]] for row in seeds]]
        folders = {arm: arguments.kept / f"{arm}.{arguments.rows}.{draw}" for arm in arguments.arms}
        tried = {arm: read_lines(folder / "attempts.jsonl") for arm, folder in folders.items()}
        accepted = {arm: [row for row in attempts if row["reason"] is None] for arm, attempts in tried.items()}
        fewest = min(len(members) for members in accepted.values())
        again, further = (alternating(members)[:fewest] for members in (seeds, reference))
        arms = {"real": (seeds, seed_read)}
        for name, members in (("real, twice", again), ("more real", further)):
            arms[name] = (seeds + members, seed_read.merge(read[[number[row["id"]] for row in members]]))
        for arm, folder in folders.items():
            attempts = tried[arm]
            made = [{"text": row["answer"], "label": row["label"]} for row in accepted[arm]]
            finished = folder / "report.json"
            reports[f"{arm}.{arguments.rows}.{draw}"] = {
                "rows": len(made),
                "rows_taken": fewest,
                "attempts": len(attempts),
                "reasons": Counter(row["reason"] or "accepted" for row in attempts),
                "labels": Counter(row["label"] for row in made),
                "mean_characters": round(sum(len(row["text"]) for row in made) / len(made), 1),
                "targets_with_rows": len({row["target"] for row in attempts if row["reason"] is None}),
                "targets_tried": len({row["target"] for row in attempts}),
                "coverage": json.loads(finished.read_text("utf-8"))["coverage"] if finished.exists() else None,
                "texts": [f"{row['label']}: {row['text']}" for row in made],
            }
            made = made[:fewest]  # as many as the arm with the fewest has
            made_read = read_made(arguments, made, f"{arm}.{arguments.rows}.{draw}")
            both = seed_read.merge(made_read) if seed_read.origin["saes"] == made_read.origin["saes"] else None
            assert both is not None
            arms[f"real + {arm}"] = (seeds + made, both)
            arms[f"{arm} alone"] = (made, made_read)
        for name, (members, members_read) in arms.items():
            for classifier, said in predictions(members, members_read, test, test_read).items():
                found.setdefault(classifier, {}).setdefault(name, []).append(said)
    results = {
        "model": "SmolLM2-135M-Instruct",
        "block_of_targets": BLOCK,
        "block_that_took_no_part": CHECK_BLOCK,
        "num_rows": arguments.rows,
        "num_test": len(test),
        "draws": arguments.draws,
        "f1": {name: summary(arms, truth) for name, arms in found.items()},
        "real_curve": real_curve(rows, read, number, test, test_read, truth, arguments),
        "synthesis": reports,
        "machine": hardware(),
        "versions": versions("scikit-learn", "torch", "transformers", "datasketch"),
    }
    for classifier, told in results["f1"].items():
        print(classifier)
        for arm, each in told.items():
            low, high = each["interval"]
            more = each.get("minus_real")
            shown = f"  {more['difference']:+.3f} [{more['low']:+.3f}, {more['high']:+.3f}]" if more else ""
            print(f"  {arm:24} {each['f1']:.3f} [{low:.3f}, {high:.3f}]  draws {each['draws']}{shown}")
    arguments.out.write_text(json.dumps(results, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def summary(arms: dict[str, list[np.ndarray]], truth: np.ndarray) -> dict[str, Any]:
    """Mean F1 over the draws, with an interval over resampled test reviews (the same ones in every arm and draw)."""
    rng = np.random.default_rng(0)
    samples = [rng.integers(len(truth), size=len(truth)) for _ in range(RESAMPLES)]
    resampled = {
        name: np.array([np.mean([f1_score(truth[rows], said[rows]) for said in draws]) for rows in samples])
        for name, draws in arms.items()
    }
    mean = {name: float(np.mean([f1_score(truth, said) for said in draws])) for name, draws in arms.items()}
    told: dict[str, Any] = {}
    for name, draws in arms.items():
        told[name] = {
            "f1": round(mean[name], 4),
            "interval": np.percentile(resampled[name], [2.5, 97.5]).round(4).tolist(),
            "draws": [round(float(f1_score(truth, said)), 3) for said in draws],
        }
        for other in ("real", "real, twice", "real + unguided", "real + random"):
            if other in arms and other != name and len(arms[other]) == len(draws):
                low, high = np.percentile(resampled[name] - resampled[other], [2.5, 97.5])
                told[name]["minus_" + other.replace(" + ", "_").replace(", ", "_")] = {
                    "difference": round(mean[name] - mean[other], 4),
                    "low": round(float(low), 4),
                    "high": round(float(high), 4),
                    "draws": [
                        round(float(f1_score(truth, mine) - f1_score(truth, its)), 3)
                        for mine, its in zip(draws, arms[other])
                    ],
                }
    return told


def real_curve(
    rows: list[dict[str, Any]],
    read: TextActivations,
    number: dict[Any, int],
    test: list[dict[str, Any]],
    test_read: TextActivations,
    truth: np.ndarray,
    arguments: argparse.Namespace,
) -> dict[str, dict[str, float]]:
    """Mean F1 by number of real reviews: how many of them a made row is worth."""
    curve: dict[str, dict[str, float]] = {}
    for size in NUM_REAL:
        scores: dict[str, list[float]] = {}
        for draw in arguments.draws:
            members, _ = divided(rows, draw, size)
            members_read = read[[number[row["id"]] for row in members]]
            for classifier, said in predictions(members, members_read, test, test_read).items():
                scores.setdefault(classifier, []).append(f1_score(truth, said))
        for classifier, values in scores.items():
            curve.setdefault(classifier, {})[str(size)] = round(float(np.mean(values)), 4)
    return curve


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("action", choices=["make", "evaluate"])
    for name in ("data", "model", "saes", "kept"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--arms", nargs="*", default=list(ARMS), choices=ARMS)
    parser.add_argument("--draws", nargs="*", type=int, default=list(SEEDS))
    parser.add_argument("--rows", type=int, default=24, help="real rows, and as many made ones (default: 24)")
    parser.add_argument("--generator", type=Path, help="a base model, which writes the rows (for `make`)")
    parser.add_argument("--temperature", type=float, default=1.0)
    parser.add_argument("--batch-size", type=int, default=24)
    parser.add_argument("--max-new-tokens", type=int, default=48)
    parser.add_argument("--out", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    (make if arguments.action == "make" else evaluate)(arguments)


if __name__ == "__main__":
    main()
