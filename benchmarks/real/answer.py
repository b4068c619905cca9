"""
Answers of a model to chat prompts at several temperatures, kept as they come.

    python benchmarks/real/answer.py --model M --prompts prompts/test.jsonl --temperatures 0 0.7 1 --out answers/before

Writes one line an answer to `<out>/<temperature>.jsonl`: number of the prompt, tokens, whether it was cut at the
limit, and the text. Answers that stand there are not made again. Needs an environment with vLLM; the model is a folder
of weights and no adapter.
"""

import argparse
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

CHUNK = 120  # prompts between two writes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--prompts", type=Path, required=True)
    parser.add_argument("--temperatures", type=float, nargs="+", required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--max-new-tokens", type=int, default=256)
    parser.add_argument("--limit", type=int, help="use the first so many prompts")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--dtype", default="bfloat16")
    arguments = parser.parse_args()
    rows = [json.loads(line) for line in arguments.prompts.read_text(encoding="utf-8").splitlines()]
    prompts = [row["prompt"] for row in rows[: arguments.limit]]
    arguments.out.mkdir(parents=True, exist_ok=True)
    work = [(t, arguments.out / f"{t:g}.jsonl") for t in arguments.temperatures]
    missing = [(t, file, left) for t, file in work if (left := not_done(file, len(prompts)))]
    if not missing:
        return
    engine = VLLM(arguments)
    for temperature, file, left in missing:
        for start in range(0, len(left), CHUNK):
            numbers = left[start : start + CHUNK]
            answers = engine.answers([prompts[number] for number in numbers], temperature)
            lines = [
                json.dumps({"prompt": number, **answer}, ensure_ascii=False)
                for number, answer in zip(numbers, answers, strict=True)
            ]
            with open(file, "a", encoding="utf-8") as out:
                out.write("\n".join(lines) + "\n")
            print(f"{file}: {start + len(numbers)} of {len(left)}", flush=True)


def not_done(file: Path, num_prompts: int) -> list[int]:
    done = set()
    if file.exists():
        done = {json.loads(line)["prompt"] for line in file.read_text(encoding="utf-8").splitlines()}
    return [number for number in range(num_prompts) if number not in done]


class VLLM:
    def __init__(self, arguments: argparse.Namespace) -> None:
        from vllm import LLM

        self.arguments = arguments
        self.llm = LLM(
            arguments.model, dtype=arguments.dtype, enforce_eager=True, max_model_len=2048,
            max_num_seqs=CHUNK, seed=arguments.seed,
        )  # fmt: skip

    def answers(self, prompts: Sequence[Any], temperature: float) -> Iterator[dict[str, Any]]:
        from vllm import SamplingParams

        limit = self.arguments.max_new_tokens
        settings = SamplingParams(temperature=temperature, max_tokens=limit)  # vLLM on a CPU takes no seed a request
        for done in self.llm.chat(list(prompts), settings, use_tqdm=False):
            answer = done.outputs[0]
            yield {"tokens": len(answer.token_ids), "cut": answer.finish_reason == "length", "text": answer.text}


if __name__ == "__main__":
    main()
