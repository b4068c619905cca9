"""`sae-posttrain demo`: both methods on the lab's model, with TRL's real trainers, in minutes on a CPU."""

import gc
import os
import platform
import resource
import sys
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import datasets
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, set_seed
from transformers.utils import logging as transformers_logging

from ..features.readings import read_features
from ..measure.evaluation import evaluate
from ..measure.folder import ANSWERS_FILE, read_answers
from ..measure.intervals import wilson
from ..measure.report import Arm, Section, write_report
from ..measure.summary import compare_answers
from . import repetition, switching
from .contents import MODEL, as_messages, read_texts
from .progress import Progress

SEED = 0
PACKAGES = ("sae_posttrain", "trl", "transformers", "torch")


def run_demo(output_dir: str | os.PathLike[str], *, quick: bool = False, seed: int = SEED) -> Path:
    """
    Find features, train without and with them, and compare: language switching, then endless repetition.

    The model, its SAEs and the texts ship with the package, and so do the two faults, which were planted. The same
    seed gives the same table on the same machine.

    Args:
        output_dir (`str` or path):
            Folder to write: feature sets, answers, `table.txt` and `report.html`. It must be new or empty.
        quick (`bool`, *optional*, defaults to `False`):
            Only the first half, language switching.
        seed (`int`, *optional*, defaults to `0`):
            Seed of the training and the sampling.

    Returns:
        `Path`: the report.

    Raises:
        ValueError: If `output_dir` is not empty.
        ImportError: If matplotlib is missing, before any work.
    """
    import matplotlib  # noqa: F401  # the report's pictures need it: better to fail now than in eight minutes

    folder = Path(output_dir)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"{folder} is not an empty folder. Name a new one with `--out`.")
    folder.mkdir(parents=True, exist_ok=True)
    transformers_logging.disable_progress_bar()
    datasets.disable_progress_bars()
    progress = Progress(total=4 if quick else 9)
    set_seed(seed)
    sections = [_switching(folder / "switching", progress, seed, quick)]
    if not quick:
        sections.append(_repetition(folder / "repetition", progress, seed))
    table = format_table(sections)
    (folder / "table.txt").write_text(table, encoding="utf-8")
    report = write_report(
        folder / "report.html",
        sections,
        title="sae_posttrain on its lab",
        settings={
            "demo": {"quick": quick, "seconds": round(progress.seconds)},
            "machine": {"processor": platform.machine(), "threads": torch.get_num_threads()},
        },
        versions={package: version(package) for package in PACKAGES},
        seed=seed,
    )
    print(f"\n{table}\n{_used(progress)}\nReport: {report}")
    return report


def _switching(folder: Path, progress: Progress, seed: int, quick: bool) -> Section:
    """Before, SFT, SASFT: the same data, steps and seed."""
    model, tokenizer = load()
    with progress.step("Finding the features that stand for Chinese"):
        feature_set = switching.find(model, tokenizer)
        feature_set.save(folder / "features.safetensors")
    test = switching.questions(quick)
    texts = [{"text": row["answer"], "lang": row["lang"]} for row in read_texts("dev")]
    arms = []

    def measure(name: str, label: str, model: Any, log: Sequence[dict[str, Any]]) -> None:
        evaluation = evaluate(
            model, as_messages(test), output_dir=folder / name, tokenizer=tokenizer, seed=seed, **switching.SAMPLING
        )
        readings = read_features(model, feature_set, texts, tokenizer, batch_size=64)
        arms.append(as_arm(name, label, evaluation, folder / name, test, log=log, readings=readings))

    with progress.step("Answers before training"):
        measure("before", "before", model, ())
    for name, label, features in (("sft", "SFT", None), ("sasft", "SASFT (ours)", feature_set)):
        with progress.step(f"{label}: fine-tuning on answers with stray Chinese words, then answers"):
            trainer = switching.fine_tune(folder / f"{name}-training", seed, features, quick)
            measure(name, label, trainer.model, trainer.state.log_history)
            del trainer
            gc.collect()
    return Section("Language switching", arms, "switching", baseline="sft", text=switching.EXPLANATION)


def _repetition(folder: Path, progress: Progress, seed: int) -> Section:
    """Before, plain DAPO, steered DAPO: the same prompts, rewards, steps and seed."""
    model, tokenizer = load()
    with progress.step("Finding the features that stand for repetition"):
        feature_set = repetition.find(model, tokenizer, seed)
    with progress.step("Calibrating how hard to push them"):
        calibration = repetition.calibrated(model, tokenizer, feature_set, seed)
        calibration.feature_set.save(folder / "features.safetensors")
    test = repetition.prompts("test")
    arms = []

    def measure(name: str, label: str, model: Any, log: Sequence[dict[str, Any]]) -> None:
        evaluation = evaluate(
            model, as_messages(test), output_dir=folder / name, tokenizer=tokenizer, seed=seed, **repetition.SAMPLING
        )
        arms.append(as_arm(name, label, evaluation, folder / name, test, log=log))

    with progress.step("Answers before training"):
        measure("before", "before", model, ())
    for name, label, steering in (("dapo", "plain DAPO", None), ("steered", "steered DAPO (ours)", calibration)):
        with progress.step(f"{label}: training, then answers without steering"):
            trainer = repetition.train(folder / f"{name}-training", seed, steering)
            measure(name, label, trainer.model, trainer.state.log_history)
            del trainer
            gc.collect()
    return Section(
        "Endless repetition",
        arms,
        "loops",
        baseline="before",
        text=repetition.EXPLANATION,
        calibrations={"repetition features": calibration.as_dict()},
    )


def load() -> tuple[Any, Any]:
    """The lab's model and its tokenizer."""
    model = AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32)
    return model, AutoTokenizer.from_pretrained(MODEL)


def as_arm(
    name: str, label: str, evaluation: dict[str, Any], folder: Path, questions: Sequence[dict[str, Any]], **known: Any
) -> Arm:
    """What the report shows of a model; `capability` counts right answers to the questions that have a check."""
    answers = read_answers(folder / ANSWERS_FILE)
    checks = {(row["id"], row["lang"]): row["check"] for row in questions if row["check"]}
    judged = [
        checks[answer["id"], answer["lang"]].casefold() in answer["answer"].casefold()
        for answer in answers
        if (answer["id"], answer["lang"]) in checks
    ]
    return Arm(name, label, evaluation=evaluation, answers=answers, capability=(sum(judged), len(judged)), **known)


def format_table(sections: Sequence[Section]) -> str:
    """The demo's table: each arm's rate, its difference to the baseline and its right answers, with 95 % intervals."""
    rows = [("", "faulty answers", "difference, points", "right answers")]
    for section in sections:
        rows.append((section.title, "", "", ""))
        reference = section.reference
        assert reference is not None and section.measure is not None
        of_measure = {"switching": "any", "loops": "endless"}[section.measure]
        for arm in section.evaluated:
            assert arm.evaluation is not None and arm.capability is not None
            rate = arm.evaluation["overall"][of_measure]
            rate = rate["1"] if section.measure == "switching" else rate
            difference = ""
            if arm is not reference:
                paired = compare_answers(reference.answers, arm.answers)["overall"][of_measure]
                difference = f"{_points(paired)} to {reference.title}"
            right, num = arm.capability
            low, high = wilson(right, num)
            rows.append(
                (
                    f"  {arm.title}",
                    f"{rate['count']} of {rate['n']}: {_percent(rate)}",
                    difference,
                    _percent({"rate": right / num, "low": low, "high": high}),
                )
            )
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "".join("  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() + "\n" for row in rows)


def _percent(rate: dict[str, Any]) -> str:
    return f"{100 * rate['rate']:.1f} % [{100 * rate['low']:.1f}, {100 * rate['high']:.1f}]"


def _points(paired: dict[str, Any]) -> str:
    return f"{100 * paired['difference']:+.1f} [{100 * paired['low']:+.1f}, {100 * paired['high']:+.1f}]"


def _used(progress: Progress) -> str:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return f"{progress.seconds:.0f} s, at most {peak / 1e9:.1f} GB."
