"""
What each arm of `code_switching.yaml` can still do, asked by lm-evaluation-harness, document by document.

    pip install 'sae_posttrain[eval]'
    python benchmarks/evidence/capability.py --data data/help --model models/help-qwen3-7m

One task a language, made of the test pages: title and beginning are given, which of four pieces goes on? The arms
are made again, in their chosen configurations and with the first seed of the test stage; each is one line of
`results/capability.jsonl`, and those that stand there are not made again. Without `--model` the table is written from
these lines alone.
"""

import argparse
import json
import random
import shutil
from pathlib import Path
from typing import Any

import torch
from run import HERE, read_results  # first: it makes the modules of ../help importable
from settings import Experiment

# isort: split
import code_switching_arms as arms
import yaml
from choose import chosen_configs
from code_switching_measures import OTHERS, TARGET
from code_switching_report import BASELINE, NAMES
from machine import hardware
from shared_measures import flags
from tables import markdown, verdict
from tqdm import tqdm
from write_report import PAGE, with_tables

from sae_posttrain import evaluate_tasks
from sae_posttrain.measure.answers.prompts import read_rows

RESULTS = HERE / "results" / "capability.jsonl"
LANGUAGES = (*OTHERS, TARGET)
NUM_CHOICES = 4
NUM_DOCUMENTS = 150  # a language
NUM_CHARS = {"en": (200, 80), "es": (200, 80), "ko": (100, 40), "ru": (200, 80), "zh": (70, 30)}
"""Of a page: how many are given, and how many are asked for."""


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder of <lang>.jsonl[.gz]")
    parser.add_argument("--model", type=Path, help="folder of the model, with its SAEs in sae/")
    parser.add_argument("--arms", help="with commas; all if left out")
    parser.add_argument("--work", type=Path, default=Path("runs/evidence"))
    parser.add_argument("--threads", type=int, default=0, help="of torch; 0 leaves its default")
    arguments = parser.parse_args(argv)
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    if arguments.model:
        measure_arms(arguments)
    text = table(read_results(RESULTS))
    PAGE.write_text(with_tables(PAGE.read_text(encoding="utf-8"), "capability", text), encoding="utf-8")
    print(text)


def measure_arms(arguments: argparse.Namespace) -> None:
    """Make and measure what is not there yet."""
    experiment = Experiment.read(HERE / "code_switching.yaml")
    wanted = arguments.arms.split(",") if arguments.arms else list(NAMES)
    chosen = chosen_configs(experiment, read_results(HERE / "results" / "code_switching.jsonl"), wanted)
    seed = experiment.test["seeds"][0]
    bench = arms.Bench(arguments.model, arguments.data, arguments.work / experiment.name, "capability")
    tasks = write_tasks(bench, bench.work / "tasks")
    for arm in tqdm(wanted, desc="arms", unit="arm"):
        settings = experiment.settings(arm, chosen[arm])
        done = [run for run in read_results(RESULTS) if run["arm"] == arm]
        if done and done[0]["settings"] != settings:
            raise ValueError(f"{RESULTS.name} holds {arm} with other settings. Take that line out to run it again.")
        if done:
            continue
        trained = arms.make(bench, settings, seed)
        found = ask(bench, trained, tasks)
        line = {"arm": arm, "config": chosen[arm], "seed": seed, "settings": settings, **found, "hardware": hardware()}
        with open(RESULTS, "a", encoding="utf-8") as out:
            out.write(json.dumps(line, ensure_ascii=False) + "\n")


def write_tasks(bench: Any, folder: Path) -> dict[str, list[str]]:
    """A task a language for each context in which an arm answers: documents and the harness's YAML file."""
    folder.mkdir(parents=True, exist_ok=True)
    pages, drawn = bench.pages(), random.Random(0)
    for lang in LANGUAGES:
        given, asked = NUM_CHARS[lang]
        texts = {i: pages[lang][i]["text"].strip() for i in bench.ids("test")}
        continued = {i: text[given : given + asked] for i, text in texts.items() if len(text) >= given + asked}
        with open(folder / f"pages_{lang}.jsonl", "w", encoding="utf-8") as out:
            for page_id, right in list(continued.items())[:NUM_DOCUMENTS]:
                others = [text for text in dict.fromkeys(continued.values()) if text != right]
                choices = [right, *drawn.sample(others, NUM_CHOICES - 1)]
                drawn.shuffle(choices)
                document = {"title": pages[lang][page_id]["title"], "given": texts[page_id][:given]}
                document |= {"choices": choices, "answer": choices.index(right)}
                out.write(json.dumps(document, ensure_ascii=False) + "\n")
        task = {
            "task": f"pages_{lang}",
            "dataset_path": "json",
            "dataset_kwargs": {"data_files": {"test": str((folder / f"pages_{lang}.jsonl").resolve())}},
            "test_split": "test",
            "output_type": "multiple_choice",
            "doc_to_text": "{{title}}",
            "gen_prefix": "{{given}}",
            "doc_to_choice": "choices",
            "doc_to_target": "answer",
            "target_delimiter": "",
            "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
            "metadata": {"version": 1.0},
        }
        (folder / f"pages_{lang}.yaml").write_text(yaml.safe_dump(task), encoding="utf-8")
    return {
        "answering": [str(folder / f"pages_{lang}.yaml") for lang in OTHERS],
        "target": [str(folder / f"pages_{TARGET}.yaml")],
    }


def ask(bench: Any, trained: Any, tasks: dict[str, list[str]]) -> dict[str, Any]:
    """Whether each document was answered rightly: a string of flags for each task."""
    right: dict[str, str] = {}
    result: dict[str, Any] = {}
    for name, context in (("answering", trained.answering), ("target", arms.no_change)):
        folder = bench.scratch / f"tasks-{name}"
        shutil.rmtree(folder, ignore_errors=True)
        with context():
            result = evaluate_tasks(trained.model, tasks[name], output_dir=folder, tokenizer=bench.tokenizer)
        items = [dict(item) for item in read_rows(folder / "task_items.jsonl")]
        for task in sorted({item["task"] for item in items}):
            own = sorted((item for item in items if item["task"] == task), key=lambda item: item["doc_id"])
            right[task.removeprefix("pages_")] = flags([bool(item["metrics"]["acc"]) for item in own])
    return {"right": right, "versions": result["versions"]}


def table(runs: list[dict[str, Any]]) -> str:
    """Right answers, and whether they are non-inferior to plain SFT's."""
    by_arm = {run["arm"]: run for run in runs}
    lines = [["arm", "other languages", "Chinese"], ["---"] * 3]
    for arm in NAMES:
        if arm not in by_arm:
            continue
        row = [NAMES[arm]]
        for langs in (OTHERS, (TARGET,)):
            own, before = (rows(by_arm[each], langs) for each in (arm, BASELINE))
            share = f"{100 * sum(value for _, _, value in own) / len(own):.1f} %"
            row.append(share if arm == BASELINE else f"{share}; {verdict(before, own)}")
        lines.append(row)
    return markdown(lines)


def rows(run: dict[str, Any], langs: tuple[str, ...]) -> list[tuple[str, int, float]]:
    """A value a document."""
    return [
        (f"{lang}/{place}", run["seed"], float(flag == "1"))
        for lang in langs
        for place, flag in enumerate(run["right"][lang])
    ]


if __name__ == "__main__":
    main()
