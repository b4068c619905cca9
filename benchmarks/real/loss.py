"""
Loss of models, in nats a token, on held-out help pages and reviews that no prompt was made from.

    python benchmarks/real/loss.py --data D --models M runs/real/plain-0/model --out results/loss.json

The texts are those of the held-out side of the split (`prompts.py`), at most 256 tokens each.
"""

import argparse
import json
import random
import sys
from pathlib import Path

import torch
from prompts import held_out, read
from tqdm import tqdm
from transformers import AutoModelForCausalLM, AutoTokenizer

sys.path[:0] = [str(Path(__file__).resolve().parent.parent)]

from machine import hardware, versions  # noqa: E402


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--models", type=Path, nargs="+", required=True, help="the first is compared with the others")
    parser.add_argument("--num-texts", type=int, default=80, help="texts of each kind")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    texts = held_out_texts(arguments.data, arguments.num_texts)
    losses = {str(folder): loss_of(folder, texts) for folder in arguments.models}
    first = next(iter(losses.values()))
    for name, loss in losses.items():
        change = ", ".join(f"{kind} {value:.4f} ({value / first[kind] - 1:+.2%})" for kind, value in loss.items())
        print(f"{name}: {change}")
    if arguments.out:
        result = {"losses": losses, "hardware": hardware(), "versions": versions("torch", "transformers")}
        arguments.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


def held_out_texts(data: Path, number: int) -> dict[str, list[str]]:
    pages = [page["text"] for page in read(data / "help" / "en.jsonl.gz") if held_out(page["id"])]
    reviews = read(data / "bigbench" / "multiemo" / "products.en.jsonl.gz")
    kinds = {"help": sorted(pages), "review": sorted({review["text"] for review in reviews})}
    return {kind: random.Random(0).sample(texts, number) for kind, texts in kinds.items()}


@torch.inference_mode()
def loss_of(folder: Path, texts: dict[str, list[str]]) -> dict[str, float]:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    result = {}
    for kind, own in texts.items():
        total, count = 0.0, 0
        for text in tqdm(own, desc=f"{folder.name}, {kind}", leave=False):
            ids = torch.tensor([tokenizer(text)["input_ids"][:256]])
            logits = model(input_ids=ids).logits[0, :-1].float()
            total += torch.nn.functional.cross_entropy(logits, ids[0, 1:], reduction="sum").item()
            count += ids.shape[1] - 1
        result[kind] = total / count
    return result


if __name__ == "__main__":
    main()
