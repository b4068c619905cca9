"""
What a reward by a classifier on features costs: read in a frozen copy, and in the policy's own generation.

The help model answers page titles; the classifier tells Spanish pages from English ones. Generation with and without
the recording take turns, on the same prompts and seeds. Times are of the processors. The two readings are compared:
the last token of a cut answer is read by the copy only.

    python benchmarks/analysis/bench_classifier_reward.py --model models/help-qwen3-7m \
        --saes models/help-qwen3-7m/sae --data data/help
"""

import argparse
import gzip
import json
import statistics
import sys
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

sys.path.insert(0, str(Path(__file__).parents[1]))
from machine import hardware, seconds, versions

from sae_posttrain import TextOptions, load_sae
from sae_posttrain.analysis import ClassifierReward, FeatureClassifier

RESULTS = Path(__file__).parents[1] / "results" / "bench_classifier_reward.json"
BLOCKS, K = (2, 4), 32
NUM_PAGES, NUM_PROMPTS, NEW_TOKENS, TURNS = 40, 16, 64, 5


def pages(folder: Path, lang: str, number: int) -> list[dict[str, Any]]:
    with gzip.open(folder / f"{lang}.jsonl.gz", "rt", encoding="utf-8") as file:
        return [row for _, row in zip(range(number), map(json.loads, file))]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("data", "model", "saes"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    model = AutoModelForCausalLM.from_pretrained(arguments.model, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(arguments.model)
    saes = [load_sae(str(arguments.saes), block=block, k=K) for block in BLOCKS]
    rows = {lang: pages(arguments.data, lang, NUM_PAGES + NUM_PROMPTS) for lang in ("en", "es")}
    texts = [row["text"] for lang in rows for row in rows[lang][:NUM_PAGES]]
    labels = [lang for lang in rows for _ in range(NUM_PAGES)]
    classifier = FeatureClassifier(
        model, saes, pos_label="es", tokenizer=tokenizer, text_options=TextOptions(max_length=128)
    ).fit(texts, labels)
    titles = [row["title"] for lang in rows for row in rows[lang][NUM_PAGES : NUM_PAGES + NUM_PROMPTS // 2]]
    batch = tokenizer(titles, return_tensors="pt", padding=True, padding_side="left")

    def generate(seed: int) -> list[list[int]]:
        torch.manual_seed(seed)
        with torch.no_grad():
            out = model.generate(
                **batch, max_new_tokens=NEW_TOKENS, do_sample=True, pad_token_id=tokenizer.pad_token_id
            )
        answers = []
        for row in out[:, batch["input_ids"].shape[1] :].tolist():
            end = row.index(tokenizer.eos_token_id) + 1 if tokenizer.eos_token_id in row else len(row)
            answers.append(row[:end])
        return answers

    copy, policy = ClassifierReward(classifier), ClassifierReward(classifier)
    spent: dict[str, list[float]] = {name: [] for name in ("generation", "generation, recorded", "reward of a copy")}
    same, total = 0, 0
    for turn in range(TURNS + 1):  # the first only warms up
        taken = {}
        for name in ("generation", "generation, recorded") if turn % 2 else ("generation, recorded", "generation"):
            if name == "generation, recorded":
                policy.read_policy(model, tokenizer)
            started = seconds()
            answers = generate(turn)
            if name == "generation, recorded":
                of_policy = policy(prompts=titles, completions=titles, completion_ids=answers)
            taken[name] = seconds() - started
            policy.release_policy()
        started = seconds()
        of_copy = copy(prompts=titles, completions=tokenizer.batch_decode(answers, skip_special_tokens=True))
        taken["reward of a copy"] = seconds() - started
        same, total = same + sum(a == b for a, b in zip(of_policy, of_copy)), total + len(answers)
        if turn:
            for name, value in taken.items():
                spent[name].append(value)
    plain = statistics.median(spent["generation"])
    results = {
        "prompts": NUM_PROMPTS,
        "new_tokens": NEW_TOKENS,
        "seconds": {name: [round(each, 4) for each in values] for name, values in spent.items()},
        "recorded_to_plain": round(
            statistics.median(b / a for a, b in zip(spent["generation"], spent["generation, recorded"])), 3
        ),
        "copy_to_generation": round(statistics.median(spent["reward of a copy"]) / plain, 3),
        "same_reward": [same, total],
        "machine": hardware(),
        "versions": versions("torch", "transformers"),
    }
    print(json.dumps({name: results[name] for name in ("recorded_to_plain", "copy_to_generation", "same_reward")}))
    arguments.out.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
