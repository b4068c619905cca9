"""
How often does an answer loop, over temperature and strength: pushed along features, along a random direction, or cold?

Every prompt is answered `--answers` times at each pair of temperature and strength. Strength 0 is the cold row: the
temperature alone. The share of endless answers is counted for each prompt, since a group of GRPO learns from it: what
matters is in how many prompts a negative loops, not the mean alone. The period and the start of every loop are kept,
in tokens, and how many loops are of white space alone: cold loops are the model's own, those of a push need not be.

    python benchmarks/bench_cold_rows.py --model M --features F --prompts prompts.jsonl --out runs/cold_rows

Prompts are as in `calibrate`: messages go through the chat template. Writes `<out>.json` and `<out>.png`; each pair
that stands in the JSON file is not measured again, so an interrupted run goes on where it stopped. Another model,
other features, prompts or settings are refused: delete the file or name another.
"""

import argparse
import hashlib
import json
import os
import random
from pathlib import Path
from typing import Any

import torch
from machine import hardware, seconds, versions
from transformers import AutoModelForCausalLM, AutoTokenizer

from sae_posttrain import FeatureSet
from sae_posttrain.eval_mode import eval_mode
from sae_posttrain.features.controls.random_directions import random_directions
from sae_posttrain.features.find.answers import Sampling, answer_all, mean_answer_loss, read_questions
from sae_posttrain.measure.faults.loops import find_loop
from sae_posttrain.measure.statistics.intervals import wilson
from sae_posttrain.model_records import recorded_name

ARMS = {"feature": "#c0392b", "random direction": "#2c7fb8", "cold": "#444444"}


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="folder or Hub id")
    parser.add_argument("--features", type=Path, required=True, help="feature set to push along")
    parser.add_argument("--prompts", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True, help="files without their ending")
    parser.add_argument("--temperatures", type=float, nargs="+", default=[0.0, 0.2, 0.4, 0.7, 1.0])
    parser.add_argument("--strengths", type=float, nargs="+", default=[0.5, 1.0, 2.0], help="beside 0, the cold rows")
    parser.add_argument("--num-prompts", type=int, default=32)
    parser.add_argument("--answers", type=int, default=4, help="of each prompt; one at temperature 0")
    parser.add_argument("--max-new-tokens", type=int, default=160)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--allow-base-model", help="name of another model that these features may push")
    parser.add_argument("--threads", type=int, default=0, help="of torch; 0 leaves its default")
    arguments = parser.parse_args(argv)
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    tokenizer = AutoTokenizer.from_pretrained(arguments.model)
    on_gpu = torch.cuda.is_available()
    model = AutoModelForCausalLM.from_pretrained(arguments.model, dtype=torch.bfloat16 if on_gpu else torch.float32)
    model.to("cuda" if on_gpu else "cpu")
    features = FeatureSet.load(arguments.features)
    features.check_model(model, allow_base_model=arguments.allow_base_model, tokenizer=tokenizer)
    questions = read_questions(str(arguments.prompts), tokenizer)
    questions = random.Random(arguments.seed).sample(questions, min(arguments.num_prompts, len(questions)))
    pushed = {"feature": features, "random direction": random_directions(features, arguments.seed)}
    names = ("answers", "max_new_tokens", "batch_size", "seed")
    settings: dict[str, Any] = {name: getattr(arguments, name) for name in names}
    settings |= {
        "model": recorded_name(arguments.model),
        "features": list(features.names),
        "features_hash": hashlib.sha256(arguments.features.read_bytes()).hexdigest()[:16],
        "questions_hash": hashlib.sha256(repr([each.prompt for each in questions]).encode()).hexdigest()[:16],
        "num_prompts": len(questions),
    }
    path = arguments.out.with_name(arguments.out.name + ".json")
    record = start_or_go_on(path, settings)
    cells = [("cold", temperature, 0.0) for temperature in arguments.temperatures]
    cells += [
        (arm, temperature, strength)
        for temperature in arguments.temperatures
        for strength in arguments.strengths
        for arm in pushed
    ]
    with eval_mode(model):
        for arm, temperature, strength in cells:
            if find(record, arm, temperature, strength) is None:
                cell = measure(model, tokenizer, questions, temperature, strength, pushed.get(arm), arguments)
                record["cells"].append({"arm": arm, "temperature": temperature, "strength": strength, **cell})
                write(path, record)
                low, high = (100 * share for share in cell["interval"])
                print(
                    f"{arm}, temperature {temperature:g}, strength {strength:g}: {100 * cell['endless']:.1f} % "
                    f"[{low:.1f}, {high:.1f}] endless, in {100 * cell['prompts_with_a_loop']:.0f} % of the prompts",
                    flush=True,
                )
    print("Picture:", draw(record, path.with_suffix(".png")))


def start_or_go_on(path: Path, settings: dict[str, Any]) -> dict[str, Any]:
    """The record of an earlier run with the same settings, or a new one."""
    if not path.exists():
        return {
            "settings": settings,
            "cells": [],
            "hardware": hardware(),
            "versions": versions("torch", "transformers", "sae_posttrain"),
        }
    record = json.loads(path.read_text(encoding="utf-8"))
    changed = [name for name, value in settings.items() if record["settings"].get(name) != value]
    if changed:
        raise SystemExit(f"{path} holds a run with other {', '.join(changed)}. Delete it, or set another --out.")
    return record


def find(record: dict[str, Any], arm: str, temperature: float, strength: float) -> dict[str, Any] | None:
    """What was measured of a pair; `None` if it was not."""
    wanted = (arm, temperature, strength)
    return next((c for c in record["cells"] if (c["arm"], c["temperature"], c["strength"]) == wanted), None)


def measure(
    model: Any,
    tokenizer: Any,
    questions: list[Any],
    temperature: float,
    strength: float,
    feature_set: FeatureSet | None,
    arguments: argparse.Namespace,
) -> dict[str, Any]:
    """Answer every prompt, and count endless answers of each."""
    num = 1 if temperature == 0 else arguments.answers
    asked = [question for question in questions for _ in range(num)]
    sampling = Sampling(arguments.max_new_tokens, temperature, 1.0, arguments.seed, arguments.batch_size)
    push: dict[str, Any] = {}
    if feature_set is not None:
        push = {"feature_set": feature_set, "strength": torch.full((len(asked), len(feature_set)), strength)}
    started = seconds()
    answers = answer_all(model, tokenizer, asked, sampling, **push)
    took = seconds() - started
    loops = [find_loop(answer.ids, finished=answer.finished) for answer in answers]
    endless = [loop.endless for loop in loops]
    found = [(loop, answer.ids[loop.onset :]) for loop, answer in zip(loops, answers) if loop.endless]
    per_prompt = [sum(endless[start : start + num]) / num for start in range(0, len(endless), num)]
    loss = mean_answer_loss(model, answers)
    return {
        "num_answers": len(answers),
        "endless": sum(endless) / len(endless),
        "interval": wilson(sum(endless), len(endless)),
        "per_prompt": per_prompt,
        "prompts_with_a_loop": sum(share > 0 for share in per_prompt) / len(per_prompt),
        "mean_length": sum(len(answer.ids) for answer in answers) / len(answers),
        "loss_per_token": loss if loss == loss else None,
        "periods": [loop.period for loop, _ in found],
        "starts": [loop.onset for loop, _ in found],
        "blank": sum(not tokenizer.decode(ids, skip_special_tokens=True).strip() for _, ids in found),
        "seconds": round(took, 1),
    }


def write(path: Path, record: dict[str, Any]) -> None:
    """Replace the file as a whole, so that an interrupted run leaves the one before."""
    path.parent.mkdir(parents=True, exist_ok=True)
    whole = path.with_name(path.name + ".part")
    whole.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    os.replace(whole, path)


def draw(record: dict[str, Any], path: Path) -> Path:
    """One panel a strength: the mean share of endless answers, and each prompt's share as a dot."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    cells = record["cells"]
    strengths = sorted({cell["strength"] for cell in cells if cell["strength"] > 0})
    temperatures = sorted({cell["temperature"] for cell in cells})
    figure = Figure(figsize=(3.1 * len(strengths) + 0.8, 3.8), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, len(strengths), sharey=True, squeeze=False)[0]
    drawn = random.Random(0)
    for panel, strength in zip(panels, strengths):
        for number, (arm, color) in enumerate(ARMS.items()):
            found = [
                cell
                for temperature in temperatures
                if (cell := find(record, arm, temperature, 0.0 if arm == "cold" else strength)) is not None
            ]
            places = [temperatures.index(cell["temperature"]) + (number - 1) * 0.22 for cell in found]
            for place, cell in zip(places, found):
                shares = [100 * share + drawn.uniform(-1.5, 1.5) for share in cell["per_prompt"]]
                spots = [place + drawn.uniform(-0.07, 0.07) for _ in shares]
                panel.scatter(spots, shares, s=5, color=color, alpha=0.25, linewidths=0)
            means = [100 * cell["endless"] for cell in found]
            errors = [
                [max(0.0, mean - 100 * cell["interval"][0]) for mean, cell in zip(means, found)],
                [max(0.0, 100 * cell["interval"][1] - mean) for mean, cell in zip(means, found)],
            ]
            panel.errorbar(
                places, means, yerr=errors, color=color, marker="o", markersize=4, linewidth=1.2, capsize=2, label=arm
            )
        panel.set_title(f"strength {strength:g}", fontsize=10)
        panel.set_xticks(range(len(temperatures)), [f"{temperature:g}" for temperature in temperatures])
        panel.set_xlabel("temperature")
        panel.spines[["top", "right"]].set_visible(False)
        panel.grid(axis="y", color="0.92", linewidth=0.7)
        panel.set_axisbelow(True)
    panels[0].set_ylabel("endless answers, %")
    panels[0].set_ylim(-4, 104)
    settings = record["settings"]
    figure.suptitle(
        f"{settings['model']}, {settings['num_prompts']} prompts, up to {settings['answers']} answers each; "
        "dots: share of each prompt",
        fontsize=10,
    )
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", frameon=False, ncols=3)
    figure.savefig(path, dpi=150)
    return path


if __name__ == "__main__":
    main()
