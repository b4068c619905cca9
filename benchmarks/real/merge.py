"""
Merge shares of trained adapters into the model: less effect and less loss, or the mean of several runs.

    python benchmarks/real/merge.py --model M --adapters runs/real/steered_long-0/checkpoints/checkpoint-20 \
        --shares 0.5 --out runs/real/steered_long_50-0/model

The update of each weight is the sum of the adapters' updates, each multiplied by its share (PEFT's
`add_weighted_adapter` with `combination_type="cat"`, which is exact). One adapter: the interpolation of fine-tuned and
original weights of Wortsman et al. (2022, WiSE-FT). Several with shares that sum to 1: model soups (Wortsman et al.,
2022).
"""

import argparse
from pathlib import Path

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--adapters", type=Path, nargs="+", required=True)
    parser.add_argument("--shares", type=float, nargs="+", required=True, help="one for each adapter")
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    if len(arguments.shares) != len(arguments.adapters):
        parser.error(f"{len(arguments.adapters)} adapters and {len(arguments.shares)} shares: give one share each")
    names = [str(number) for number in range(len(arguments.adapters))]
    model = AutoModelForCausalLM.from_pretrained(arguments.model, dtype=torch.bfloat16)
    adapted = PeftModel.from_pretrained(model, arguments.adapters[0], adapter_name=names[0])
    for name, folder in zip(names[1:], arguments.adapters[1:], strict=True):
        adapted.load_adapter(folder, name)
    adapted.add_weighted_adapter(names, arguments.shares, "sum", combination_type="cat")
    adapted.set_adapter("sum")
    merged = adapted.merge_and_unload(adapter_names=["sum"])
    merged.to(torch.bfloat16).save_pretrained(arguments.out)
    AutoTokenizer.from_pretrained(arguments.adapters[0]).save_pretrained(arguments.out)


if __name__ == "__main__":
    main()
