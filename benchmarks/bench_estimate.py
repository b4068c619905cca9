"""
`sae-posttrain estimate`, compared with the memory that the same recipe takes.

Each recipe is trained for two steps in a fresh process. On a GPU, the peak is the allocator's. On a CPU, it is the
highest resident memory minus the memory before the model was loaded; this includes temporary memory of kernels. On a
CPU, the C library returns freed memory at once. Otherwise the memory that it keeps (as much as the weights at the
larger shape) would count as used. The estimate is made only from the model's config.json.

    python benchmarks/bench_estimate.py --model models/help-qwen3-7m --data data/help

Linux only on a CPU (it resets and reads the kernel's high-water mark); needs 12 GB of memory.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
import yaml
from machine import hardware, versions

HERE = Path(__file__).parent
AT_ONCE = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
RESULTS = HERE / "results" / "bench_estimate.json"
SMALL = {"per_device_train_batch_size": 16, "max_length": 256, "dtype": "float32", "bf16": True}
LARGE = {"per_device_train_batch_size": 1, "max_length": 1024, "dtype": "bfloat16", "bf16": True}
LORA = {"use_peft": True, "lora_target_modules": "all-linear"}
RECIPES: dict[str, dict[str, Any]] = {
    "help model": {**SMALL, "gradient_checkpointing": False},
    "help model, float32 throughout": {**SMALL, "gradient_checkpointing": False, "bf16": False},
    "help model, checkpointing": {**SMALL, "gradient_checkpointing": True},
    "help model, accumulation": {**SMALL, "gradient_checkpointing": False, "gradient_accumulation_steps": 2},
    "help model, LoRA": {**SMALL, **LORA, "gradient_checkpointing": False},
    "Qwen3-0.6B's shape": {**LARGE, "gradient_checkpointing": False},
    "Qwen3-0.6B's shape, checkpointing": {**LARGE, "gradient_checkpointing": True},
    "Qwen3-0.6B's shape, LoRA": {**LARGE, **LORA, "gradient_checkpointing": True},
}
LARGER = {**LARGE, "max_length": 4096}
ON_A_GPU = {
    "Qwen3-1.7B's shape": {**LARGER, "gradient_checkpointing": False},
    "Qwen3-1.7B's shape, checkpointing": {**LARGER, "gradient_checkpointing": True},
    "Qwen3-1.7B's shape, LoRA": {**LARGER, **LORA, "gradient_checkpointing": True},
}
SHAPES = {
    "Qwen3-0.6B": {"hidden_size": 1024, "intermediate_size": 3072},
    "Qwen3-1.7B": {"hidden_size": 2048, "intermediate_size": 6144},
}


def shape_of(name: str) -> dict[str, Any]:
    """A published configuration, of which only the shape is taken."""
    heads = {"num_hidden_layers": 28, "num_attention_heads": 16, "num_key_value_heads": 8, "head_dim": 128}
    return {"vocab_size": 151_936, "tie_word_embeddings": True, "dtype": "bfloat16", **SHAPES[name], **heads}


def memory(field: str) -> int:
    """A line of `/proc/self/status`, in bytes."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field))
    return int(line.split()[1]) * 1024


def write_recipe(name: str, fields: dict[str, Any], arguments: argparse.Namespace, folder: Path) -> Path:
    """A YAML file, its model, data and features."""
    from transformers import AutoTokenizer, Qwen3Config, Qwen3ForCausalLM

    from sae_posttrain import FeatureSet
    from sae_posttrain.measure.answers.prompts import read_rows

    model: Path = arguments.model
    shape = next((shape for shape in SHAPES if name.startswith(shape)), None)
    if shape is not None:
        model = folder / "model"
        torch.manual_seed(0)
        config = Qwen3Config(**shape_of(shape))
        Qwen3ForCausalLM(config).to(torch.bfloat16).save_pretrained(model)
        AutoTokenizer.from_pretrained(arguments.model).save_pretrained(model)
    width = json.loads((model / "config.json").read_text())["hidden_size"]
    depth = json.loads((model / "config.json").read_text())["num_hidden_layers"]
    blocks = [depth - 2] * 64 + [depth - 1] * 64
    FeatureSet.from_directions(
        torch.randn(128, width), blocks=blocks, names=[str(i) for i in range(128)], residual_norms=[1.0] * 128
    ).save(folder / "features.safetensors", overwrite=True)
    words = " ".join(row["text"] for row in list(read_rows(sorted(arguments.data.glob("en.jsonl*"))[0]))[:300]).split()
    with open(folder / "train.jsonl", "w", encoding="utf-8") as file:
        for place in range(64):
            own = words[
                place * 50 : place * 50 + fields["max_length"]
            ]  # a word has a token or more: cut to the length
            row = {"prompt": "Title:", "completion": " ".join(own), "lang": "zh" if place % 5 == 0 else "en"}
            file.write(json.dumps(row) + "\n")
    own = {
        "model_name_or_path": str(model),
        "features": str(folder / "features.safetensors"),
        "dataset_name": str(folder / "train.jsonl"),
        "output_dir": str(folder / "out"),
        "target_group": "zh",
        "penalty": "zero",
        "penalty_unit": "raw",
        "max_steps": 2,
        "use_cpu": not torch.cuda.is_available(),
        "save_strategy": "no",
        "report_to": "none",
        **fields,
    }
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(own))
    return path


def train(path: Path) -> int:
    """Peak memory of the training of a recipe, in bytes; run in a process of its own."""
    from trl import TrlParser, get_peft_config

    from sae_posttrain import SASFTTrainer
    from sae_posttrain.sft.script import ARGUMENTS
    from sae_posttrain.training.script import load_data, loading_arguments

    script_args, training_args, model_args, dataset_args = TrlParser(ARGUMENTS).parse_args_and_config(
        args=["--config", str(path)]
    )
    dataset = load_data(script_args, dataset_args)["train"]
    training_args.model_init_kwargs = loading_arguments(training_args, model_args)
    warm_up = torch.nn.Linear(512, 512)
    warm_up(torch.randn(64, 512)).sum().backward()  # what a first product loads is not the model's
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    else:
        Path("/proc/self/clear_refs").write_text("5")  # resets VmHWM
    before = 0 if torch.cuda.is_available() else memory("VmRSS")
    trainer = SASFTTrainer(
        model_args.model_name_or_path, training_args, train_dataset=dataset, peft_config=get_peft_config(model_args)
    )
    trainer.train()
    return torch.cuda.max_memory_allocated() if torch.cuda.is_available() else memory("VmHWM") - before


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, help="folder of a small causal language model")
    parser.add_argument("--data", type=Path, help="folder with en.jsonl[.gz]")
    parser.add_argument("--threads", type=int, default=0, help="of torch; 0 leaves its default")
    parser.add_argument("--train", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    if arguments.train:
        print(f"\n{json.dumps({'peak': train(arguments.train)})}")
        return
    from sae_posttrain.estimate.recipe import estimate_memory

    rows: dict[str, dict[str, Any]] = {}
    for name, fields in {**RECIPES, **(ON_A_GPU if torch.cuda.is_available() else {})}.items():
        with tempfile.TemporaryDirectory() as folder:
            path = write_recipe(name, fields, arguments, Path(folder))
            estimate = estimate_memory(path)
            command = [sys.executable, __file__, "--train", str(path), "--threads", str(arguments.threads)]
            environment = {**os.environ, **AT_ONCE}
            output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=environment).stdout
        measured = json.loads(output.splitlines()[-1])["peak"]
        rows[name] = {
            "settings": fields,
            "estimated_bytes": round(estimate.peak),
            "estimated_by_stage": {stage: round(value) for stage, value in estimate.peaks.items()},
            "measured_bytes": measured,
            "ratio": round(estimate.peak / measured, 3),
        }
        gib = estimate.peak / 2**30, measured / 2**30
        print(
            f"{name:40} estimated {gib[0]:.2f} GiB, measured {gib[1]:.2f} GiB: {rows[name]['ratio']:.3f}", flush=True
        )
        write_report(rows, arguments.threads)


def write_report(rows: dict[str, dict[str, Any]], threads: int) -> None:
    """The recipes measured so far."""
    report = {
        "question": "The estimate of a recipe's memory beside what it takes.",
        "settings": {"threads": threads, **AT_ONCE},
        "recipes": rows,
        "hardware": hardware(),
        "versions": versions("torch", "transformers", "trl", "peft", "sae_posttrain"),
    }
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
