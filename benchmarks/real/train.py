"""
Train one arm of `repetition.yaml` and write the model with the adapter merged, and the log.

    python benchmarks/real/train.py plain --model M --prompts prompts/train.jsonl --features features --work runs/real

A run that was cut off goes on from its last checkpoint; a finished one is not repeated. `--features` is a folder of
`<name>.safetensors`, calibrated. `--answers` are greedy answers of the model to the first training prompts
(`answer.py`), which the arm `unlikelihood` learns from.
"""

import argparse
import json
import random
import sys
import time
from pathlib import Path
from typing import Any

import torch
import yaml
from datasets import Dataset
from peft import LoraConfig
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.trainer_utils import get_last_checkpoint
from trl.rewards import get_repetition_penalty_reward, get_soft_overlong_punishment

from sae_posttrain import (
    EndlessRepetitionReward,
    FeatureSet,
    SteeredGRPOConfig,
    SteeredGRPOTrainer,
)
from sae_posttrain.baselines import UnlikelihoodConfig, UnlikelihoodTrainer
from sae_posttrain.baselines.unlikelihood.loss import loop_mask

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent), str(HERE.parent / "evidence")]

from machine import hardware, versions  # noqa: E402
from settings import merged  # noqa: E402

KEPT = ("step", "loss", "reward", "kl", "entropy", "grad_norm", "completions/mean_length", "frac_reward_zero_std")

OWN = ("steer", "cold", "unlikelihood")  # beginnings of the names of this library's metrics


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("arm")
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--prompts", type=Path, required=True)
    parser.add_argument("--features", type=Path, required=True)
    parser.add_argument("--answers", type=Path)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=0, help="threads of torch; 0 leaves its default")
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    definitions = yaml.safe_load((HERE / "repetition.yaml").read_text(encoding="utf-8"))
    settings = merged(definitions["common"], definitions["arms"][arguments.arm] or {})
    folder = arguments.work / f"{arguments.arm}-{arguments.seed}"
    finished = folder / "training.json"
    if finished.exists():
        if json.loads(finished.read_text(encoding="utf-8"))["settings"] != settings:
            raise ValueError(f"{finished} was trained with other settings. Remove the folder to train it again.")
        return
    started = time.perf_counter()
    make = make_unlikelihood_trainer if settings.get("method") == "unlikelihood" else make_trainer
    trainer = make(arguments, settings, folder / "checkpoints")
    checkpoint = get_last_checkpoint(str(folder / "checkpoints")) if (folder / "checkpoints").exists() else None
    trainer.train(resume_from_checkpoint=checkpoint)
    model = trainer.model.merge_and_unload()
    model.to(torch.bfloat16).save_pretrained(folder / "model")
    trainer.processing_class.save_pretrained(folder / "model")
    log = [
        {key: value for key, value in entry.items() if key in KEPT or key.startswith(OWN)}
        for entry in trainer.state.log_history
        if "loss" in entry
    ]
    result = {
        "arm": arguments.arm,
        "seed": arguments.seed,
        "settings": settings,
        "log": log,
        "seconds": round(time.perf_counter() - started, 1),
        "resumed_from": checkpoint and Path(checkpoint).name,
        "hardware": hardware(),
        "versions": versions("torch", "transformers", "trl", "peft", "sae_posttrain"),
    }
    finished.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


def make_trainer(arguments: argparse.Namespace, settings: dict[str, Any], folder: Path) -> SteeredGRPOTrainer:
    tokenizer = AutoTokenizer.from_pretrained(arguments.model, padding_side="left")
    model = AutoModelForCausalLM.from_pretrained(arguments.model, dtype=torch.bfloat16)
    rows = [json.loads(line) for line in arguments.prompts.read_text(encoding="utf-8").splitlines()]
    short = [row for row in rows if num_tokens(tokenizer, row["prompt"]) <= settings["max_prompt"]]
    random.Random(arguments.seed).shuffle(short)
    grpo = settings["grpo"]
    rewards: list[Any] = [EndlessRepetitionReward(tokenizer.eos_token_id)]
    if "overlong" in settings:
        rewards.append(get_soft_overlong_punishment(grpo["max_completion_length"], settings["overlong"]))
    if "ngram" in settings:
        rewards.append(get_repetition_penalty_reward(ngram_size=settings["ngram"]))
    feature_set = None
    if "features" in settings:
        feature_set = FeatureSet.load(arguments.features / f"{settings['features']}.safetensors")
    config = SteeredGRPOConfig(str(folder), seed=arguments.seed, **common_settings(), **grpo)
    return SteeredGRPOTrainer(
        model,
        rewards,
        config,
        feature_set=feature_set,
        train_dataset=Dataset.from_list([{"prompt": row["prompt"]} for row in short]),
        processing_class=tokenizer,
        peft_config=LoraConfig(task_type="CAUSAL_LM", **settings["lora"]),
    )


def make_unlikelihood_trainer(
    arguments: argparse.Namespace, settings: dict[str, Any], folder: Path
) -> UnlikelihoodTrainer:
    """
    The model's own greedy answers: those that end by themselves are the ordinary data, and the loops of the others are
    what becomes unlikely.
    """
    tokenizer = AutoTokenizer.from_pretrained(arguments.model)
    prompts = [json.loads(line) for line in arguments.prompts.read_text(encoding="utf-8").splitlines()]
    ordinary, unlikely = [], []
    for answer in map(json.loads, arguments.answers.read_text(encoding="utf-8").splitlines()):
        prompt = prompts[answer["prompt"]]["prompt"]
        ids = tokenizer(answer["text"], add_special_tokens=False)["input_ids"]
        mask = loop_mask(ids, finished=not answer["cut"])
        if any(mask):
            asked = tokenizer.apply_chat_template(prompt, add_generation_prompt=True, return_dict=True)["input_ids"]
            unlikely.append({"input_ids": [*asked, *ids], "unlikely": [0] * len(asked) + [int(bit) for bit in mask]})
        elif not answer["cut"]:
            ordinary.append({"prompt": prompt, "completion": [{"role": "assistant", "content": answer["text"]}]})
    print(f"{len(ordinary)} answers that end, {len(unlikely)} with a loop")
    config = UnlikelihoodConfig(str(folder), seed=arguments.seed, **common_settings(), **settings["unlikelihood"])
    return UnlikelihoodTrainer(
        AutoModelForCausalLM.from_pretrained(arguments.model, dtype=torch.bfloat16),
        config,
        unlikely_dataset=Dataset.from_list(unlikely),
        train_dataset=Dataset.from_list(ordinary),
        processing_class=tokenizer,
        peft_config=LoraConfig(task_type="CAUSAL_LM", **settings["lora"]),
    )


def common_settings() -> dict[str, Any]:
    return {
        "bf16": True,
        "use_cpu": not torch.cuda.is_available(),
        "gradient_checkpointing": False,
        "logging_steps": 1,
        "save_steps": 5,
        "save_total_limit": 1,
        "report_to": "none",
        "disable_tqdm": True,
    }


def num_tokens(tokenizer: Any, prompt: list[dict[str, str]]) -> int:
    return len(tokenizer.apply_chat_template(prompt, add_generation_prompt=True, return_dict=True)["input_ids"])


if __name__ == "__main__":
    main()
