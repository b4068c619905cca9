"""
Kill a training with -9 while it writes a checkpoint, resume, and compare the weights with those of an unkilled run.

For SASFT and steered GRPO (with a changing strength), a random model of about thirty million parameters is trained in
a separate process. The process is killed at chosen points of its second checkpoint: while the weights or the
optimizer's state are written, between files, and after the last file. A second process resumes with
`resume_from_checkpoint=True`.

    python benchmarks/bench_resume.py
"""

import argparse
import hashlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results" / "bench_resume.json"
SAVE_STEPS, STEPS = 2, 6
KILLED = 2 * SAVE_STEPS
"""Step of the checkpoint that is killed."""
KILL_AT = {
    "first tenth of the weights": ("model.safetensors", 0.1),
    "half of the weights": ("model.safetensors", 0.5),
    "first tenth of the optimizer": ("optimizer.pt", 0.1),
    "most of the optimizer": ("optimizer.pt", 0.8),
    "scheduler begun": ("scheduler.pt", 0.0),
    "random states begun": ("rng_state.pth", 0.0),
    "trainer state whole": ("trainer_state.json", 1.0),
}
"""File, and the share of its size that it has when the process is killed. The kill itself lands a little later, and a
safetensors file has its full size before its content is there, so that its shares all mean that it was begun."""


def make_start(folder: Path, width: int, num_blocks: int) -> None:
    """A random model with the lab's tokenizer, and a direction in its middle."""
    import torch
    from transformers import AutoTokenizer, Qwen3Config, Qwen3ForCausalLM

    from sae_posttrain import FeatureSet
    from sae_posttrain.lab.contents import MODEL

    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    torch.manual_seed(0)
    config = Qwen3Config.from_pretrained(MODEL)
    config.update(
        {"hidden_size": width, "intermediate_size": 4 * width, "num_hidden_layers": num_blocks, "layer_types": None}
    )
    Qwen3ForCausalLM(Qwen3Config(**config.to_dict())).save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    features = FeatureSet.from_directions(
        torch.randn(1, width), blocks=[num_blocks // 2], names=["push"], residual_norms=[1.0]
    )
    groups = ("en", "ko", "zh")
    features = replace(features, groups=groups, mean=torch.zeros(1, 3), std=torch.ones(1, 3), target_groups=("zh",))
    features.save(folder / "features.safetensors", overwrite=True)


def train(method: str, start: Path, output_dir: Path) -> None:
    """One training in this process, resumed if there is something to resume from."""
    import torch
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from sae_posttrain import SASFTConfig, SASFTTrainer, SteeredGRPOConfig, SteeredGRPOTrainer
    from sae_posttrain.lab.contents import read_texts

    torch.set_num_threads(1)
    settings: dict[str, Any] = {
        "output_dir": str(output_dir),
        "features": str(start / "features.safetensors"),
        "max_steps": STEPS,
        "save_steps": SAVE_STEPS,
        "save_total_limit": 2,
        "learning_rate": 1e-3,
        "use_cpu": True,
        "bf16": False,
        "gradient_checkpointing": False,
        "report_to": "none",
        "disable_tqdm": True,
        "logging_steps": 1,
    }
    rows = [row for row in read_texts("train") if row["lang"] in ("en", "ko")][:16]
    model = AutoModelForCausalLM.from_pretrained(start / "model")
    tokenizer = AutoTokenizer.from_pretrained(start / "model")
    trainer: Any
    if method == "sft":
        trainer = SASFTTrainer(
            model,
            SASFTConfig(per_device_train_batch_size=2, assistant_only_loss=True, **settings),
            train_dataset=Dataset.from_list([{"lang": row["lang"], "messages": row["messages"]} for row in rows]),
            processing_class=tokenizer,
        )
    else:
        rollouts = {"num_generations": 4, "per_device_train_batch_size": 4, "steps_per_generation": 2}
        trainer = SteeredGRPOTrainer(
            model,
            lambda completion_ids, **_: [sum(ids) % 7 / 7 for ids in completion_ids],
            SteeredGRPOConfig(
                steer_strength=1.0,
                target_hit_rate=0.5,
                blind_reward_patience=0,
                max_completion_length=8,
                gradient_accumulation_steps=1,
                **rollouts,
                **settings,
            ),
            fault=lambda ids, finished: not finished,
            train_dataset=Dataset.from_list([{"prompt": row["messages"][0]["content"]} for row in rows]),
            processing_class=tokenizer,
        )
    trainer.train(resume_from_checkpoint=True)
    strengths = [entry["steer/strength"] for entry in trainer.state.log_history if "steer/strength" in entry]
    print(json.dumps({"resumed_at": trainer._initial_global_step, "strengths": strengths}))


def start_training(method: str, start: Path, output_dir: Path) -> subprocess.Popen:
    command = [sys.executable, __file__, "--train", method, "--start", str(start), "--output-dir", str(output_dir)]
    return subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
    )


def finish(training: subprocess.Popen) -> dict[str, Any]:
    out, err = training.communicate(timeout=900)
    if training.returncode != 0:
        raise RuntimeError(err[-3000:])
    report: dict[str, Any] = json.loads(out.splitlines()[-1])
    report["skipped"] = [line.split(": ", 1)[-1] for line in err.splitlines() if "Skipping the checkpoint" in line]
    return report


def kill_when(training: subprocess.Popen, file: Path, size: int) -> dict[str, int]:
    """Kill as soon as the file has this size; returns the sizes of the files that its folder is left with."""
    while training.poll() is None:
        try:
            reached = file.stat().st_size >= size
        except FileNotFoundError:
            reached = False
        if reached:
            training.send_signal(signal.SIGKILL)
            training.communicate()
            return {path.name: path.stat().st_size for path in sorted(file.parent.iterdir())}
        time.sleep(0.0002)
    raise RuntimeError(f"The training ended before {file.name} was there: {training.communicate()[1][-2000:]}")


def sha256(file: Path) -> str:
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


def measure(method: str, start: Path, folder: Path, kills: list[str]) -> dict[str, Any]:
    """One run that is not interrupted, and one for each kill."""
    last = f"checkpoint-{STEPS}/model.safetensors"
    whole = finish(start_training(method, start, folder / "whole"))
    weights = sha256(folder / "whole" / last)
    files = {path.name: path.stat().st_size for path in (folder / "whole" / f"checkpoint-{KILLED}").iterdir()}
    runs = []
    for name in kills:
        file, share = KILL_AT[name]
        run = folder / f"kill{len(runs)}"
        size = max(1, int(share * files[file]))
        there = kill_when(start_training(method, start, run), run / f"checkpoint-{KILLED}" / file, size)
        resumed = finish(start_training(method, start, run))
        runs.append(
            {
                "kill_at": name,
                "share_written_when_killed": {each: round(size / files[each], 4) for each, size in there.items()},
                "resumed_at": resumed["resumed_at"],
                "skipped": resumed["skipped"],
                "same_weights": sha256(run / last) == weights,
                "same_strengths": resumed["strengths"] == whole["strengths"],
            }
        )
        print(f"{method}, {name}: resumed at step {resumed['resumed_at']}, same weights: {runs[-1]['same_weights']}")
        for path in sorted(run.rglob("*"), reverse=True):  # these are large
            path.rmdir() if path.is_dir() else path.unlink()
    return {"strengths": whole["strengths"], "files_of_a_checkpoint": files, "runs": runs}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", nargs="+", choices=["sft", "grpo"], default=["sft", "grpo"])
    parser.add_argument("--kills", nargs="+", choices=list(KILL_AT), default=list(KILL_AT), metavar="POINT")
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--num-blocks", type=int, default=8)
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--train", choices=["sft", "grpo"], help=argparse.SUPPRESS)  # in a process of its own
    parser.add_argument("--start", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--output-dir", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.train:
        train(arguments.train, arguments.start, arguments.output_dir)
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        make_start(folder, arguments.width, arguments.num_blocks)
        results = {method: measure(method, folder, folder / method, arguments.kills) for method in arguments.methods}
    from machine import hardware, versions  # with torch, which the process that is killed imports by itself

    report = {
        "question": "Does a run that is killed while it writes a checkpoint end, resumed, in the same weights?",
        "settings": {name: getattr(arguments, name) for name in ("methods", "kills", "width", "num_blocks")},
        **results,
        "hardware": hardware(),
        "versions": versions("torch", "transformers", "trl", "sae_posttrain"),
    }
    arguments.out.parent.mkdir(exist_ok=True)
    arguments.out.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
