"""
What the watch costs: SASFT and steered GRPO with [`FaultWatchCallback`] and without it, in time and in memory.

The runs take turns, each in a process of its own, so that peak memory is that of one run. Both kinds of run evaluate
and save checkpoints at the same steps; the watched ones answer prompts at each evaluation too and choose the best
checkpoint by a rate. The weights after both are compared: they have to be equal, bit for bit. Time
is that of the processor. Runs that stand in `--work` are not repeated.

    python benchmarks/bench_watch.py --data data/help --model models/help-qwen3-7m
"""

import argparse
import hashlib
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from machine import hardware, versions
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback

from sae_posttrain import (
    EndlessRepetitionReward,
    FaultWatchCallback,
    FeatureSet,
    SASFTConfig,
    SASFTTrainer,
    SteeredGRPOConfig,
    SteeredGRPOTrainer,
    TextOptions,
    find_features,
    load_sae,
    measure_groups,
)
from sae_posttrain.features.read.texts import read_rows

RESULTS = Path(__file__).parent / "results" / "bench_watch.json"
LANGUAGES = ("en", "ko", "zh")
METRICS = {"sasft": "right_language", "grpo": "endless"}
STEPS, EVERY = {"sasft": 12, "grpo": 6}, {"sasft": 4, "grpo": 2}


def pages(data: Path, lang: str, begin: int, end: int) -> list[dict[str, Any]]:
    return [dict(row) for row in read_rows(data / f"{lang}.jsonl.gz")[begin:end]]


def asked(row: dict[str, Any]) -> list[dict[str, str]]:
    return [{"role": "user", "content": row["title"]}]


def make_features(arguments: argparse.Namespace) -> None:
    """A set for SASFT, and one of two features that are known to loop, for steering."""
    texts = [
        {"lang": lang, "text": row["text"]} for lang in LANGUAGES for row in pages(arguments.data, lang, 300, 340)
    ]
    options = TextOptions(max_length=128)
    model, sae = str(arguments.model), load_sae(arguments.model / "sae", block=5, k=32)
    found = find_features(model, sae, texts, target_group="zh", num_features=32, text_options=options)
    found.save(arguments.work / "sasft.safetensors")
    looping = FeatureSet.from_sae(sae, [2331, 1754])
    measure_groups(model, looping, texts, text_options=options).save(arguments.work / "grpo.safetensors")


def run(method: str, watched: bool, arguments: argparse.Namespace) -> dict[str, Any]:
    """One training."""
    out = arguments.work / f"{method}-{'watched' if watched else 'plain'}"
    tokenizer = AutoTokenizer.from_pretrained(arguments.model)
    model = AutoModelForCausalLM.from_pretrained(arguments.model, dtype=torch.float32)
    common: dict[str, Any] = {
        "max_steps": STEPS[method],
        "learning_rate": 5e-4 if method == "sasft" else 1e-4,
        "features": str(arguments.work / f"{method}.safetensors"),
        "use_cpu": not torch.cuda.is_available(),
        "bf16": False,
        "gradient_checkpointing": False,
        "report_to": "none",
        "disable_tqdm": True,
        "eval_strategy": "steps",
        "eval_steps": EVERY[method],
        "save_steps": EVERY[method],
        "logging_steps": 1,
    }
    if watched:
        common |= {
            "metric_for_best_model": f"watch/{METRICS[method]}",
            "greater_is_better": method == "sasft",
            "load_best_model_at_end": True,
        }
    rows = [(lang, row) for lang in ("en", "ko") for row in pages(arguments.data, lang, 0, 200)]
    held_out = [(lang, row) for lang in ("en", "ko") for row in pages(arguments.data, lang, 500, 504)]
    if method == "sasft":
        args = SASFTConfig(str(out), **common, per_device_train_batch_size=8, max_length=192, penalty_weight=3.0)

        def examples(of: Any) -> Dataset:
            return Dataset.from_list(
                [{"lang": lang, "prompt": asked(row), "completion": [{"role": "assistant", "content": row["text"]}]}
                 for lang, row in of]
            )  # fmt: skip

        trainer: Any = SASFTTrainer(
            model, args, train_dataset=examples(rows), eval_dataset=examples(held_out), processing_class=tokenizer
        )
    else:
        args = SteeredGRPOConfig(
            str(out), **common, per_device_train_batch_size=16, per_device_eval_batch_size=8, num_generations=8,
            max_completion_length=96, temperature=0.7, steer_strength=2.0, num_steered=1,
        )  # fmt: skip

        def prompts(of: Any) -> Dataset:
            return Dataset.from_list([{"lang": lang, "prompt": asked(row)} for lang, row in of])

        reward = EndlessRepetitionReward(tokenizer.eos_token_id)
        trainer = SteeredGRPOTrainer(
            model, reward, args, train_dataset=prompts(rows), eval_dataset=prompts(held_out[:1]),
            processing_class=tokenizer,
        )  # fmt: skip
    if watched:
        watch = [
            {"lang": lang, "prompt": asked(row)}
            for lang in ("en", "ko")
            for row in pages(arguments.data, lang, 600, 612)
        ]
        trainer.add_callback(
            FaultWatchCallback(watch, trainer=trainer, max_new_tokens=96, temperature=0.7, num_shown=2)
        )
    last: dict[str, str] = {}

    class Weights(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
            if state.global_step == state.max_steps:
                digest = hashlib.sha256()
                for _, parameter in sorted(model.named_parameters()):
                    digest.update(parameter.detach().cpu().numpy().tobytes())
                last["sha256"] = digest.hexdigest()[:16]

    trainer.add_callback(Weights())
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    begun = time.perf_counter(), time.process_time()
    trainer.train()
    log = trainer.state.log_history
    watches = [
        {name: round(value, 4) for name, value in entry.items() if name.startswith("watch/") and "_" not in name[6:]}
        | {"step": entry["step"], "right_language": entry.get("watch/right_language")}
        for entry in log
        if "watch/seconds" in entry
    ]
    best = trainer.state.best_model_checkpoint
    return {
        "seconds": round(time.perf_counter() - begun[0], 2),
        "cpu_seconds": round(time.process_time() - begun[1], 2),
        "peak_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 1),
        "mb_before": round(before / 1024, 1),
        "weights": last["sha256"],
        "eval_loss": [round(entry["eval_loss"], 4) for entry in log if "eval_loss" in entry],
        "watches": watches,
        "chosen": None if best is None else Path(best).name,
    }


def measured(method: str, watched: int, number: int, arguments: argparse.Namespace) -> dict[str, Any]:
    """What one run took, in a process of its own; a run that stands in the folder of work is not repeated."""
    file = arguments.work / f"{method}-{watched}-{number}.json"
    if not file.is_file():
        command = [sys.executable, __file__, "--data", arguments.data, "--model", arguments.model]
        command += ["--work", arguments.work, "--one", method, watched, "--threads", arguments.threads]
        said = subprocess.run(list(map(str, command)), capture_output=True, text=True)
        if said.returncode:
            raise SystemExit(said.stderr[-3000:])
        line = next(line for line in said.stdout.splitlines() if line.startswith("RESULT "))
        file.write_text(line.removeprefix("RESULT "))
    return json.loads(file.read_text())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of <lang>.jsonl.gz")
    parser.add_argument("--model", type=Path, required=True, help="folder of the model, with its SAEs in `sae`")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--methods", nargs="+", default=list(METRICS), choices=list(METRICS))
    parser.add_argument("--threads", type=int, default=1, help="of torch")
    parser.add_argument("--work", type=Path, help="folder for the runs (default: a temporary one)")
    parser.add_argument("--one", nargs=2, metavar=("METHOD", "WATCHED"), help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.one:
        method, watched = arguments.one
        print("RESULT " + json.dumps(run(method, watched == "1", arguments)))
        return
    with tempfile.TemporaryDirectory() as temporary:
        arguments.work = arguments.work or Path(temporary)
        arguments.work.mkdir(parents=True, exist_ok=True)
        if not (arguments.work / "grpo.safetensors").is_file():
            make_features(arguments)
        taken: dict[str, dict[str, list[Any]]] = {method: {"plain": [], "watched": []} for method in arguments.methods}
        for number in range(arguments.rounds):
            for method in arguments.methods:
                for watched in (0, 1) if number % 2 == 0 else (1, 0):
                    taken[method]["watched" if watched else "plain"].append(
                        measured(method, watched, number, arguments)
                    )
    report: dict[str, Any] = {"question": __doc__.strip().splitlines()[0], "methods": {}}
    for method, runs in taken.items():
        plain, watched = runs["plain"], runs["watched"]
        seconds = [sum(watch["watch/seconds"] for watch in each["watches"]) for each in watched]
        report["methods"][method] = {
            "ratio_of_cpu_time": [round(w["cpu_seconds"] / p["cpu_seconds"], 3) for w, p in zip(watched, plain)],
            "ratio_of_peak_memory": [round(w["peak_mb"] / p["peak_mb"], 4) for w, p in zip(watched, plain)],
            "seconds_of_the_watch": [round(each, 2) for each in seconds],
            "median_peak_mb": [statistics.median(each["peak_mb"] for each in of) for of in (plain, watched)],
            "same_weights": len({each["weights"] for each in plain + watched}) == 1,
            "chosen": [each["chosen"] for each in watched],
            "runs": runs,
        }
    report |= {
        "settings": {"rounds": arguments.rounds, "model": arguments.model.name, "steps": STEPS, "every": EVERY},
        "hardware": hardware(),
        "versions": versions("torch", "transformers", "trl"),
    }
    arguments.out.parent.mkdir(exist_ok=True)
    arguments.out.write_text(json.dumps(report, indent=2) + "\n")
    for method, figures in report["methods"].items():
        print(method, {name: value for name, value in figures.items() if name != "runs"})


if __name__ == "__main__":
    main()
