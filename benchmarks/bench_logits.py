"""
The logits of a prompt's last position with frozen bfloat16 weights on CPU: as `generate` slices the states, and as
`contiguous_states` hands them over. Output embeddings of the size of real models, random weights.

    python benchmarks/bench_logits.py

Time of the processor, median of the turns; the logits are checked to be equal.
"""

import argparse
import json
import statistics
from pathlib import Path
from types import SimpleNamespace

import torch
from machine import hardware, seconds, versions

from sae_posttrain.cpu_logits import contiguous_states

RESULTS = Path(__file__).parent / "results" / "bench_logits.json"
SIZES = {"SmolLM2-135M": (49_152, 576), "Gemma 3 270M": (262_144, 640)}
PROMPT = 16  # positions


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 4, 16])
    parser.add_argument("--turns", type=int, default=1)
    parser.add_argument("--out", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    cells = []
    for name, (vocab, width) in SIZES.items():
        torch.manual_seed(0)
        head = torch.nn.Linear(width, vocab, bias=False, dtype=torch.bfloat16).requires_grad_(False)
        model = SimpleNamespace(get_output_embeddings=lambda head=head: head)
        timed([], head, torch.randn(4, 1, width).bfloat16())  # the first product prepares the weights
        for rows in arguments.rows:
            states = torch.randn(rows, PROMPT, width).bfloat16()[:, -1:]
            took: dict[str, list[float]] = {"sliced": [], "contiguous": []}
            for _ in range(arguments.turns):
                sliced = timed(took["sliced"], head, states)
                with contiguous_states(model):
                    contiguous = timed(took["contiguous"], head, states)
                assert torch.equal(sliced, contiguous)
            cells.append({"model": name, "rows": rows} | {key: statistics.median(each) for key, each in took.items()})
            print(cells[-1], flush=True)
    result = {"cells": cells, "turns": arguments.turns, "hardware": hardware(), "versions": versions("torch")}
    arguments.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


@torch.inference_mode()
def timed(took: list[float], head: torch.nn.Module, states: torch.Tensor) -> torch.Tensor:
    started = seconds()
    logits = head(states)
    took.append(seconds() - started)
    return logits


if __name__ == "__main__":
    main()
