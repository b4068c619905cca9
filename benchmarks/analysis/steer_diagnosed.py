"""
Is what `diagnose` found the fault? Its features are pushed down while the model answers other prompts.

The same prompts are answered without a push, with the diagnosed set pushed, and with as many random features of the
same SAEs pushed as far, matched by firing rate and norms. Prompts of the answers that were diagnosed are left out. The
loss is that of the answers without a push and without the fault, with every position pushed: what the push costs.

    python benchmarks/analysis/steer_diagnosed.py --model smollm2-135m-instruct --features loops.safetensors \
        --sae models/real/smollm2-135m-instruct/blocks.{9,14}.hook_resid_post --diagnosed judged --fault endless \
        --prompts prompts.jsonl --strengths -0.1 -0.2 --out steer_loops.json
"""

import argparse
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))
from machine import hardware, versions

from sae_posttrain import FeatureSet, TextOptions, matched_random_features, steer
from sae_posttrain.features.find.answers import Answer, Sampling, answer_all, mean_answer_loss
from sae_posttrain.measure.statistics.intervals import paired_difference, wilson
from sae_posttrain.model_loading import load_model, load_tokenizer
from sae_posttrain.steering.questions import read_asked
from sae_posttrain.steering.side_by_side import judge_all


def is_faulty(judged: Mapping[str, Any], fault: str) -> bool:
    return bool(judged["loop"]["endless"] if fault == "endless" else judged["unexpected"])


def other_prompts(path: Path, diagnosed: list[dict[str, Any]], number: int) -> list[dict[str, Any]]:
    """The first prompts that were not diagnosed."""
    seen = {answer["prompt"] for answer in diagnosed}
    rows = [json.loads(line) for line in path.open(encoding="utf-8")]
    asked = [row["prompt"] if isinstance(row["prompt"], str) else row["prompt"][-1]["content"] for row in rows]
    return [row for row, text in zip(rows, asked) if text not in seen][:number]


def control_of(arguments: argparse.Namespace, features: FeatureSet, diagnosed: list[dict[str, Any]]) -> FeatureSet:
    def is_bad(answer: dict[str, Any]) -> bool:
        return is_faulty(answer, arguments.fault)

    rows = [{"text": each["answer"], "kind": "bad" if is_bad(each) else "good"} for each in diagnosed]
    return matched_random_features(
        str(arguments.model),
        features,
        [str(each) for each in arguments.sae] if len(arguments.sae) > 1 else str(arguments.sae[0]),
        rows,
        text_options=TextOptions(group_column="kind", max_length=256),
        held_out=0.0,
        k=arguments.k,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("model", "features", "diagnosed", "prompts", "out"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--sae", type=Path, nargs="+", required=True)
    parser.add_argument("--k", type=int)
    parser.add_argument("--fault", choices=["endless", "switched"], required=True)
    parser.add_argument("--target-lang", help="switches into this language count (default: any other script)")
    parser.add_argument("--num-prompts", type=int, default=96)
    parser.add_argument("--max-new-tokens", type=int, default=160)
    parser.add_argument("--temperature", type=float, default=0.0)
    parser.add_argument("--top-p", type=float, default=0.8)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--strengths", type=float, nargs="+", required=True, help="of each feature, below 0: down")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    diagnosed = [json.loads(line) for line in (arguments.diagnosed / "answers.jsonl").open(encoding="utf-8")]
    features = FeatureSet.from_pretrained(arguments.features)
    control = control_of(arguments, features, diagnosed)
    model = load_model(str(arguments.model))
    tokenizer, _ = load_tokenizer(None, str(arguments.model))
    questions = read_asked(other_prompts(arguments.prompts, diagnosed, arguments.num_prompts), tokenizer)
    sampling = Sampling(
        arguments.max_new_tokens, arguments.temperature, arguments.top_p, batch_size=arguments.batch_size
    )
    arms: dict[str, tuple[FeatureSet | None, float]] = {"without a push": (None, 0.0)}
    arms |= {f"the diagnosed set, {strength:+g}": (features, strength) for strength in arguments.strengths}
    arms |= {f"random features, {strength:+g}": (control, strength) for strength in arguments.strengths}
    results: dict[str, Any] = {
        "question": "How often is an answer faulty with the diagnosed features pushed down?",
        "model": arguments.model.name,
        "fault": arguments.fault,
        "features": features.labels,
        "control": control.labels,
        "num_prompts": len(questions),
        "sampling": vars(sampling),
        "machine": hardware(),
        "versions": versions("torch", "transformers"),
        "arms": {},
    }
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    plain: list[bool] = []
    good: list[Answer] = []
    for name, (pushed, strength) in arms.items():
        options: dict[str, Any] = {}
        if pushed is not None:
            options = {"feature_set": pushed, "strength": torch.full((len(questions), len(pushed)), strength)}
        answers = answer_all(model, tokenizer, questions, sampling, description=name, **options)
        judged = judge_all(answers, tokenizer, arguments.target_lang)
        faulty = [is_faulty(each, arguments.fault) for each in judged]
        if pushed is None:
            plain = faulty
            good = [answer for answer, bad in zip(answers, faulty) if not bad][:32]
            loss = mean_answer_loss(model, good)
        else:
            with steer(model, pushed, strength, positions="all"):
                loss = mean_answer_loss(model, good)
        change = paired_difference(plain, faulty)
        right = [each["right_language"] for each in judged if each["right_language"] is not None]
        results["arms"][name] = {
            "faulty": "".join(str(int(each)) for each in faulty),
            "rate": sum(faulty) / len(faulty),
            "interval": wilson(sum(faulty), len(faulty)),
            "change": [change.difference, change.low, change.high],
            "p": change.p_value,
            "mean_tokens": sum(each["num_tokens"] for each in judged) / len(judged),
            "cut": sum(not each["finished"] for each in judged) / len(judged),
            "right_language": sum(right) / len(right) if right else None,
            "loss": loss,
            "examples": [each["answer"][:300] for each in judged[:3]],
        }
        shown = {key: value for key, value in results["arms"][name].items() if key not in ("faulty", "examples")}
        print(name, json.dumps(shown), flush=True)
        arguments.out.write_text(json.dumps(results, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
