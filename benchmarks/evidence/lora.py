"""
SASFT with LoRA beside the full fine-tuning, on the dev pages: switching and held-out loss; then the adapter is saved,
loaded and merged, and measured again.

    python benchmarks/evidence/lora.py --data data/help --model models/help-qwen3-7m

The full fine-tunings are those of `results/code_switching.jsonl` with the same settings and seed. Plain LoRA is run at
several learning rates; SASFT takes the one of the smallest held-out loss.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from run import HERE, read_results  # first: it makes the modules of ../help importable
from settings import Experiment

# isort: split
import code_switching_arms as arms
from code_switching_measures import OTHERS, fault, measure
from machine import hardware, versions
from peft import LoraConfig, PeftModel
from shared_measures import draw_ids

RESULTS = HERE / "results" / "lora.json"
CONFIG = "w30_m2"
RATES = (1.0e-3, 3.0e-3)
RANK = 32


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of <lang>.jsonl[.gz]")
    parser.add_argument("--model", type=Path, required=True, help="folder of the model, with its SAEs in sae/")
    parser.add_argument("--work", type=Path, default=Path("runs/evidence"))
    parser.add_argument("--threads", type=int, default=0, help="of torch; 0 leaves its default")
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    experiment = Experiment.read(HERE / "code_switching.yaml")
    seed = experiment.tune["seed"]
    bench = arms.Bench(arguments.model, arguments.data, arguments.work / experiment.name, "lora")
    ids = draw_ids(bench.ids("dev"), experiment.tune["num_ids"])
    plain, held = experiment.settings("plain", "only"), experiment.settings("sasft", CONFIG)
    full = {run["key"]: run for run in read_results(HERE / "results" / "code_switching.jsonl")}
    rows = {
        "plain SFT, all weights": figures(full[f"dev-plain-only-{seed}"]),
        "SASFT, all weights": figures(full[f"dev-sasft-{CONFIG}-{seed}"]),
    }
    report: dict[str, Any] = {"settings": {"rank": RANK, "config": CONFIG, "seed": seed}, "rows": rows}
    for rate in RATES:
        trained = train(bench, plain, rate, seed)
        rows[f"plain SFT, LoRA, {rate:g}"] = figures(measure(bench, trained, plain, ids, seed))
        write(report)
    best = min(RATES, key=lambda rate: rows[f"plain SFT, LoRA, {rate:g}"]["loss"])
    trained = train(bench, held, best, seed)
    rows[f"SASFT, LoRA, {best:g}"] = figures(measure(bench, trained, held, ids, seed))
    write(report)
    adapter, merged = bench.work / "lora-adapter", bench.work / "lora-merged"
    trained.model.save_pretrained(adapter)
    loaded = PeftModel.from_pretrained(bench.load(), adapter)
    rows["SASFT, LoRA, saved and loaded"] = figures(measure(bench, as_it_is(loaded), held, ids, seed))
    loaded.merge_and_unload().save_pretrained(merged)
    rows["SASFT, LoRA, merged, saved and loaded"] = figures(
        measure(bench, as_it_is(bench.load(merged)), held, ids, seed)
    )
    report["adapter_bytes"] = (adapter / "adapter_model.safetensors").stat().st_size
    write(report)
    for name, row in rows.items():
        print(f"{name:40} switching {100 * row['switching']:.2f} %, held-out loss {row['loss']:.4f}")


def train(bench: Any, settings: dict[str, Any], rate: float, seed: int) -> Any:
    """A fine-tuning with adapters, the rest as in the full one."""
    settings = settings | {"training": settings["training"] | {"learning_rate": rate}}
    adapters = LoraConfig(r=RANK, lora_alpha=2 * RANK, target_modules="all-linear", task_type="CAUSAL_LM")
    trained = arms.train(bench, settings, seed, bench.training_rows(), peft_config=adapters)
    trained.model.eval()
    return trained


def as_it_is(model: Any) -> Any:
    model.eval()
    return arms.Trained(model, arms.no_change, [])


def figures(run: dict[str, Any]) -> dict[str, float]:
    """Probability that an answer switches, and the held-out loss of the languages whose loss a method may cost."""
    return {"switching": fault(run), "loss": sum(run["loss"][lang] for lang in OTHERS) / len(OTHERS)}


def write(report: dict[str, Any]) -> None:
    found = report | {"hardware": hardware(), "versions": versions("torch", "transformers", "trl", "peft")}
    RESULTS.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
