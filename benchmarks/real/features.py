"""
What the arms of `repetition.yaml` push along: an SAE feature that makes loops, a random direction, a difference of
means.

    python benchmarks/real/features.py --model M --sae S --features 14:1772 14:4245 --prompts prompts/train.jsonl \
        --loops answers/train/0.jsonl --out features

`--features` are those that `sae-posttrain find-features --kind repetition` found, as block and number; the folder of
an SAE is `<sae>/blocks.<block>.hook_resid_post`. Each is swept over the strength at the temperature of the rollouts;
the one that reaches the target with the likeliest text is kept. `--loops` are greedy answers of the model to the first
prompts (`answer.py`): the difference of means is that of those that loop and those that end. What was measured goes to
`<out>/features.json`, and is not measured again.
"""

import argparse
import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from sae_posttrain import FeatureSet, calibrate, find_loop, load_sae
from sae_posttrain.features.controls.random_directions import difference_of_means, random_directions
from sae_posttrain.features.read.texts import Text
from sae_posttrain.features.set.calibrated_for import calibrated_features

sys.path[:0] = [str(Path(__file__).resolve().parent.parent)]

from machine import hardware, versions  # noqa: E402

TARGET = 0.3  # share of pushed answers that shall loop


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--sae", type=Path, required=True)
    parser.add_argument("--features", nargs="+", required=True)
    parser.add_argument("--prompts", type=Path, required=True)
    parser.add_argument("--loops", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--means-at", type=int, nargs="+", default=[9], help="further blocks of differences of means")
    parser.add_argument("--strengths", type=float, nargs="+", default=[0.75, 1.0, 1.5])
    parser.add_argument("--temperature", type=float, default=1.0)
    parser.add_argument("--max-new-tokens", type=int, default=144)
    parser.add_argument("--num-prompts", type=int, default=24)
    parser.add_argument("--threads", type=int, default=0)
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    arguments.out.mkdir(parents=True, exist_ok=True)
    tokenizer = AutoTokenizer.from_pretrained(arguments.model)
    model = AutoModelForCausalLM.from_pretrained(arguments.model, dtype=torch.bfloat16)
    prompts = [json.loads(line) for line in arguments.prompts.read_text(encoding="utf-8").splitlines()]
    pairs = [tuple(map(int, feature.split(":"))) for feature in arguments.features]
    names = [f"resid_post_{block}.{number}" for block, number in pairs]
    means = means_of(
        model, tokenizer, arguments.loops, prompts, sorted({*arguments.means_at, *(block for block, _ in pairs)})
    )
    sets = {name: feature_of(arguments.sae, *pair, name, means) for name, pair in zip(names, pairs, strict=True)}
    report_file = arguments.out / "features.json"
    report: dict[str, Any] = json.loads(report_file.read_text(encoding="utf-8")) if report_file.exists() else {}

    def sweep(name: str, feature_set: FeatureSet) -> None:
        key = f"{name} at {arguments.temperature:g}"
        if key not in report:
            calibration = calibrate(
                model,
                feature_set,
                [{"prompt": row["prompt"]} for row in prompts[600:]],
                strengths=arguments.strengths,
                target=TARGET,
                temperature=arguments.temperature,
                max_new_tokens=arguments.max_new_tokens,
                num_prompts=arguments.num_prompts,
                tokenizer=tokenizer,
            )
            print(f"{key}\n{calibration}\n", flush=True)
            calibrated = calibration.feature_set
            calibrated.notes["calibration"] = calibration.as_dict() | {
                "strength": calibration.strength or calibration.best.strength
            }
            calibrated.save(arguments.out / f"{name}.safetensors", overwrite=True)
            report[key] = calibration.as_dict() | {"hardware": hardware(), "versions": versions("torch")}
            report_file.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")

    for name, feature_set in sets.items():
        sweep(name, feature_set)
    chosen = min(names, key=lambda name: likelihood(report[f"{name} at {arguments.temperature:g}"]))
    print(f"chosen: {chosen}")
    repetition = FeatureSet.load(arguments.out / f"{chosen}.safetensors")
    repetition.save(arguments.out / "repetition.safetensors", overwrite=True)
    random = random_directions(repetition, seed=0)
    sweep("random", random_directions(repetition, seed=0))
    random.notes["calibration"] = {**repetition.notes["calibration"], "features": calibrated_features(random)}
    random.save(arguments.out / "random.safetensors", overwrite=True)
    chosen_block = repetition.blocks[0]
    for number, block in enumerate(means.blocks):
        name = "difference_of_means" if block == chosen_block else f"difference_of_means_{block}"
        sweep(name, means[[number]])


def feature_of(sae: Path, block: int, number: int, name: str, means: FeatureSet) -> FeatureSet:
    """One feature, with the median residual norm that was measured with the means."""
    folder = sae / f"blocks.{block}.hook_resid_post"
    feature = FeatureSet.from_sae(load_sae(folder, block=block, features=[number]), [number], names=[name])
    at = means.at((block, "resid_post"))
    return replace(feature, residual_norms=at.residual_norms, base_model=at.base_model, fingerprint=at.fingerprint)


def likelihood(calibration: dict[str, Any]) -> tuple[bool, float]:
    """Features that reach the target first, the likeliest text before others."""
    rows = calibration["rows"]
    row = next((row for row in rows if row["hit_rate"] >= TARGET and row["strength"] > 0), None)
    return (row is None, row["loss"] if row else -max(row["hit_rate"] for row in rows))


def means_of(model: Any, tokenizer: Any, loops: Path, prompts: list[dict[str, Any]], blocks: list[int]) -> FeatureSet:
    """Mean of the residual on answers that loop, from where the loop starts, minus that on answers that end."""
    looping, normal = [], []
    for answer in map(json.loads, loops.read_text(encoding="utf-8").splitlines()):
        prompt = tokenizer.apply_chat_template(
            prompts[answer["prompt"]]["prompt"], add_generation_prompt=True, return_dict=True
        )["input_ids"]
        ids = tokenizer(answer["text"], add_special_tokens=False)["input_ids"]
        loop = find_loop(ids, finished=not answer["cut"])
        if loop.endless:
            first = len(prompt) + loop.onset + loop.period  # the loop's second time round
            looping.append(text_of([*prompt, *ids], first, "loop"))
        elif not answer["cut"] and len(ids) >= 32:
            normal.append(text_of([*prompt, *ids], len(prompt), "normal"))
    print(f"difference of means: {len(looping)} loops, {len(normal)} normal answers")
    return difference_of_means(model, looping, normal, blocks=blocks)


def text_of(ids: list[int], first: int, group: str) -> Text:
    """Token ids of which those from `first` on count."""
    return Text(group=group, ids=tuple(ids), counted=tuple(number >= first for number in range(len(ids))))


if __name__ == "__main__":
    main()
