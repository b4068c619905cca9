"""
Time of a GRPO step with one steered rollout of eight, as a ratio to plain `GRPOTrainer`, in one process.

Both trainers start from the same weights and alternate, a few steps at a time, so that other load on the machine
affects both. The first step of each turn is not counted. With equal lengths, every rollout has exactly
`--max-new-tokens` tokens. With natural lengths, a rollout ends at its end token, and a loop does not end.

    python benchmarks/bench_grpo_step.py --model models/help-qwen3-7m --data data/help
"""

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from machine import hardware, versions
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
from trl import GRPOTrainer

from sae_posttrain import EndlessRepetitionReward, FeatureSet, SteeredGRPOConfig, SteeredGRPOTrainer
from sae_posttrain.measure.answers.prompts import read_rows

RESULTS = Path(__file__).parent / "results" / "bench_grpo_step.json"
BLOCK, STRENGTH = 4, 0.5


class StepTimes(TrainerCallback):
    """Seconds of each step, the first of a call to `train` left out."""

    def __init__(self):
        self.seconds: list[float] = []
        self._started = 0.0

    def on_step_begin(self, args, state, control, **kwargs):
        self._started = time.perf_counter()

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step > 1:
            self.seconds.append(time.perf_counter() - self._started)


def make_trainer(
    steered: bool, equal_lengths: bool, arguments: argparse.Namespace, folder: str
) -> tuple[Any, StepTimes]:
    """A plain or a steered trainer, with everything else the same."""
    tokenizer = AutoTokenizer.from_pretrained(arguments.model)
    model = AutoModelForCausalLM.from_pretrained(arguments.model, dtype=torch.float32)
    width = model.config.hidden_size
    direction = torch.randn(1, width, generator=torch.Generator().manual_seed(0))
    features = FeatureSet.from_directions(direction, blocks=[BLOCK], names=["push"], residual_norms=[arguments.norm])
    rows = list(read_rows(sorted(Path(arguments.data).glob("en.jsonl*"))[0]))[:200]
    dataset = Dataset.from_list([{"prompt": [{"role": "user", "content": row["title"]}]} for row in rows])
    config = SteeredGRPOConfig(
        folder,
        num_steered=1 if steered else 0,
        steer_strength=STRENGTH,
        max_steps=arguments.steps_per_turn,
        per_device_train_batch_size=8 * arguments.groups,
        num_generations=8,
        max_completion_length=arguments.max_new_tokens,
        generation_kwargs={"min_new_tokens": arguments.max_new_tokens} if equal_lengths else None,
        temperature=arguments.temperature,
        learning_rate=1e-6,
        use_cpu=not torch.cuda.is_available(),
        bf16=torch.cuda.is_available(),
        gradient_checkpointing=False,
        disable_dropout=True,
        blind_reward_patience=0,
        save_strategy="no",
        logging_steps=arguments.steps_per_turn,
        report_to="none",
        disable_tqdm=True,
        seed=0,
    )
    reward = EndlessRepetitionReward(tokenizer.eos_token_id)
    options: dict[str, Any] = {"args": config, "train_dataset": dataset, "processing_class": tokenizer}
    times = StepTimes()
    if steered:
        trainer: Any = SteeredGRPOTrainer(model, reward, feature_set=features, callbacks=[times], **options)
    else:
        trainer = GRPOTrainer(model, reward, callbacks=[times], **options)
    return trainer, times


def measure(equal_lengths: bool, arguments: argparse.Namespace) -> dict[str, Any]:
    """Step times of both, their medians, and the ratio turn by turn."""
    with tempfile.TemporaryDirectory() as folder:
        made = {
            name: make_trainer(name == "steered", equal_lengths, arguments, folder) for name in ("plain", "steered")
        }
        ratios, lengths = [], {name: [] for name in made}
        for turn in range(arguments.turns):
            medians = {}
            for name in list(made) if turn % 2 == 0 else reversed(list(made)):
                trainer, times = made[name]
                before = len(times.seconds)
                trainer.train()
                medians[name] = statistics.median(times.seconds[before:])
                lengths[name].append(trainer.state.log_history[-2]["completions/mean_length"])
            ratios.append(medians["steered"] / medians["plain"])
    seconds = {name: times.seconds for name, (_, times) in made.items()}
    return {
        "seconds": {name: [round(value, 4) for value in values] for name, values in seconds.items()},
        "median_seconds": {name: statistics.median(values) for name, values in seconds.items()},
        "mean_length": {name: statistics.mean(values) for name, values in lengths.items()},
        "ratio_of_medians": statistics.median(seconds["steered"]) / statistics.median(seconds["plain"]),
        "ratio_by_turn": [round(ratio, 4) for ratio in ratios],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="folder of a small causal language model")
    parser.add_argument("--data", required=True, help="folder with en.jsonl[.gz], whose titles are the prompts")
    parser.add_argument("--max-new-tokens", type=int, default=128)
    parser.add_argument("--temperature", type=float, default=1.0)
    parser.add_argument("--groups", type=int, default=2, help="of eight rollouts in a step")
    parser.add_argument("--turns", type=int, default=8)
    parser.add_argument("--steps-per-turn", type=int, default=5)
    parser.add_argument("--norm", type=float, default=191.0, help="median residual norm at the pushed block")
    parser.add_argument("--threads", type=int, default=0, help="of torch; 0 leaves its default")
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    report = {
        "question": "Time of a GRPO step with one steered rollout of eight against plain GRPOTrainer.",
        "settings": {name: value for name, value in vars(arguments).items() if name not in ("model", "data")},
        "equal_lengths": measure(True, arguments),
        "natural_lengths": measure(False, arguments),
        "hardware": hardware(),
        "versions": versions("torch", "transformers", "trl", "sae_posttrain"),
    }
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(report, indent=2) + "\n")
    for name in ("equal_lengths", "natural_lengths"):
        result = report[name]
        seconds = result["median_seconds"]
        print(
            f"{name}: plain {seconds['plain']:.3f} s, steered {seconds['steered']:.3f} s, "
            f"ratio {result['ratio_of_medians']:.3f} (by turn {result['ratio_by_turn']}), "
            f"mean length {result['mean_length']['plain']:.0f} and {result['mean_length']['steered']:.0f}"
        )


if __name__ == "__main__":
    main()
