"""
Are the loops that a push makes those that the model falls into by itself?

    .venv-vllm/bin/python benchmarks/real/pushed_loops.py --model M --sae S --features 14:1772 14:4245 9:2763 9:4411 \
        --prompts prompts/train.jsonl --loops answers/train/0.jsonl --out results/pushed_loops.json

Every direction is pushed at several strengths and temperatures, all in one batch of vLLM; beside the features stand
the difference of means and a random direction of each block. `--loops` are greedy answers of the model (`answer.py`),
and hold its own loops. A loop is described by its period and its start in tokens, and by whether it is white space
alone. One answer of each cell that loops is kept to be read.
"""

import argparse
import json
import statistics
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from features import feature_of, means_of
from transformers import AutoModelForCausalLM, AutoTokenizer

from sae_posttrain import FeatureSet, find_loop, random_directions
from sae_posttrain.measure.statistics.intervals import wilson
from sae_posttrain.serving import RowSettings, SteeredLLM, engine_arguments

sys.path[:0] = [str(Path(__file__).resolve().parent.parent)]

from machine import hardware, versions  # noqa: E402


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("model", "sae", "prompts", "loops", "out"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--features", nargs="+", required=True, help="block and number of each")
    parser.add_argument("--strengths", type=float, nargs="+", default=[0.5, 0.75, 1.0, 1.5])
    parser.add_argument("--temperatures", type=float, nargs="+", default=[0.7, 1.0])
    parser.add_argument("--num-prompts", type=int, default=16)
    parser.add_argument("--max-new-tokens", type=int, default=112)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    tokenizer = AutoTokenizer.from_pretrained(arguments.model)
    prompts = [json.loads(line) for line in arguments.prompts.read_text(encoding="utf-8").splitlines()]
    features = directions(arguments, tokenizer, prompts)
    file = features.save(arguments.out.with_suffix(".safetensors"), overwrite=True)
    chats = [row["prompt"] for row in prompts[600 : 600 + arguments.num_prompts]]  # none that features were found on

    from vllm import LLM, SamplingParams

    options = {"dtype": "bfloat16", "enforce_eager": True, "max_model_len": 1024, "max_num_seqs": 96, "seed": 0}
    llm = SteeredLLM(LLM(str(arguments.model), **options, **engine_arguments(file)), features)
    cells = [
        (name, strength) for name in ("", *features.names) for strength in (arguments.strengths if name else [0.0])
    ]
    ids = [tokenizer.apply_chat_template(chat, add_generation_prompt=True)["input_ids"] for chat in chats]
    result: dict[str, Any] = {"hardware": hardware(), "versions": versions("torch", "transformers")}
    result |= {"natural": natural(arguments.loops, tokenizer), "cells": []}
    for temperature in arguments.temperatures:
        rows = [RowSettings(strength={name: strength} if name else 0.0) for name, strength in cells for _ in ids]
        asked = [{"prompt_token_ids": list(each)} for _ in cells for each in ids]
        with llm.armed(rows):
            outputs = llm.generate(asked, SamplingParams(temperature=temperature, max_tokens=arguments.max_new_tokens))
        for number, (name, strength) in enumerate(cells):
            own = [out.outputs[0] for out in outputs[number * len(ids) : (number + 1) * len(ids)]]
            answers = [(list(out.token_ids), out.finish_reason == "length") for out in own]
            cell = {"direction": name or "none", "strength": strength, "temperature": temperature}
            result["cells"].append(cell | describe(answers, tokenizer))
            print(line(result["cells"][-1]), flush=True)
        arguments.out.write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    print("natural:", line(result["natural"] | {"direction": "greedy", "strength": 0, "temperature": 0}))


def directions(arguments: argparse.Namespace, tokenizer: Any, prompts: list[dict[str, Any]]) -> FeatureSet:
    """The features, and of each block the difference of means and a random direction, as one set."""
    model = AutoModelForCausalLM.from_pretrained(arguments.model, dtype=torch.bfloat16)
    pairs = [tuple(map(int, feature.split(":"))) for feature in arguments.features]
    blocks = sorted({block for block, _ in pairs})
    means = means_of(model, tokenizer, arguments.loops, prompts, blocks)
    sets = [feature_of(arguments.sae, block, number, f"{block}.{number}", means) for block, number in pairs]
    sets.append(replace(means, names=tuple(f"{block}.means" for block in means.blocks)))
    of_blocks = replace(means, names=tuple(f"{block}.random" for block in means.blocks))
    sets.append(replace(random_directions(of_blocks, seed=0), names=of_blocks.names))
    return FeatureSet.merge(*sets)


def natural(file: Path, tokenizer: Any) -> dict[str, Any]:
    rows = [json.loads(row) for row in file.read_text(encoding="utf-8").splitlines()]
    return describe(
        [(tokenizer(row["text"], add_special_tokens=False)["input_ids"], row["cut"]) for row in rows], tokenizer
    )


def describe(answers: list[tuple[list[int], bool]], tokenizer: Any) -> dict[str, Any]:
    """How many loop without an end, and what those loops are like."""
    loops = [(find_loop(ids, finished=not cut), ids) for ids, cut in answers]
    endless = [(loop, tokenizer.decode(ids[loop.onset :])) for loop, ids in loops if loop.endless]
    return {
        "num_answers": len(answers),
        "endless": len(endless),
        "interval": wilson(len(endless), len(answers)),
        "periods": [loop.period for loop, _ in endless],
        "starts": [loop.onset for loop, _ in endless],
        "blank": sum(not text.strip() for _, text in endless),
        "example": next((text[:200] for _, text in endless if text.strip()), endless[0][1][:200] if endless else None),
    }


def line(cell: dict[str, Any]) -> str:
    period = statistics.median(cell["periods"]) if cell["periods"] else "-"
    start = statistics.median(cell["starts"]) if cell["starts"] else "-"
    return (
        f"{cell['direction']} at {cell['strength']:g}, temperature {cell['temperature']:g}: {cell['endless']} of "
        f"{cell['num_answers']} endless, {cell['blank']} blank, median period {period}, start {start}: "
        f"{cell['example']!r:.100}"
    )


if __name__ == "__main__":
    main()
