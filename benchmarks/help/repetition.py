"""
Plain DAPO against steered GRPO and its controls on the help pages: the same start, prompts, steps, rewards and seeds;
evaluated unsteered on pages not trained on.

    python benchmarks/help/repetition.py --data data/help --start runs/help/start --features runs/help/repetition \
        --arms final --seeds 0,1,2 --split test

The start is made by `start.py`, the features by `repetition_features.py`. Every run of an arm with a seed appends one
line to `results/repetition_<split>.jsonl`; runs that stand there are not repeated. The arm `before` is the start
itself. Answers go to `--work`, which can be thrown away.
"""

import argparse
import json
import random
import shutil
import time
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import yaml
from code_switching import hardware, read_results
from datasets import Dataset
from held_out import measure_held_out
from negatives import NO_STRENGTH, GreedyNegatives, HandMadeLoops
from pages import as_example, load_pages, rows_of, split_ids
from transformers import AutoModelForCausalLM, AutoTokenizer

from sae_posttrain import (
    EndlessRepetitionReward,
    FeatureSet,
    SteeredGRPOConfig,
    SteeredGRPOTrainer,
    evaluate,
    find_loop,
)
from sae_posttrain.measure.answers.generate import generate_answers

HERE = Path(__file__).parent
MAX_NEW_TOKENS = 160
TEMPERATURE = 0.25  # of the evaluation: the start loops in about 4 of 100 answers
NUM_GREEDY = 200
MAX_PROMPT = 50  # tokens; longer titles are left out of training

REPLACED = {"handmade": HandMadeLoops, "greedy": GreedyNegatives}  # negatives that no push makes


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of <lang>.jsonl[.gz]")
    parser.add_argument("--start", type=Path, required=True, help="folder of the model that RL starts from")
    parser.add_argument("--features", type=Path, required=True, help="folder of <negative>.safetensors")
    parser.add_argument("--arms", required=True, help="a list of repetition_arms.yaml, or names of arms with commas")
    parser.add_argument("--seeds", default="0", help="with commas")
    parser.add_argument("--split", choices=["dev", "test"], default="dev")
    parser.add_argument("--limit", type=int, help="held-out prompts, drawn at random; all if left out")
    parser.add_argument("--work", type=Path, default=Path("runs/help/repetition"))
    parser.add_argument("--results", type=Path, default=HERE / "results", help="folder of the raw results")
    parser.add_argument("--threads", type=int, default=0, help="of torch; 0 leaves its default")
    arguments = parser.parse_args(argv)
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    definitions = yaml.safe_load((HERE / "repetition_arms.yaml").read_text(encoding="utf-8"))
    names = definitions.get("lists", {}).get(arguments.arms) or arguments.arms.split(",")
    results = arguments.results / f"repetition_{arguments.split}.jsonl"
    results.parent.mkdir(parents=True, exist_ok=True)
    for seed in map(int, arguments.seeds.split(",")):
        for name in names:
            if any(r["arm"] == name and r["seed"] == seed for r in read_results(results)):
                print(f"{name}, seed {seed}: done already")
                continue
            arm = {"negative": "none"} if name == "before" else definitions["arms"][name]
            settings = {**definitions["common"], **arm.get("config", {})}
            result = run(name, arm["negative"], dict(settings), seed, arguments)
            with open(results, "a", encoding="utf-8") as file:
                file.write(json.dumps(result, ensure_ascii=False) + "\n")
            print(summary_line(result), flush=True)


def run(
    name: str, negative: str, settings: dict[str, Any], seed: int, arguments: argparse.Namespace
) -> dict[str, Any]:
    """Train an arm with a seed, and measure it; the arm `before` is measured only."""
    pages = load_pages(arguments.data)
    splits = split_ids(pages, num_held_out=150)
    tokenizer = AutoTokenizer.from_pretrained(arguments.start)
    model = AutoModelForCausalLM.from_pretrained(arguments.start, dtype=torch.float32)
    log: list[dict[str, Any]] = []
    started = time.perf_counter()
    folder = arguments.work / f"{arguments.split}-{name}-{seed}"
    if name != "before":
        train = [as_example(row) for row in rows_of(pages, splits, "train")]
        features = load_features(arguments.features, negative, seed)
        log = train_arm(model, tokenizer, train, negative, settings, seed, folder, feature_set=features)
    training_seconds = time.perf_counter() - started
    held_out = [as_example(row) for row in rows_of(pages, splits, arguments.split)]
    if arguments.limit:
        held_out = random.Random(0).sample(held_out, arguments.limit)
    return {
        "arm": name,
        "seed": seed,
        "split": arguments.split,
        "negative": negative,
        "settings": settings,
        **measure(model, tokenizer, held_out, seed, folder / "answers"),
        "log": log,
        "training_seconds": round(training_seconds, 1),
        "hardware": hardware(),
        "versions": {package: version(package) for package in ("torch", "transformers", "trl", "sae_posttrain")},
    }


def load_features(folder: Path, negative: str, seed: int) -> FeatureSet | None:
    """What the negatives of an arm are pushed along; `None` where nothing is pushed."""
    if negative == "none" or negative in REPLACED:
        return None
    return FeatureSet.load(
        folder / (f"random{seed}.safetensors" if negative == "random" else f"{negative}.safetensors")
    )


def train_arm(
    model: Any,
    tokenizer: Any,
    examples: list[dict[str, Any]],
    negative: str,
    settings: dict[str, Any],
    seed: int,
    folder: Path,
    *,
    feature_set: FeatureSet | None = None,
    strength: float | None = None,
    rewards: Sequence[Any] = (),
) -> list[dict[str, Any]]:
    """
    Train the model in place; returns the log.

    Negatives are pushed along the features, by their calibrated strength if none is given; `rewards` are added to that
    of endless repetition.
    """
    short = [e for e in examples if len(prompt_ids(tokenizer, e)) < MAX_PROMPT]
    random.Random(seed).shuffle(short)
    if negative in REPLACED:
        d_model, block = model.config.hidden_size, model.config.num_hidden_layers - 1
        direction = torch.randn(1, d_model, generator=torch.Generator().manual_seed(seed))
        feature_set = FeatureSet.from_directions(direction, blocks=[block], names=["none"], residual_norms=[1.0])
        strength = NO_STRENGTH
    args = SteeredGRPOConfig(
        str(folder / "training"),
        steer_strength=strength,
        bf16=True,  # autocast; the weights stay float32
        use_cpu=not torch.cuda.is_available(),
        gradient_checkpointing=False,
        seed=seed,
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        **settings,
    )
    trainer = REPLACED.get(negative, SteeredGRPOTrainer)(
        model,
        [EndlessRepetitionReward(tokenizer.eos_token_id, inexact=0), *rewards],
        args,
        feature_set=feature_set,
        train_dataset=Dataset.from_list([{"prompt": e["prompt"]} for e in short]),
        processing_class=tokenizer,
    )
    trainer.train()
    wanted = ("step", "reward", "kl", "entropy", "grad_norm", "completions/mean_length", "frac_reward_zero_std")
    return [
        {key: value for key, value in entry.items() if key in wanted or key.startswith("steer/")}
        for entry in trainer.state.log_history
        if "reward" in entry
    ]


def measure(model: Any, tokenizer: Any, held_out: list[dict[str, Any]], seed: int, answers: Path) -> dict[str, Any]:
    """Loops sampled and greedy, reward and length; held-out loss; copying."""
    shutil.rmtree(answers, ignore_errors=True)  # of a run that was cut off: its weights may differ
    rates = evaluate(
        model,
        [{"id": e["id"], "lang": e["lang"], "prompt": e["prompt"]} for e in held_out],
        output_dir=answers,
        tokenizer=tokenizer,
        target_lang="zh",
        max_new_tokens=MAX_NEW_TOKENS,
        temperature=TEMPERATURE,
        top_p=1.0,
        batch_size=125,
        seed=seed,
    )
    drawn = random.Random(1).sample(held_out, min(NUM_GREEDY, len(held_out)))
    prompts = [prompt_ids(tokenizer, e) for e in drawn]
    greedy, finished = generate_answers(
        model, tokenizer, prompts, max_new_tokens=MAX_NEW_TOKENS, temperature=0.0, seed=0
    )
    loops = [find_loop(ids, finished=ended) for ids, ended in zip(greedy, finished)]
    loss = measure_held_out(model, tokenizer, held_out, max_length=256, top_p=0.8)["loss"]
    return {
        "overall": rates["overall"],
        "greedy": {"endless": sum(loop.endless for loop in loops), "n": len(loops)},
        "loss": loss,
        "copying": copying(model, tokenizer, held_out),
    }


def prompt_ids(tokenizer: Any, example: dict[str, Any]) -> list[int]:
    """Token ids of a chat prompt."""
    encoded = tokenizer.apply_chat_template(
        example["prompt"], add_generation_prompt=True, tokenize=True, return_dict=True
    )
    return list(encoded["input_ids"])


def copying(model: Any, tokenizer: Any, examples: list[dict[str, Any]], passage: int = 32, shown: int = 8) -> float:
    """
    Benign repetition: a passage of a page, then its first tokens again. Share of the passage's other tokens that are
    the most likely ones now, as a model that can quote has it.
    """
    rows = []
    for example in examples:
        ids = tokenizer(example["completion"][0]["content"], add_special_tokens=False)["input_ids"][:passage]
        if len(ids) == passage:
            rows.append([*ids, *ids])
    correct = 0
    with torch.inference_mode():
        for start in range(0, len(rows), 50):
            input_ids = torch.tensor(rows[start : start + 50], device=model.device)
            predicted = model(input_ids=input_ids).logits[:, passage + shown - 1 : -1].argmax(dim=-1)
            correct += int((predicted == input_ids[:, passage + shown :]).sum())
    return correct / (len(rows) * (passage - shown))


def summary_line(result: dict[str, Any]) -> str:
    """One line for the terminal."""
    overall = result["overall"]
    loss = sum(result["loss"].values()) / len(result["loss"])
    return (
        f"{result['arm']} seed {result['seed']}: endless {overall['endless']} | near {overall['near_loop']} | "
        f"tokens {overall['mean_tokens']} | greedy {result['greedy']} | loss {loss:.3f} | "
        f"copying {result['copying']:.3f} | {result['training_seconds']} s"
    )


if __name__ == "__main__":
    main()
