"""
Does the drift callback distinguish a model that hides the fault from a feature and a model that stops the fault?

The demo's language switching is trained three times with the callback: without a penalty, with its features held down
(healthy), and with one of these features held down very hard (so that the model hides).

    python benchmarks/bench_drift.py

Takes a few minutes on one CPU thread; writes `results/bench_drift.json`.
"""

import argparse
import json
import logging
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from unittest.mock import patch

from machine import hardware, versions
from transformers import set_seed

from sae_posttrain import FeatureDriftCallback, load_sae
from sae_posttrain.lab import switching
from sae_posttrain.lab.arms import load
from sae_posttrain.lab.contents import SAE, read_texts
from sae_posttrain.lab.demo import SEED
from sae_posttrain.lab.progress import train_with_bar

RESULT = Path(__file__).parent / "results" / "bench_drift.json"
EVERY = 20
HIDING = {"penalty_weight": 1000.0, "margin": 0.0}
"""The weight of the demo times a hundred, all of it on one feature, and no height that costs nothing."""


class Warnings(logging.Handler):
    """Keeps what the callback warns of."""

    def __init__(self):
        super().__init__(logging.WARNING)
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.messages.append(record.getMessage())


def run(feature_set, penalised, penalty, quick: bool = True) -> dict:
    """The demo's training with a penalty on some features (on none: plain SFT); the callback reads all of them."""
    texts = [{"text": row["answer"], "lang": row["lang"]} for row in read_texts("dev")]
    saes = [load_sae(str(SAE), block=block) for block, _ in feature_set.places]
    callback = FeatureDriftCallback(feature_set, texts, every=EVERY, saes=saes)
    logger, warnings = logging.getLogger("sae_posttrain.penalty.drift"), Warnings()
    logger.addHandler(warnings)
    set_seed(SEED)

    def train(trainer):
        trainer.add_callback(callback)
        return train_with_bar(trainer)

    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        stack.enter_context(patch.object(switching, "train_with_bar", train))
        stack.enter_context(patch.dict(switching.PENALTY, penalty))
        started = time.perf_counter()
        switching.fine_tune(folder, SEED, penalised, quick)
        seconds = time.perf_counter() - started
        rows = [json.loads(line) for line in (folder / "feature_drift.jsonl").read_text(encoding="utf-8").splitlines()]
    logger.removeHandler(warnings)
    return {"seconds": round(seconds), "warnings": warnings.messages, "measurements": rows}


def main() -> None:
    parser = argparse.ArgumentParser(description="The drift callback on a healthy run and on one made to hide.")
    parser.add_argument("--out", type=Path, default=RESULT)
    out = parser.parse_args().out
    feature_set = switching.find(*load())
    one = feature_set[0]
    arms = {
        "plain SFT": run(feature_set, None, {}),
        "healthy": run(feature_set, feature_set, {}),
        "made to hide": run(one, one, HIDING),
    }
    result = {
        "penalty": {"healthy": switching.PENALTY, "made to hide": switching.PENALTY | HIDING},
        "features": {"healthy": list(feature_set.names), "made to hide": list(one.names)},
        "arms": arms,
        "hardware": hardware(),
        "versions": versions("sae_posttrain", "trl", "transformers", "torch"),
        "seed": SEED,
    }
    out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    for name, arm in arms.items():
        last = arm["measurements"][-1]
        falls = [each["fall"] for each in last["features"].values()]
        ratio, low, high = last["probability_ratio"]
        print(
            f"{name}: readings fell by {min(falls):.2f} to {max(falls):.2f} deviations; target tokens {ratio:.2f} "
            f"times as probable [{low:.2f}, {high:.2f}]; {len(arm['warnings'])} warnings"
        )


if __name__ == "__main__":
    main()
