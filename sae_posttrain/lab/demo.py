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
from transformers import set_seed
from transformers.utils import logging as transformers_logging

from ..measure.report.data import MEASURES
from ..measure.report.page import Section, write_report
from ..measure.report.words import compare_arms
from ..measure.statistics.intervals import wilson
from ..tables import align
from . import next_steps, repetition, switching
from .progress import Progress
from .record import Record, open_record

SEED = 0
PACKAGES = ("sae_posttrain", "trl", "transformers", "torch")
TABLE_FILE = "table.txt"
REPORT_FILE = "report.html"
OWN = ("switching", "repetition", TABLE_FILE, REPORT_FILE, *next_steps.OWN)
"""What the demo writes into its folder, in addition to its record."""

NOTICE = (
    "These faults were planted, in the data and in the small model that the demo trains: its figures show that the "
    "methods work, not how much they help with the faults of real models."
)


def run_demo(
    output_dir: str | os.PathLike[str],
    *,
    quick: bool = False,
    seed: int = SEED,
    resume: bool = False,
    overwrite: bool = False,
) -> Path:
    """
    Find features, train without and with them, and compare: language switching, then endless repetition.

    The model, its SAEs and the texts ship with the package. They contain two planted faults. The same seed gives the
    same table on the same machine. The results of all stages are kept in the folder, including the trained models.
    Table and report are rewritten after each arm. With `resume`, an interrupted run continues and ends with the same
    table as an uninterrupted run.

    Args:
        output_dir: Folder to write: feature sets, models, answers, `table.txt` and `report.html`. It must be new or
            empty, unless `resume` or `overwrite` is set.
        quick: Run only the first half, language switching, with fewer questions and steps.
        seed: Seed of the training and the sampling.
        resume: Continue the demo in the folder, if there is one. Finished stages are not repeated.
        overwrite: Remove the demo in the folder and start again. Files that the demo did not write are kept.

    Returns the report.
    """
    import matplotlib  # noqa: F401  # the report's pictures need it: better to fail now than in eight minutes

    folder = Path(output_dir)
    record = open_record(
        folder,
        {"quick": quick, "seed": seed},
        {package: version(package) for package in PACKAGES},
        resume=resume,
        overwrite=overwrite,
        own=OWN,
    )
    transformers_logging.disable_progress_bar()
    datasets.disable_progress_bars()
    plan = switching.stages(folder / "switching", seed, quick)
    if not quick:
        plan += repetition.stages(folder / "repetition", seed)
    print(f"Each stage is kept in {folder}. If the run is interrupted, --resume goes on where it stopped.")
    begun = bool(record.seconds)
    progress = Progress(len(plan))
    written = None
    for stage in plan:
        set_seed(seed)  # whatever ran before in this process
        if not progress.run(stage, record):
            continue
        gc.collect()  # the stage's models
        if stage.measures:
            written = _write(folder, record, quick, unfinished=len(plan) - len(record.seconds))
    table, report = written or _write(folder, record, quick)
    print(f"\n{table}\n{NOTICE}\n\n{_used(record, begun)}\nReport: {report}\n\n{next_steps.write(folder)}")
    return report


def _write(folder: Path, record: Record, quick: bool, unfinished: int = 0) -> tuple[str, Path]:
    """Table and report of the arms that are finished."""
    sections = [switching.section(folder / "switching", record, quick)]
    if not quick:
        sections.append(repetition.section(folder / "repetition", record))
    shown = [section for section in sections if section is not None]
    notice, status = NOTICE, ""
    if unfinished:
        status = f"This run is not finished: {unfinished} stages are missing. --resume goes on."
        notice += f"\n\n{status}"
    table = format_table(shown)
    (folder / TABLE_FILE).write_text(f"{table}\n{status}\n" if status else table, encoding="utf-8")
    report = write_report(
        folder / REPORT_FILE,
        shown,
        title="sae_posttrain on its lab",
        notice=notice,
        settings={
            "demo": {**record.settings, "seconds": round(sum(record.seconds.values()))},
            "machine": {"processor": platform.machine(), "threads": torch.get_num_threads()},
        },
        versions=record.versions,
    )
    return table, report


def format_table(sections: Sequence[Section]) -> str:
    """
    The demo's table: the rate and the right answers of each arm, with 95 % intervals.

    Each trained arm is compared with the arm above it, in percentage points: answers by prompt, right answers by
    question.
    """
    rows = [("", "faulty answers", "difference, points", "right answers", "difference, points")]
    for section in sections:
        rows.append((section.title, "", "", "", ""))
        measure = MEASURES[section.measure or ""]
        above = None
        for arm in section.evaluated:
            rate = measure.rate((arm.evaluation or {})["overall"])
            assert rate is not None and arm.capability is not None
            difference = right_difference = ""
            if above is not None:
                compared = compare_arms(arm, above)
                assert compared.differences is not None and compared.right is not None, compared.why_not
                difference = f"{_points(compared.differences[measure.of_group])} to {above.title}"
                right_difference = _points(compared.right)
            right, num = arm.capability
            low, high = wilson(right, num)
            rows.append(
                (
                    f"  {arm.title}",
                    f"{rate['count']} of {rate['n']}: {_percent(rate)}",
                    difference,
                    _percent({"rate": right / num, "low": low, "high": high}),
                    right_difference,
                )
            )
            above = arm
    return "".join(f"{line}\n" for line in align(rows, num_left=len(rows[0])))


def _percent(rate: Any) -> str:
    return f"{100 * rate['rate']:.1f} % [{100 * rate['low']:.1f}, {100 * rate['high']:.1f}]"


def _points(difference: Any) -> str:
    return f"{100 * difference['difference']:+.1f} [{100 * difference['low']:+.1f}, {100 * difference['high']:+.1f}]"


def _used(record: Record, begun: bool) -> str:
    """Time of all stages, and the peak memory, which is known only if all stages ran in this process."""
    used = f"{sum(record.seconds.values()):.0f} s"
    if not begun:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
        used += f", at most {peak / 1e9:.1f} GB"
    return f"{used}."
