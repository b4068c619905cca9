"""
Multiple-choice tasks as files that `evaluate --tasks` takes, from tasks in the layout of BIG-bench's JSON.

    python benchmarks/real/tasks.py --data data/bigbench/tasks --out tasks
    sae-posttrain evaluate --model MODEL --tasks tasks/*.yaml --plain --out runs/tasks

`--data` holds `<task>.jsonl[.gz]` with `input` and `scores`, a score for each option; the best one is right.
"""

import argparse
import gzip
import json
from pathlib import Path

NAMES = (
    "analogical_similarity",
    "arithmetic-2_digit_addition",
    "implicatures",
    "movie_recommendation",
    "phrase_relatedness",
    "social_iqa",
    "sports_understanding",
    "understanding_fables",
)
TASK = """task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{test: "{file}"}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{question}}}}\\nAnswer:"
doc_to_choice: choices
doc_to_target: answer
metric_list: [{{metric: acc, aggregation: mean, higher_is_better: true}}]
metadata: {{version: 1.0}}
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--names", nargs="+", default=NAMES, help="default: eight tasks with short questions")
    parser.add_argument("--limit", type=int, default=100, help="first questions of each (default: 100)")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    for name in arguments.names:
        plain, packed = arguments.data / f"{name}.jsonl", arguments.data / f"{name}.jsonl.gz"
        opened = plain.open(encoding="utf-8") if plain.exists() else gzip.open(packed, "rt", encoding="utf-8")
        with opened as file:
            questions = [json.loads(line) for line in file][: arguments.limit]
        documents = arguments.out / f"{name}.jsonl"
        with documents.open("w", encoding="utf-8") as file:
            for question in questions:
                choices = list(question["scores"])
                answer = max(range(len(choices)), key=lambda number: question["scores"][choices[number]])
                row = {"question": question["input"].strip(), "choices": choices, "answer": answer}
                file.write(json.dumps(row, ensure_ascii=False) + "\n")
        task = TASK.format(name=name, file=documents.resolve().as_posix())
        documents.with_suffix(".yaml").write_text(task, encoding="utf-8")
        print(f"{name}: {len(questions)} questions")


if __name__ == "__main__":
    main()
