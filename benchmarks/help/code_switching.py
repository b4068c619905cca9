"""
SFT against SASFT on the help pages: the same start, seed, steps and data order; evaluated on pages not trained on.

    python benchmarks/help/code_switching.py --data data/help --model models/help-qwen3-7m --arms final --split test

Every run of an arm with a seed appends one line to `results/<split>.jsonl`; runs that stand there are not repeated.
Answers and models go to `--work`, which can be thrown away.
"""

import argparse
import json
import platform
import shutil
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import yaml
from datasets import Dataset
from held_out import measure_held_out
from pages import as_example, as_text, load_pages, rows_of, split_ids
from transformers import AutoModelForCausalLM, AutoTokenizer

from sae_posttrain import FeatureSet, SASFTConfig, SASFTTrainer, evaluate, find_features
from sae_posttrain.features.read.text_options import TextOptions

HERE = Path(__file__).parent
MAX_LENGTH = 256  # tokens
MAX_NEW_TOKENS = 80
TOP_P = 0.8


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of <lang>.jsonl[.gz]")
    parser.add_argument("--model", type=Path, required=True, help="folder of the model, with its SAEs in sae/")
    parser.add_argument("--arms", required=True, help="a list of arms.yaml, or names of arms with commas")
    parser.add_argument("--seeds", default="0", help="with commas")
    parser.add_argument("--split", choices=["dev", "test"], default="dev")
    parser.add_argument("--work", type=Path, default=Path("runs/help"))
    parser.add_argument("--threads", type=int, default=0, help="of torch; 0 leaves its default")
    arguments = parser.parse_args(argv)
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    definitions = yaml.safe_load((HERE / "arms.yaml").read_text(encoding="utf-8"))
    names = definitions["lists"].get(arguments.arms) or arguments.arms.split(",")
    results = HERE / "results" / f"{arguments.split}.jsonl"
    results.parent.mkdir(exist_ok=True)
    for seed in map(int, arguments.seeds.split(",")):
        for name in names:
            arm = definitions["arms"][name]
            if any(r["arm"] == name and r["seed"] == seed for r in read_results(results)):
                print(f"{name}, seed {seed}: done already")
                continue
            result = run(name, arm, seed, arguments)
            with open(results, "a", encoding="utf-8") as file:
                file.write(json.dumps(result, ensure_ascii=False) + "\n")
            print(summary_line(result), flush=True)


def read_results(file: Path) -> list[dict[str, Any]]:
    """Finished runs."""
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()] if file.exists() else []


def run(name: str, arm: dict[str, Any], seed: int, arguments: argparse.Namespace) -> dict[str, Any]:
    """Find the arm's features, train, measure."""
    pages = load_pages(arguments.data)
    splits = split_ids(pages, num_held_out=150)
    train = [as_example(row) for row in rows_of(pages, splits, "train")]
    held_out = [as_example(row) for row in rows_of(pages, splits, arguments.split)]
    feature_set = features_for(arm.get("find"), rows_of(pages, splits, "train"), arguments) if "find" in arm else None

    tokenizer = AutoTokenizer.from_pretrained(arguments.model)
    model = AutoModelForCausalLM.from_pretrained(arguments.model, dtype=torch.float32)
    folder = arguments.work / f"{arguments.split}-{name}-{seed}"
    args = SASFTConfig(
        str(folder / "training"),
        max_steps=150,
        per_device_train_batch_size=16,
        learning_rate=5e-4,
        warmup_steps=10,
        train_sampling_strategy="group_by_length",  # less padding to compute on two cores
        max_length=MAX_LENGTH,
        bf16=True,  # autocast; the weights stay float32
        use_cpu=not torch.cuda.is_available(),
        gradient_checkpointing=False,
        seed=seed,
        logging_steps=10,
        save_strategy="no",
        report_to="none",
        **{"penalty_weight": 0.0, **arm.get("config", {})},
    )
    trainer = SASFTTrainer(
        model, args, feature_set=feature_set, train_dataset=Dataset.from_list(train), processing_class=tokenizer
    )
    started = time.perf_counter()
    trainer.train()
    training_seconds = time.perf_counter() - started
    log = [
        {key: value for key, value in entry.items() if key in ("step", "loss") or key.startswith("sae/")}
        for entry in trainer.state.log_history
    ]

    measures = measure_held_out(model, tokenizer, held_out, max_length=MAX_LENGTH, top_p=TOP_P)
    prompts = [{"id": e["id"], "lang": e["lang"], "prompt": e["prompt"]} for e in held_out]
    answers = folder / "answers"
    shutil.rmtree(answers, ignore_errors=True)  # of a run that was cut off: its weights may differ
    rates = evaluate(
        model,
        prompts,
        output_dir=answers,
        tokenizer=tokenizer,
        target_lang="zh",
        max_new_tokens=MAX_NEW_TOKENS,
        top_p=TOP_P,
        batch_size=75,
        seed=seed,
    )
    return {
        "arm": name,
        "seed": seed,
        "split": arguments.split,
        "settings": arm,
        **measures,
        "overall": rates["overall"],
        "groups": rates["groups"],
        "log": log,
        "training_seconds": round(training_seconds, 1),
        "hardware": hardware(),
        "versions": {package: version(package) for package in ("torch", "transformers", "trl", "sae_posttrain")},
    }


def features_for(find: dict[str, Any], rows: list[dict[str, Any]], arguments: argparse.Namespace) -> FeatureSet:
    """The features of an arm, found once for all arms that ask for the same."""
    key = "-".join(f"{name}={value}" for name, value in sorted(find.items())).replace(" ", "")
    file = arguments.work / "features" / f"{key}.safetensors"
    if not file.exists():
        find_features(
            str(arguments.model),
            arguments.model / "sae",
            [as_text(row) for row in rows],
            target_group="zh",
            text_options=TextOptions(max_texts=200, max_length=MAX_LENGTH),
            k=32,
            **find,
        ).save(file, overwrite=True)
    return FeatureSet.load(file)


def summary_line(result: dict[str, Any]) -> str:
    """One line for the terminal."""
    rate = result["overall"]["any"]["1"]
    losses = " ".join(f"{lang} {value:.3f}" for lang, value in result["loss"].items())
    return f"{result['arm']} seed {result['seed']}: {rate} | loss {losses} | {result['training_seconds']} s"


def hardware() -> dict[str, Any]:
    """What it ran on, without the machine's name."""
    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        named = [line for line in info.read_text().splitlines() if line.startswith("model name")]
        cpu = named[0].split(":", 1)[1].strip() if named else cpu
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {"cpu": cpu, "threads": torch.get_num_threads(), "gpu": gpu}


if __name__ == "__main__":
    main()
