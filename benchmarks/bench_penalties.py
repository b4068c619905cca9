"""
Time and memory of a training step of SFT with a penalty on features, and with one on tokens, as ratios to plain SFT.

The model has the shape of a published one and random weights, since neither time nor memory depends on them: what
counts is the vocabulary, because a penalty on tokens needs the logits of all of it, while TRL's loss never holds them
and a penalty on features reads a few rows of an SAE. Trainers share the model and take their steps in turn, so that a
busy moment of the machine meets all; the first step of each turn is not counted. Memory is the peak of a process of
its own for each.

    python benchmarks/bench_penalties.py --tokenizer models/help-qwen3-7m --data data/help
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from machine import hardware, versions
from transformers import AutoTokenizer, Qwen3Config, Qwen3ForCausalLM, TrainerCallback
from trl import SFTConfig, SFTTrainer

from sae_posttrain import FeatureSet, SASFTConfig, SASFTTrainer
from sae_posttrain.measure.prompts import read_rows

RESULTS = Path(__file__).parent / "results" / "bench_penalties.json"
ARMS = ("plain", "features", "tokens")
TARGET = "zh"


class StepTimes(TrainerCallback):
    """Seconds of each step, the first of a call to `train` left out."""

    def __init__(self):
        self.seconds: list[float] = []
        self._started = 0.0

    def on_step_begin(self, args, state, control, **kwargs):
        synchronise()
        self._started = time.perf_counter()

    def on_step_end(self, args, state, control, **kwargs):
        synchronise()
        if state.global_step > 1:
            self.seconds.append(time.perf_counter() - self._started)


def synchronise() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def make_model(arguments: argparse.Namespace) -> Any:
    """Qwen3-0.6B's shape but for the number of blocks."""
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=arguments.vocab_size,
        hidden_size=1024,
        intermediate_size=3072,
        num_hidden_layers=arguments.blocks,
        num_attention_heads=16,
        num_key_value_heads=8,
        head_dim=128,
        tie_word_embeddings=True,
        max_position_embeddings=4096,
    )
    dtype = torch.bfloat16 if torch.cuda.is_available() else torch.float32
    return Qwen3ForCausalLM(config).to(dtype)


def make_trainer(arm: str, model: Any, arguments: argparse.Namespace, folder: str) -> tuple[Any, StepTimes]:
    """Rows of exactly `--length` tokens, four of five to be penalised."""
    tokenizer = AutoTokenizer.from_pretrained(arguments.tokenizer)
    texts = [row["text"] for row in read_rows(sorted(Path(arguments.data).glob("en.jsonl*"))[0])]
    words = " ".join(texts[:300]).split()
    rows = []
    for place in range(arguments.rows * arguments.steps_per_turn):
        first = (place * arguments.length) % max(1, len(words) - 2 * arguments.length)
        text = " ".join(words[first : first + arguments.length])  # a word has a token or more: cut to the length
        rows.append({"lang": TARGET if place % 5 == 0 else "en", "prompt": "Title:", "completion": text})
    options: dict[str, Any] = {}
    extra: dict[str, Any] = {}
    if arm == "features":
        places = [arguments.blocks - 2, arguments.blocks - 1]
        directions = torch.randn(2 * arguments.features, 1024, generator=torch.Generator().manual_seed(0))
        num = len(directions)
        bare = FeatureSet.from_directions(
            directions,
            blocks=[block for block in places for _ in range(arguments.features)],
            names=[f"{block}.{i}" for block in places for i in range(arguments.features)],
            residual_norms=[1.0] * num,
        )
        statistics_of = {"groups": ("en", TARGET), "mean": torch.zeros(num, 2), "std": torch.ones(num, 2)}
        options["feature_set"] = replace(bare, target_groups=(TARGET,), **statistics_of)
        extra = {"penalty_weight": 0.1}
    elif arm == "tokens":
        ids = Path(folder) / "ids.json"
        ids.write_text(json.dumps(list(range(0, arguments.vocab_size, 6))))  # about as many as are Han
        extra = {"penalised_tokens": str(ids), "token_penalty_weight": 10.0, "target_group": TARGET}
    config = (SASFTConfig if extra else SFTConfig)(
        folder,
        max_steps=arguments.steps_per_turn,
        per_device_train_batch_size=arguments.rows,
        max_length=arguments.length,
        learning_rate=1e-6,
        optim="sgd",
        use_cpu=not torch.cuda.is_available(),
        bf16=False,
        gradient_checkpointing=False,
        save_strategy="no",
        logging_steps=arguments.steps_per_turn,
        report_to="none",
        disable_tqdm=True,
        seed=0,
        **extra,
    )
    times = StepTimes()
    trainer = (SASFTTrainer if extra else SFTTrainer)(
        model,
        args=config,
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
        callbacks=[times],
        **options,
    )
    lengths = {len(row["input_ids"]) for row in trainer.train_dataset}
    if lengths != {arguments.length}:
        raise ValueError(
            f"Rows have {sorted(lengths)} tokens instead of {arguments.length}. Use pages with longer texts."
        )
    return trainer, times


def measure_time(arguments: argparse.Namespace) -> dict[str, Any]:
    """Step times, their medians, and ratios to plain SFT turn by turn."""
    model = make_model(arguments)
    with tempfile.TemporaryDirectory() as folder:
        made = {arm: make_trainer(arm, model, arguments, folder) for arm in ARMS}
        ratios: dict[str, list[float]] = {arm: [] for arm in ARMS[1:]}
        for turn in range(arguments.turns):
            medians = {}
            for arm in ARMS if turn % 2 == 0 else reversed(ARMS):
                trainer, times = made[arm]
                before = len(times.seconds)
                trainer.train()
                medians[arm] = statistics.median(times.seconds[before:])
            for arm in ratios:
                ratios[arm].append(round(medians[arm] / medians["plain"], 4))
    seconds = {arm: times.seconds for arm, (_, times) in made.items()}
    return {
        "seconds": {arm: [round(value, 4) for value in values] for arm, values in seconds.items()},
        "ratio_of_medians": {
            arm: round(statistics.median(seconds[arm]) / statistics.median(seconds["plain"]), 4) for arm in ratios
        },
        "ratio_by_turn": ratios,
    }


def peak_memory(arm: str, arguments: argparse.Namespace) -> None:
    """Of this process, in MiB: of the GPU if there is one, else of the process."""
    with tempfile.TemporaryDirectory() as folder:
        trainer, _ = make_trainer(arm, make_model(arguments), arguments, folder)
        trainer.train()
    if torch.cuda.is_available():
        print(torch.cuda.max_memory_allocated() / 2**20)
    else:
        print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokenizer", required=True, help="folder of a tokenizer")
    parser.add_argument("--data", required=True, help="folder with en.jsonl[.gz]")
    parser.add_argument("--vocab-size", type=int, default=151_936)
    parser.add_argument("--blocks", type=int, default=28)
    parser.add_argument("--features", type=int, default=64, help="a block, in the last two")
    parser.add_argument("--rows", type=int, default=2, help="in a step")
    parser.add_argument("--length", type=int, default=128, help="tokens of a row")
    parser.add_argument("--turns", type=int, default=4)
    parser.add_argument("--steps-per-turn", type=int, default=4)
    parser.add_argument("--threads", type=int, default=0, help="of torch; 0 leaves its default")
    parser.add_argument("--memory-of", choices=ARMS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    if arguments.memory_of:
        peak_memory(arguments.memory_of, arguments)
        return
    memory = {}
    for arm in ARMS:
        command = [sys.executable, *sys.argv, "--memory-of", arm]
        printed = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
        memory[arm] = round(float(printed.splitlines()[-1]))
    settings = {k: v for k, v in vars(arguments).items() if k not in ("tokenizer", "data", "memory_of")}
    report = {
        "question": "Time and memory of a training step with a penalty on features or on tokens, against plain SFT.",
        "settings": settings,
        **measure_time(arguments),
        "peak_mib": memory,
        "hardware": hardware(),
        "versions": versions("torch", "transformers", "trl", "sae_posttrain"),
    }
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(report, indent=2) + "\n")
    for arm in ARMS[1:]:
        print(
            f"{arm}: {report['ratio_of_medians'][arm]:.3f} × plain SFT (by turn {report['ratio_by_turn'][arm]}), "
            f"peak {memory[arm] / memory['plain']:.3f} × ({memory[arm]} MiB of {memory['plain']})"
        )


if __name__ == "__main__":
    main()
