"""
Judge answers that some other program generated, and write them as `evaluate` does, for `sae-posttrain diagnose`.

    python benchmarks/judge_answers.py --model model --prompts prompts.jsonl --answers answers.jsonl --out judged

`answers.jsonl` holds a line for each answer: `prompt`, the number of its line in the prompts from 0; `text`; and
`cut`, whether the answer reached the length limit. Prompts are messages, as chat prompts are.
"""

import argparse
import json
from dataclasses import asdict
from pathlib import Path

from transformers import AutoTokenizer

from sae_posttrain import find_loop, find_switches


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="its tokenizer divides the answers")
    parser.add_argument("--prompts", type=Path, required=True)
    parser.add_argument("--answers", type=Path, required=True)
    parser.add_argument("--limit", type=int, help="answers of each kind, the first ones: endless loops, and no loop")
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    arguments = parser.parse_args()
    tokenizer = AutoTokenizer.from_pretrained(arguments.model)
    prompts = [json.loads(line) for line in arguments.prompts.open(encoding="utf-8")]
    kept: dict[bool, list[dict]] = {True: [], False: []}
    for line in arguments.answers.open(encoding="utf-8"):
        answer = json.loads(line)
        if not answer["text"].strip():
            continue
        prompt = prompts[answer["prompt"]]
        text = prompt["prompt"][-1]["content"]
        loop = find_loop(tokenizer(answer["text"])["input_ids"], finished=not answer["cut"])
        switches = find_switches(answer["text"], lang=prompt["lang"], prompt=text, target_lang=None)
        if not loop.endless and (loop.loop_any or loop.near_loop):
            continue
        kept[loop.endless].append(
            {
                "id": answer["prompt"],
                "sample": 0,
                "lang": prompt["lang"],
                "prompt": text,
                "answer": answer["text"],
                "unexpected": switches.unexpected,
                "spans": [asdict(span) for span in switches.spans],
                "loop": {name: getattr(loop, name) for name in ("endless", "loop_any", "near_loop", "onset", "span")},
            }
        )
    lines = [line for of_kind in kept.values() for line in of_kind[: arguments.limit]]
    arguments.out.mkdir(parents=True, exist_ok=True)
    (arguments.out / "settings.json").write_text('{"prompt_form": "messages"}\n')
    (arguments.out / "answers.jsonl").write_text(
        "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines), encoding="utf-8"
    )
    print(f"{len(kept[True])} endless loops, {len(kept[False])} without a loop; {len(lines)} written")


if __name__ == "__main__":
    main()
