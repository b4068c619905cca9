"""
How the time of two operations grows: the feature penalty of a training step, and reading every feature of an SAE.

One axis at a time is doubled and the others stay the same. Time is processor time, the smallest of several repeats.
The limit: the penalty reads N tokens of width D with F features in each of B blocks. This takes 6·N·D·F·B operations
with the backward pass, and reads the residual from memory once (and writes its gradient once), N·D·B numbers. Reading
an SAE takes 2·N·D·F operations. So each time should be a straight line along every axis. A line is fitted to the
points, and the largest distance of a point from the line is reported, as a share of the longest time.

For several processes, calls of `torch.distributed` are counted instead: in three steps and one log of SASFT, compared
with plain SFT, in 1, 2 and 4 processes.

    python benchmarks/bench_growth.py --tokenizer models/help-qwen3-7m
"""

import argparse
import json
import os
import socket
import tempfile
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from machine import hardware, seconds, versions
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from tqdm import tqdm
from transformers import AutoTokenizer, Qwen3Config, Qwen3ForCausalLM
from trl import SFTConfig, SFTTrainer

from sae_posttrain import FeatureSet, SASFTConfig, SASFTTrainer
from sae_posttrain.estimate.live_bytes import LiveBytes
from sae_posttrain.features.read.statistics import GroupSums
from sae_posttrain.penalty.feature_penalty import FeaturePenalty
from sae_posttrain.penalty.groups import GroupTable
from sae_posttrain.saes import FrozenSAE, SAESource

HERE = Path(__file__).parent
RESULTS = HERE / "results" / "bench_growth.json"
PICTURE = HERE.parent / "docs" / "growth.png"
PENALTY_BASE = {"tokens": 4096, "blocks": 2, "features": 16, "width": 1024}
PENALTY_AXES = {
    "tokens": [1024, 2048, 4096, 8192, 16384],
    "blocks": [1, 2, 4, 8, 16],
    "features": [16, 32, 64, 128, 256],
    "width": [256, 512, 1024, 2048, 4096],
}
READING_BASE = {"tokens": 512, "blocks": 1, "features": 8192, "width": 512}
READING_AXES = {
    "tokens": [128, 256, 512, 1024, 2048],
    "blocks": [1, 2, 4, 8],
    "features": [2048, 4096, 8192, 16384, 32768],
    "width": [128, 256, 512, 1024, 2048],
}
PROCESSES = (1, 2, 4)
TARGET = "zh"


def some_features(blocks: int, features: int, width: int) -> FeatureSet:
    """Random features with statistics of two groups."""
    num = blocks * features
    own = [block for block in range(blocks) for _ in range(features)]
    bare = FeatureSet.from_directions(
        torch.randn(num, width, generator=torch.Generator().manual_seed(0)),
        blocks=own,
        names=[f"{block}.{i}" for i, block in enumerate(own)],
        residual_norms=[1.0] * num,
    )
    return replace(
        bare, target_groups=(TARGET,), groups=("en", TARGET), mean=torch.zeros(num, 2), std=torch.ones(num, 2)
    )


def penalty_call(tokens: int, blocks: int, features: int, width: int) -> Callable[[], Any]:
    """The penalty of a batch of rows of 512 tokens, half of them to be penalised, with its gradient."""
    feature_set = some_features(blocks, features, width)
    groups = GroupTable.for_features(feature_set, (TARGET,), "error")
    penalty = FeaturePenalty(feature_set, groups)
    rows = max(1, tokens // 512)
    shape = (rows, tokens // rows)
    values = {place: torch.randn(*shape, width, requires_grad=True) for place in penalty.places}
    group_ids = torch.zeros(shape, dtype=torch.int64)
    mask = (torch.arange(shape[1]) % 2 == 0).expand(shape)

    def run() -> None:
        reading = penalty(values, group_ids, mask)
        if int(reading.num_penalised) != tokens // 2:
            raise SystemExit(f"{int(reading.num_penalised)} of {tokens} tokens were penalised instead of half.")
        torch.autograd.grad(reading.excess_sum, list(values.values()))

    return run


def reading_call(tokens: int, blocks: int, features: int, width: int) -> Callable[[], Any]:
    """The sums of every feature of one TopK SAE a block, over so many tokens of two groups."""
    generator = torch.Generator().manual_seed(0)
    sae = FrozenSAE(
        W_enc=torch.randn(features, width, generator=generator).T / width**0.5,
        b_enc=torch.zeros(features),
        W_dec=None,
        b_dec=torch.zeros(width),
        activation="topk",
        block=0,
        source=SAESource("", None, "random", "qwen_scope", Path("random")),
        k=32,
    )
    residual = torch.randn(tokens, width, generator=generator)
    groups = torch.arange(tokens) % 2

    def run() -> None:
        for _ in range(blocks):
            GroupSums.zeros(2, features, residual.device).add(residual, groups, sae)

    return run


def measure_axes(
    make: Callable[..., Callable[[], Any]], base: dict[str, int], axes: dict[str, list[int]], repeats: int
) -> dict[str, Any]:
    """Least time and most bytes of each point, and how straight the line is."""
    result = {}
    for axis, sizes in axes.items():
        taken, peaks = [], []
        for size in tqdm(sizes, desc=f"{make.__name__}: {axis}", unit="point"):
            call = make(**{**base, axis: size})
            call()
            own = []
            for _ in range(repeats):
                started = seconds()
                call()
                own.append(seconds() - started)
            taken.append(min(own))
            with LiveBytes() as live:
                call()
            peaks.append(live.peak)
        slope, constant = np.polyfit(sizes, taken, 1)
        off = np.abs(np.array(taken) - (slope * np.array(sizes) + constant)).max() / max(taken)
        result[axis] = {
            "sizes": sizes,
            "seconds": [round(value, 6) for value in taken],
            "peak_bytes": peaks,
            "seconds_per_unit": slope,
            "seconds_without_any": constant,
            "worst_point_off_the_line": round(float(off), 4),
        }
    return result


def collectives(num_processes: int, tokenizer: str) -> dict[str, dict[str, int]]:
    """Calls of `torch.distributed` by the first of so many processes: plain SFT and SASFT, three steps and one log."""
    with socket.socket() as free, tempfile.TemporaryDirectory() as folder:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
        free.close()
        torch.multiprocessing.spawn(_count_collectives, (num_processes, port, tokenizer, folder), nprocs=num_processes)
        return json.loads((Path(folder) / "calls.json").read_text())


def _count_collectives(rank: int, num_processes: int, port: int, tokenizer: str, folder: str) -> None:
    if num_processes > 1:
        os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(num_processes)}
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "ACCELERATE_USE_CPU": "true"}
    torch.set_num_threads(1)
    own = AutoTokenizer.from_pretrained(tokenizer)
    rows = [{"lang": lang, "prompt": "Title:", "completion": " a page of some words"} for lang in ("en", TARGET)] * 32
    settings = {"per_device_train_batch_size": 4, "max_steps": 3, "logging_steps": 3, "use_cpu": True, "bf16": False}
    settings |= {"report_to": "none", "save_strategy": "no", "disable_tqdm": True, "gradient_checkpointing": False}
    calls: Counter[str] = Counter()
    for name in ("all_reduce", "all_gather", "all_gather_into_tensor", "all_gather_object", "broadcast", "barrier"):
        original = getattr(torch.distributed, name)

        def counted(*args: Any, _name: str = name, _original: Callable = original, **kwargs: Any) -> Any:
            calls[_name] += 1
            return _original(*args, **kwargs)

        setattr(torch.distributed, name, counted)
    found = {}
    for trainer_class, config in ((SFTTrainer, SFTConfig), (SASFTTrainer, SASFTConfig)):
        torch.manual_seed(0)
        shape = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2}
        model = Qwen3ForCausalLM(Qwen3Config(vocab_size=len(own), num_key_value_heads=2, head_dim=32, **shape))
        held = trainer_class is SASFTTrainer
        trainer: Any = trainer_class(
            model,
            args=config(str(Path(folder) / config.__name__), **settings),
            train_dataset=Dataset.from_list(rows),
            processing_class=own,
            **({"feature_set": some_features(2, 4, 64)} if held else {}),
        )
        calls.clear()
        trainer.train()
        found["SASFT" if held else "plain SFT"] = dict(calls)
    if rank == 0:
        (Path(folder) / "calls.json").write_text(json.dumps(found))
    if torch.distributed.is_initialized():
        torch.distributed.barrier()
        torch.distributed.destroy_process_group()


def draw(report: dict[str, Any], path: Path) -> None:
    """Time along each axis, with its straight line."""
    figure = Figure(figsize=(11, 5), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    rows = figure.subplots(2, 4)
    for own, (part, title) in zip(rows, (("penalty", "feature penalty"), ("reading", "reading an SAE"))):
        for axes, (axis, found) in zip(own, report[part].items()):
            sizes, taken = np.array(found["sizes"]), 1000 * np.array(found["seconds"])
            line = 1000 * (found["seconds_per_unit"] * sizes + found["seconds_without_any"])
            axes.plot(sizes, line, color="0.75", linewidth=1.5)
            axes.plot(sizes, taken, "o", color="C0", markersize=5)
            axes.set_xlabel("features of a block" if axis == "features" else axis)
            axes.set_ylim(bottom=0)
            axes.set_xlim(left=0)
            axes.spines[["top", "right"]].set_visible(False)
        own[0].set_ylabel(f"{title},\nms")
    figure.savefig(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokenizer", required=True, help="folder of a tokenizer")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=0, help="of torch; 0 leaves its default")
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    report: dict[str, Any] = {
        "question": "How the feature penalty and the reading of an SAE grow.",
        "settings": {
            "repeats": arguments.repeats,
            "threads": arguments.threads,
            "penalty": PENALTY_BASE,
            "reading": READING_BASE,
        },
        "penalty": measure_axes(penalty_call, PENALTY_BASE, PENALTY_AXES, arguments.repeats),
        "reading": measure_axes(reading_call, READING_BASE, READING_AXES, arguments.repeats),
        "collectives_in_three_steps_and_a_log": {
            str(number): collectives(number, arguments.tokenizer) for number in PROCESSES
        },
        "hardware": hardware(),
        "versions": versions("torch", "transformers", "trl", "sae_posttrain"),
    }
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(report, indent=2) + "\n")
    draw(report, PICTURE)
    for part in ("penalty", "reading"):
        off = {axis: f"{100 * found['worst_point_off_the_line']:.1f} %" for axis, found in report[part].items()}
        print(f"{part}: the worst point lies off the line by {off}")
    for number, calls in report["collectives_in_three_steps_and_a_log"].items():
        print(f"{number} processes: {calls}")


if __name__ == "__main__":
    main()
