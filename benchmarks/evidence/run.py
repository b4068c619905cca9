"""
Runs an experiment of this folder: every configuration of every arm on the dev pages, then the chosen ones on the test
pages with several seeds.

    python benchmarks/evidence/run.py code_switching --data data/help --model models/help-qwen3-7m
    python benchmarks/evidence/write_report.py code_switching

Each run appends one line to `results/<experiment>.jsonl`; runs that stand there are not repeated, so a run that was
cut off goes on where it was. Several processes may share the work: `--share 1/2` and `--share 2/2`, each stage by
itself (`--stage tune`, then `--stage test`). Models go to `--work`, which can be thrown away.
"""

import argparse
import fcntl
import gc
import json
import sys
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent), str(HERE.parent / "help")]  # the pages and what is measured on them

import torch  # noqa: E402
from choose import chosen_configs  # noqa: E402
from machine import hardware, versions  # noqa: E402
from settings import Experiment, Job  # noqa: E402
from shared_measures import draw_ids  # noqa: E402
from tqdm import tqdm  # noqa: E402


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("experiment", choices=sorted(file.stem for file in HERE.glob("*.yaml")))
    parser.add_argument("--data", type=Path, required=True, help="folder of <lang>.jsonl[.gz]")
    parser.add_argument("--model", type=Path, required=True, help="folder of the model, with its SAEs in sae/")
    parser.add_argument("--stage", choices=["tune", "test", "both"], default="both")
    parser.add_argument("--arms", help="with commas; all if left out")
    parser.add_argument("--configs", help="of the tune stage, with commas; all if left out")
    parser.add_argument("--seeds", help="of the test stage, with commas; those of the experiment if left out")
    parser.add_argument("--share", default="1/1", help="which part of the jobs, of how many (default: 1/1)")
    parser.add_argument("--work", type=Path, default=Path("runs/evidence"))
    parser.add_argument("--results", type=Path, default=HERE / "results")
    parser.add_argument("--threads", type=int, default=0, help="of torch; 0 leaves its default")
    arguments = parser.parse_args(argv)
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    experiment = Experiment.read(HERE / f"{arguments.experiment}.yaml")
    arms = arguments.arms.split(",") if arguments.arms else list(experiment.arms)
    file = arguments.results / f"{experiment.name}.jsonl"
    if arguments.seeds:
        experiment.test["seeds"] = [int(seed) for seed in arguments.seeds.split(",")]
    if arguments.stage in ("tune", "both"):
        only = arguments.configs.split(",") if arguments.configs else None
        jobs = [job for job in experiment.tuning_jobs(arms) if only is None or job.config in only]
        run_jobs(experiment, jobs, file, arguments)
    if arguments.stage in ("test", "both"):
        chosen = chosen_configs(experiment, read_results(file), arms)
        run_jobs(experiment, experiment.test_jobs(arms, chosen), file, arguments)


def read_results(file: Path) -> list[dict[str, Any]]:
    """Finished runs."""
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()] if file.exists() else []


def run_jobs(experiment: Experiment, jobs: list[Job], file: Path, arguments: argparse.Namespace) -> None:
    """What is not done yet, of this process' share."""
    part, of = (int(number) for number in arguments.share.split("/"))
    for job in tqdm(jobs[part - 1 :: of], desc=experiment.name, unit="run"):
        settings = experiment.settings(job.arm, job.config)
        done = [r for r in read_results(file) if r["key"] == job.key]
        if done and done[0]["settings"] != settings:
            raise ValueError(f"{file.name} holds {job.key} with other settings. Take that line out to run it again.")
        if done:
            continue
        result = run(experiment, job, settings, arguments)
        file.parent.mkdir(parents=True, exist_ok=True)
        with open(file, "a", encoding="utf-8") as out:
            fcntl.flock(out, fcntl.LOCK_EX)  # lines are longer than what is written at once
            out.write(json.dumps(result, ensure_ascii=False) + "\n")
        gc.collect()


def run(experiment: Experiment, job: Job, settings: dict[str, Any], arguments: argparse.Namespace) -> dict[str, Any]:
    """One line of the results."""
    arms, measures = experiment.part("arms"), experiment.part("measures")
    part = arguments.share.replace("/", "of")
    bench = arms.Bench(arguments.model, arguments.data, arguments.work / experiment.name, part)
    started = time.perf_counter()
    trained = arms.make(bench, settings, job.seed)
    made = time.perf_counter()
    stage = experiment.tune if job.split == "dev" else experiment.test
    ids = draw_ids(bench.ids(job.split), stage["num_ids"])
    take = measures.measure if job.split == "dev" else measures.measure_all
    trained.model.eval()
    return {
        "key": job.key,
        "arm": job.arm,
        "config": job.config,
        "seed": job.seed,
        "split": job.split,
        "settings": settings,
        **take(bench, trained, settings, ids, job.seed),
        "log": trained.log,
        "seconds": {"made": round(made - started, 1), "measured": round(time.perf_counter() - made, 1)},
        "hardware": hardware(),
        "versions": versions("torch", "transformers", "trl", "sae_posttrain"),
    }


if __name__ == "__main__":
    main()
