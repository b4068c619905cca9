"""
What dynamic sampling buys: held-out reward of DAPO over steps and over generated tokens, without it and with fresh
prompts (or, by `--arms none,fresh,same`, with the same prompts again too).

The lab's model learns to answer the lab's questions that can be checked (sums, lists, days, prices, in four
languages); the reward is 1 for a right answer. It knows many of them and is at a loss at others, so that most groups
of its answers are all right or all wrong. All arms start from the same weights and see the same batches of prompts
first; what is measured are unsteered answers to questions of the test split.

    python benchmarks/bench_dynamic_sampling.py

Writes `results/bench_dynamic_sampling.json` and `../docs/dynamic-sampling.png`. Runs that stand in `--work` are not
repeated.
"""

import argparse
import json
import random
import statistics
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from machine import hardware, versions
from tqdm import tqdm
from transformers import AutoModelForCausalLM, AutoTokenizer, ProgressCallback, TrainerCallback

from sae_posttrain import SteeredGRPOConfig, SteeredGRPOTrainer
from sae_posttrain.lab.contents import MODEL, as_messages, read_texts
from sae_posttrain.measure.answers.generate import generate_answers
from sae_posttrain.measure.answers.prompt_tokens import tokenize_prompts
from sae_posttrain.measure.answers.prompts import read_prompts

HERE = Path(__file__).parent
RESULTS = HERE / "results" / "bench_dynamic_sampling.json"
PICTURE = HERE.parent / "docs" / "dynamic-sampling.png"
ARMS = {"none": "without", "fresh": "fresh prompts", "same": "the same prompts again"}
GROUPS, GROUP_SIZE, MAX_NEW_TOKENS = 4, 8, 64
LOGGED = ("rounds", "generated_per_kept", "kept", "all_right", "all_wrong", "shortfall")


class Checked:
    """1 for an answer that holds what a right one holds, whatever the case of its letters."""

    __name__ = "right"

    def __call__(self, completions: Sequence[Any], check: Sequence[str], **kwargs: Any) -> list[float]:
        return [float(is_right(completion[0]["content"], wanted)) for completion, wanted in zip(completions, check)]


def is_right(answer: str, check: str) -> bool:
    return check.casefold() in answer.casefold()


def questions(split: str) -> list[dict[str, Any]]:
    """Those with something to check, and an answer that fits."""
    return [row for row in read_texts(split) if row["check"]]


class HeldOut(TrainerCallback):
    """Share of right answers to held-out questions, at the start and every few steps, with the tokens used so far."""

    def __init__(self, tokenizer: Any, rows: list[dict[str, Any]], every: int):
        self.tokenizer, self.rows, self.every = tokenizer, rows, every
        prompts = read_prompts(as_messages(rows), group_column="lang", target_lang=None)
        self.prompts = tokenize_prompts(tokenizer, prompts)
        self.curve: list[dict[str, float]] = []

    def on_train_begin(self, args, state, control, model=None, **kwargs):
        self.measure(model, state)

    def on_step_end(self, args, state, control, model=None, **kwargs):
        if state.global_step % self.every == 0:
            self.measure(model, state)

    def measure(self, model: Any, state: Any) -> None:
        settings: dict[str, Any] = {"max_new_tokens": MAX_NEW_TOKENS, "temperature": 1.0, "top_p": 1.0, "seed": 0}
        answers, _ = generate_answers(model, self.tokenizer, self.prompts, **settings)
        texts = self.tokenizer.batch_decode(answers, skip_special_tokens=True)
        right = [is_right(text, row["check"]) for text, row in zip(texts, self.rows)]
        self.curve.append(
            {
                "step": state.global_step,
                "generated_tokens": state.num_input_tokens_seen,
                "right": sum(right) / len(right),
            }
        )


def run(mode: str, seed: int, num_steps: int, arguments: argparse.Namespace) -> dict[str, Any]:
    """One arm with one seed."""
    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    rows = [
        {"prompt": [{"role": "user", "content": row["prompt"]}], "check": row["check"]} for row in questions("dev")
    ]
    held_out = random.Random(0).sample(questions("test"), arguments.num_questions)
    held_out.sort(key=lambda row: len(row["prompt"]))
    callback = HeldOut(tokenizer, held_out, arguments.every)
    with tempfile.TemporaryDirectory() as folder:
        args = SteeredGRPOConfig(
            folder,
            num_steered=0,
            dynamic_sampling=mode,
            num_generations=GROUP_SIZE,
            per_device_train_batch_size=GROUPS * GROUP_SIZE,
            max_completion_length=MAX_NEW_TOKENS,
            max_steps=num_steps,
            learning_rate=arguments.learning_rate,
            lr_scheduler_type="constant_with_warmup",
            warmup_steps=3,
            gradient_checkpointing=False,
            bf16=False,
            use_cpu=not torch.cuda.is_available(),
            seed=seed,
            logging_steps=1,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
        )
        trainer = SteeredGRPOTrainer(
            AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32),
            Checked(),
            args,
            train_dataset=Dataset.from_list(rows),
            processing_class=tokenizer,
            callbacks=[callback],
        )
        trainer.remove_callback(ProgressCallback)
        trainer.train()
    history = trainer.state.log_history
    return {
        "arm": mode,
        "seed": seed,
        "curve": callback.curve,
        "zero_spread": [entry["frac_reward_zero_std"] for entry in history if "frac_reward_zero_std" in entry],
        "dynamic": {
            name: [entry[f"dynamic/{name}"] for entry in history if f"dynamic/{name}" in entry] for name in LOGGED
        },
    }


def draw(runs: list[dict[str, Any]]) -> None:
    """Right answers over steps, and over generated tokens: a line an arm, thin ones its seeds."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.6), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, 2, sharey=True)
    for axes, key, label in zip(panels, ("step", "generated_tokens"), ("step", "tokens generated, thousands")):
        scale = 1000 if key == "generated_tokens" else 1
        for number, arm in enumerate(dict.fromkeys(run["arm"] for run in runs)):
            own = [run["curve"] for run in runs if run["arm"] == arm]
            for curve in own:
                places = [point[key] / scale for point in curve]
                axes.plot(places, [100 * point["right"] for point in curve], color=f"C{number}", lw=0.6, alpha=0.5)
            means = [
                (statistics.mean(p[key] for p in points) / scale, 100 * statistics.mean(p["right"] for p in points))
                for points in zip(*own)
            ]
            axes.plot(*zip(*means), color=f"C{number}", lw=2, marker="o", ms=3, label=ARMS[arm])
        axes.set_xlabel(label)
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylabel("right answers, held-out questions, %")
    panels[0].legend(frameon=False, fontsize=8, title="dynamic sampling")
    figure.savefig(PICTURE, dpi=150)


def summary(runs: list[dict[str, Any]], steps: int) -> dict[str, Any]:
    """Of each arm: right answers by seed at the start, after `steps` and in the end, tokens, means of the log."""
    found: dict[str, Any] = {}
    for arm in dict.fromkeys(run["arm"] for run in runs):
        own = [run for run in runs if run["arm"] == arm]
        dynamic = {
            name: [value for run in own for value in run["dynamic"][name] if value is not None] for name in LOGGED
        }
        found[arm] = {
            "start": [round(run["curve"][0]["right"], 4) for run in own],
            f"after {steps} steps": [
                round(next(point["right"] for point in run["curve"] if point["step"] == steps), 4) for run in own
            ],
            "end": [round(run["curve"][-1]["right"], 4) for run in own],
            "generated_tokens": [run["curve"][-1]["generated_tokens"] for run in own],
            "zero_spread": round(statistics.mean(value for run in own for value in run["zero_spread"]), 4),
            **{name: round(statistics.mean(values), 4) for name, values in dynamic.items() if values},
        }
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--plain-steps", type=int, default=136, help="without, which takes fewer tokens a step")
    parser.add_argument("--every", type=int, default=8, help="steps between two measurements")
    parser.add_argument("--learning-rate", type=float, default=2e-4)
    parser.add_argument("--num-questions", type=int, default=300, help="held-out questions")
    parser.add_argument("--arms", default="none,fresh", help=f"of {', '.join(ARMS)}, with commas")
    parser.add_argument("--threads", type=int, default=0, help="of torch; 0 leaves its default")
    parser.add_argument("--work", type=Path, default=Path("runs/dynamic_sampling"))
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    arguments.work.mkdir(parents=True, exist_ok=True)
    runs = []
    jobs = [(arm, seed) for seed in range(arguments.seeds) for arm in arguments.arms.split(",")]
    for arm, seed in tqdm(jobs, unit="run"):
        num_steps = arguments.plain_steps if arm == "none" else arguments.steps
        file = arguments.work / f"{arm}-{seed}-{num_steps}-{arguments.learning_rate}.json"
        if not file.exists():
            file.write_text(json.dumps(run(arm, seed, num_steps, arguments)))
        runs.append(json.loads(file.read_text()))
    kept_out = ("work", "threads", "arms")
    report = {
        "question": "Held-out reward of DAPO over steps and generated tokens, without and with dynamic sampling.",
        "settings": {name: value for name, value in vars(arguments).items() if name not in kept_out}
        | {"groups": GROUPS, "group_size": GROUP_SIZE, "max_new_tokens": MAX_NEW_TOKENS},
        "summary": summary(runs, arguments.steps),
        "runs": runs,
        "hardware": hardware(),
        "versions": versions("torch", "transformers", "trl", "sae_posttrain"),
    }
    RESULTS.write_text(json.dumps(report) + "\n")
    draw(runs)
    for arm, values in report["summary"].items():
        print(f"{ARMS[arm]}: {values}")


if __name__ == "__main__":
    main()
