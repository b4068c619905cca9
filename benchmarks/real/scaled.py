"""
Merge a share of a trained adapter into the model: less effect, and less loss, without training again.

    python benchmarks/real/scaled.py --model M --adapter runs/real/steered_long-0/checkpoints/checkpoint-20 \
        --share 0.6 --out runs/real/steered_long_60-0/model

The update of each weight is multiplied by the share (`peft.helpers.rescale_adapter_scale`), as in the interpolation of
fine-tuned and original weights of Wortsman et al. (2022, WiSE-FT).
"""

import argparse
from pathlib import Path

import torch
from peft import PeftModel
from peft.helpers import rescale_adapter_scale
from transformers import AutoModelForCausalLM, AutoTokenizer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--adapter", type=Path, required=True)
    parser.add_argument("--share", type=float, required=True, help="1 merges the whole adapter")
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    model = AutoModelForCausalLM.from_pretrained(arguments.model, dtype=torch.bfloat16)
    adapted = PeftModel.from_pretrained(model, arguments.adapter)
    with rescale_adapter_scale(adapted, arguments.share):
        merged = adapted.merge_and_unload()
    merged.to(torch.bfloat16).save_pretrained(arguments.out)
    AutoTokenizer.from_pretrained(arguments.adapter).save_pretrained(arguments.out)


if __name__ == "__main__":
    main()
