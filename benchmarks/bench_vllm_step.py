"""
Time of a steered GRPO step by what generates its rollouts: `generate`, continuous batching, and vLLM in the same
process, one rollout of eight steered.

The three trainers start from the same weights and alternate, a few steps at a time, so that other load on the machine
affects all. The first step of each turn is not counted. Every rollout has `--max-new-tokens` tokens. On a CPU vLLM
runs eagerly in float32, with one thread, as the others do.

In an environment with vLLM:

    python benchmarks/bench_vllm_step.py --model models/help-qwen3-7m --data data/help
"""

import argparse
import json
import os
import statistics
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")

import torch
from bench_grpo_step import BLOCK, STRENGTH, StepTimes
from datasets import Dataset
from machine import hardware, versions
from transformers import AutoModelForCausalLM, AutoTokenizer, ContinuousBatchingConfig
from trl.generation import vllm_generation

from sae_posttrain import EndlessRepetitionReward, FeatureSet, SteeredGRPOConfig, SteeredGRPOTrainer
from sae_posttrain.measure.answers.prompts import read_rows

RESULTS = Path(__file__).parent / "results" / "bench_vllm_step.json"

PAGE = "page_size" if "page_size" in ContinuousBatchingConfig.__dataclass_fields__ else "block_size"
"""What transformers calls the tokens of a page of its cache; its older releases, which vLLM takes, the second."""

ENGINES: dict[str, dict[str, Any]] = {
    "generate": {},
    "continuous batching": {
        "use_transformers_continuous_batching": True,
        "transformers_continuous_batching_config": {PAGE: 32, "num_blocks": 256, "max_batch_tokens": 1024},
    },
    "vLLM": {"use_vllm": True, "vllm_mode": "colocate", "vllm_max_model_length": 512},
}


def make_trainer(engine: str, arguments: argparse.Namespace, folder: str) -> tuple[Any, StepTimes]:
    """A steered trainer whose rollouts one engine makes, with everything else the same."""
    tokenizer = AutoTokenizer.from_pretrained(arguments.model)
    model = AutoModelForCausalLM.from_pretrained(arguments.model, dtype=torch.float32)
    direction = torch.randn(1, model.config.hidden_size, generator=torch.Generator().manual_seed(0))
    features = FeatureSet.from_directions(direction, blocks=[BLOCK], names=["push"], residual_norms=[arguments.norm])
    rows = list(read_rows(sorted(Path(arguments.data).glob("en.jsonl*"))[0]))[:200]
    length = arguments.max_new_tokens
    shortest = {"min_tokens": length} if engine == "vLLM" else {"min_new_tokens": length}
    config = SteeredGRPOConfig(
        f"{folder}/{engine.replace(' ', '-')}",
        steer_strength=STRENGTH,
        max_steps=arguments.steps_per_turn,
        per_device_train_batch_size=8 * arguments.groups,
        num_generations=8,
        max_completion_length=length,
        generation_kwargs={} if engine == "continuous batching" else shortest,  # it has no least length
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
        **ENGINES[engine],
    )
    times = StepTimes()
    trainer = SteeredGRPOTrainer(
        model,
        EndlessRepetitionReward(tokenizer.eos_token_id),
        args=config,
        train_dataset=Dataset.from_list([{"prompt": [{"role": "user", "content": row["title"]}]} for row in rows]),
        processing_class=tokenizer,
        feature_set=features,
        callbacks=[times],
    )
    return trainer, times


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="folder of a small causal language model")
    parser.add_argument("--data", required=True, help="folder with en.jsonl[.gz], whose titles are the prompts")
    parser.add_argument("--engines", nargs="+", choices=list(ENGINES), default=list(ENGINES), help="in place of all")
    parser.add_argument("--max-new-tokens", type=int, default=128)
    parser.add_argument("--groups", type=int, default=2, help="of eight rollouts in a step")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--steps-per-turn", type=int, default=3)
    parser.add_argument("--norm", type=float, default=191.0, help="median residual norm at the pushed block")
    arguments = parser.parse_args()
    of_machine = {"hardware": hardware(), "versions": versions("torch", "transformers", "trl", "sae_posttrain")}
    if not torch.cuda.is_available():
        import vllm._custom_ops

        vllm._custom_ops._supports_onednn = False  # packed weights of the CPU backend cannot be synchronised
        vllm_generation.LLM = partial(vllm_generation.LLM, dtype="float32", enforce_eager=True)
    engines = ["generate", *(name for name in arguments.engines if name != "generate")]  # which others are divided by
    lengths: dict[str, list[float]] = {name: [] for name in engines}
    ratios: dict[str, list[float]] = {name: [] for name in engines}
    with tempfile.TemporaryDirectory() as folder:
        made = {name: make_trainer(name, arguments, folder) for name in engines}
        for turn in range(arguments.turns):
            medians = {}
            for name in list(made) if turn % 2 == 0 else reversed(list(made)):
                trainer, times = made[name]
                before = len(times.seconds)
                trainer.train()
                medians[name] = statistics.median(times.seconds[before:])
                lengths[name].append(trainer.state.log_history[-2]["completions/mean_length"])
            for name in engines:
                ratios[name].append(round(medians[name] / medians["generate"], 4))
    seconds = {name: times.seconds for name, (_, times) in made.items()}
    report = {
        "question": "Time of a steered GRPO step with continuous batching and with vLLM against `generate`.",
        "settings": {name: value for name, value in vars(arguments).items() if name not in ("model", "data")},
        "seconds": {name: [round(value, 4) for value in values] for name, values in seconds.items()},
        "median_seconds": {name: statistics.median(values) for name, values in seconds.items()},
        "mean_length": {name: statistics.mean(values) for name, values in lengths.items()},
        "ratio_by_turn": ratios,
        **of_machine,
    }
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(report, indent=2) + "\n")
    for name, value in report["median_seconds"].items():  # type: ignore[attr-defined]
        print(f"{name}: {value:.3f} s a step, by turn {ratios[name]} of generate")


if __name__ == "__main__":
    main()
