"""
A population of models that one can have here, and how each answers tasks: for the redundancy of benchmarks.

Three trained models (SmolLM2-135M-Instruct, Gemma 3 270M, the help model), checkpoints of SmolLM2 after reinforcement
learning, and variants without training: weights rounded to few bits, small weights set to 0, blocks left out, noise.
A variant is not another model: it shares its parent's knowledge, and most differ from it by being worse.

The tasks are those that are cheapest in tokens, at most 40 questions each, the first of the file. Scores:
`choice_scoring.py`. One line of `--work` for each model and task; a run that was cut off goes on.

    python benchmarks/analysis/model_population.py --data data/bigbench/tasks --smollm2 smollm2-135m-instruct \
        --gemma gemma-3-270m --help-model models/help-qwen3-7m --checkpoints runs/plain-0/model --work population
"""

import argparse
import gzip
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from choice_scoring import encode_question, log_likelihoods
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer

sys.path.insert(0, str(Path(__file__).parents[1]))
from machine import hardware, seconds, versions

RESULTS = Path(__file__).parents[1] / "results" / "model_population.json"
NUM_TASKS, NUM_QUESTIONS = 15, 24

Change = Callable[[nn.Module], None]


def linear_weights(model: nn.Module) -> list[torch.Tensor]:
    """Weights of the linear layers of the blocks; embeddings stay as they are."""
    return [layer.weight.data for layer in model.get_decoder().layers.modules() if isinstance(layer, nn.Linear)]


def rounded(bits: int, group: int = 64) -> Change:
    """Round to nearest, symmetric, one scale for `group` weights of a row."""

    def change(model: nn.Module) -> None:
        most = 2 ** (bits - 1) - 1
        for weight in linear_weights(model):
            grouped = weight.float().reshape(weight.shape[0], -1, group)
            scale = grouped.abs().amax(dim=-1, keepdim=True).clamp_min(1e-8) / most
            weight.copy_(((grouped / scale).round().clamp(-most, most) * scale).reshape(weight.shape))

    return change


def pruned(share: float) -> Change:
    """Set this share of the smallest weights of each matrix to 0."""

    def change(model: nn.Module) -> None:
        for weight in linear_weights(model):
            least = weight.float().abs().flatten().kthvalue(int(share * weight.numel())).values
            weight[weight.float().abs() <= least] = 0

    return change


def without_blocks(first: int, number: int) -> Change:
    """Leave out `number` blocks from `first` on."""

    def change(model: nn.Module) -> None:
        decoder, config = model.get_decoder(), model.get_decoder().config
        left = [i for i in range(len(decoder.layers)) if not first <= i < first + number]
        decoder.layers = nn.ModuleList(decoder.layers[i] for i in left)
        if getattr(config, "layer_types", None):
            config.layer_types = [config.layer_types[i] for i in left]
        config.num_hidden_layers = len(left)

    return change


def noisy(share: float) -> Change:
    """Add Gaussian noise of this share of each matrix's standard deviation."""

    def change(model: nn.Module) -> None:
        generator = torch.Generator().manual_seed(0)
        for weight in linear_weights(model):
            noise = torch.randn(weight.shape, generator=generator)
            weight.add_((noise * share * weight.float().std()).to(weight.dtype))

    return change


VARIANTS: dict[str, dict[str, Change]] = {
    "smollm2": {
        "8 bits": rounded(8),
        "4 bits": rounded(4),
        "3 bits": rounded(3),
        "30 % pruned": pruned(0.3),
        "50 % pruned": pruned(0.5),
        "without blocks 20 to 22": without_blocks(20, 3),
        "without blocks 18 to 23": without_blocks(18, 6),
        "noise 0.2": noisy(0.2),
    },
    "gemma": {
        "4 bits": rounded(4),
        "50 % pruned": pruned(0.5),
        "without blocks 11 and 12": without_blocks(11, 2),
    },
    "help": {
        "3 bits": rounded(3),
        "50 % pruned": pruned(0.5),
        "without block 3": without_blocks(3, 1),
        "noise 0.3": noisy(0.3),
    },
}


def read_tasks(folder: Path, num_questions: int) -> dict[str, list[dict[str, Any]]]:
    tasks = {}
    for path in sorted(folder.glob("*.jsonl.gz")):
        with gzip.open(path, "rt", encoding="utf-8") as file:
            tasks[path.name.removesuffix(".jsonl.gz")] = [json.loads(line) for line in file][:num_questions]
    return tasks


def cheapest(tasks: dict[str, list[dict[str, Any]]], tokenizer: Any, number: int) -> list[str]:
    """Names of the tasks whose questions and options have the fewest tokens."""

    def cost(rows: list[dict[str, Any]]) -> float:
        return sum(encode_question(row, tokenizer, False).num_tokens for row in rows) / len(rows)

    return sorted(sorted(tasks, key=lambda name: cost(tasks[name]))[:number])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("data", "smollm2", "gemma", "help-model", "work"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--checkpoints", type=Path, nargs="*", default=[], help="further folders, as RUN/model")
    parser.add_argument("--models", nargs="*", help="ask these now (default: all); what was asked before is kept")
    parser.add_argument("--tasks", type=int, default=NUM_TASKS)
    parser.add_argument("--questions", type=int, default=NUM_QUESTIONS)
    parser.add_argument("--most-seconds", type=float, default=float("inf"), help="of the processor, in this run")
    parser.add_argument("--out", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    tasks = read_tasks(arguments.data, arguments.questions)
    names = cheapest(tasks, AutoTokenizer.from_pretrained(arguments.smollm2), arguments.tasks)
    folders = {"help": arguments.help_model, "smollm2": arguments.smollm2, "gemma": arguments.gemma}
    models: dict[str, tuple[Path, Change | None]] = {}
    for family, folder in folders.items():
        models[family] = folder, None
        models |= {f"{family}, {name}": (folder, change) for name, change in VARIANTS[family].items()}
    models |= {f"smollm2, trained: {folder.parent.name}": (folder, None) for folder in arguments.checkpoints}
    arguments.work.mkdir(parents=True, exist_ok=True)
    kept = arguments.work / "answers.jsonl"
    done: dict[tuple[str, str], dict[str, Any]] = {}
    if kept.exists():
        for each in map(json.loads, kept.read_text().splitlines()):
            if len(each["right"]) >= len(tasks[each["task"]]):
                done[each["model"], each["task"]] = each | {"right": each["right"][: arguments.questions]}
    if unknown := set(arguments.models or ()) - set(models):
        raise ValueError(f"There is no model {unknown.pop()!r}. Known: {', '.join(models)}.")
    for model_name, (folder, change) in models.items():
        if (arguments.models is not None and model_name not in arguments.models) or all(
            (model_name, task) in done for task in names
        ):
            continue
        if seconds() > arguments.most_seconds:
            break
        tokenizer = AutoTokenizer.from_pretrained(folder)
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).eval()
        if change is not None:
            change(model)
        started = seconds()
        for task in names:
            if (model_name, task) in done or seconds() > arguments.most_seconds:
                continue
            add_bos = "gemma" in model.config.model_type
            questions = [encode_question(row, tokenizer, add_bos) for row in tasks[task]]
            scores = log_likelihoods(model, questions)
            chosen = [max(range(len(each)), key=each.__getitem__) for each in scores]
            right = [int(question.right[choice]) for question, choice in zip(questions, chosen)]
            line = {"model": model_name, "task": task, "right": right, "chosen": chosen}
            done[model_name, task] = line
            with kept.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
        if not all((model_name, task) in done for task in names):
            break
        mean = sum(sum(done[model_name, task]["right"]) / len(done[model_name, task]["right"]) for task in names)
        print(f"{model_name}: mean accuracy {mean / len(names):.3f}, {seconds() - started:.0f} s", flush=True)
    chance = {
        task: sum(sum(score > 0 for score in row["scores"].values()) / len(row["scores"]) for row in tasks[task])
        / len(tasks[task])
        for task in names
    }
    models = {name: each for name, each in models.items() if all((name, task) in done for task in names)}
    results = {
        "question": "Which questions of which tasks does each model of the population answer rightly?",
        "models": list(models),
        "tasks": {
            task: {
                "chance": chance[task],
                "right": {model: "".join(map(str, done[model, task]["right"])) for model in models},
            }
            for task in names
        },
        "machine": hardware(),
        "versions": versions("torch", "transformers"),
    }
    arguments.out.write_text(json.dumps(results, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
