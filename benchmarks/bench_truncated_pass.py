"""
Reading a site in a forward pass that stops after its block, compared with the whole pass.

Both read the output of one block for the same batches. The whole pass computes the logits of one position, as before
the truncated pass existed. The two take turns batch by batch, so that what else runs on the machine meets both alike.
Time is processor time. The values are compared bit for bit.

    python benchmarks/bench_truncated_pass.py --model models/help-qwen3-7m --texts data/help/en.jsonl.gz
"""

import argparse
import json
import statistics
from pathlib import Path
from typing import Any

import torch
from machine import hardware, seconds, versions
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from sae_posttrain.features.read.text_options import TextOptions
from sae_posttrain.features.read.texts import TextBatch, batches, read_rows, tokenize
from sae_posttrain.hooks.record import record_sites
from sae_posttrain.hooks.truncated import read_sites

RESULTS = Path(__file__).parent / "results" / "bench_truncated_pass.json"


def whole(model: Any, batch: TextBatch, block: int) -> Tensor:
    place = (block, "resid_post")
    with torch.no_grad(), record_sites(model, [place]) as values:
        model(input_ids=batch.input_ids, attention_mask=batch.attention_mask, use_cache=False, logits_to_keep=1)
    return values[place][0]


def truncated(model: Any, batch: TextBatch, block: int) -> Tensor:
    place = (block, "resid_post")
    return read_sites(model, [place], input_ids=batch.input_ids, attention_mask=batch.attention_mask)[place]


def compare(model: Any, read: list[TextBatch], block: int, turns: int) -> dict[str, Any]:
    """Seconds of both forms in each turn, and their ratio."""
    forms = {"whole": whole, "truncated": truncated}
    taken: dict[str, list[float]] = {name: [] for name in forms}
    for turn in range(turns + 1):  # the first only warms up
        spent = dict.fromkeys(forms, 0.0)
        for number, batch in enumerate(read):
            values = {}
            for name in list(forms) if (turn + number) % 2 == 0 else reversed(list(forms)):
                started = seconds()
                values[name] = forms[name](model, batch, block)
                spent[name] += seconds() - started
            if not values["whole"].equal(values["truncated"]):
                raise SystemExit(f"Block {block}: the truncated pass gives other values than the whole pass.")
        for name in forms if turn else ():
            taken[name].append(spent[name])
    ratios = [round(short / long, 3) for short, long in zip(taken["truncated"], taken["whole"])]
    return {"block": block, "ratio": statistics.median(ratios), "ratios_by_turn": ratios, "seconds": taken}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, help="folder of a model")
    parser.add_argument("--texts", type=Path, required=True, help="JSONL file with a `text` a row")
    parser.add_argument("--blocks", type=int, nargs="*", help="by default those at a third, a half and the end")
    parser.add_argument("--num-texts", type=int, default=32)
    parser.add_argument("--max-length", type=int, default=128)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=0, help="of torch; 0 leaves its default")
    parser.add_argument("--out", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    model = AutoModelForCausalLM.from_pretrained(arguments.model, dtype=getattr(torch, arguments.dtype)).eval()
    model = model.to(arguments.device)
    num_blocks = model.config.get_text_config().num_hidden_layers
    rows = [{"text": row["text"], "lang": "any"} for row in read_rows(arguments.texts)[: arguments.num_texts]]
    options = TextOptions(max_length=arguments.max_length)
    texts = tokenize(rows, AutoTokenizer.from_pretrained(arguments.model), options)
    read = [batch.to(model.device) for batch in batches(texts, ["any"], arguments.batch_size)]
    blocks = arguments.blocks or [num_blocks // 3 - 1, num_blocks // 2 - 1, num_blocks - 1]
    report = {
        "model": arguments.model.name,
        "num_blocks": num_blocks,
        "vocabulary": model.config.get_text_config().vocab_size,
        "dtype": arguments.dtype,
        "tokens": sum(int(batch.attention_mask.sum()) for batch in read),
        "blocks": [compare(model, read, block, arguments.turns) for block in blocks],
        "values": "equal bit for bit in every batch",
        "hardware": hardware(),
        "versions": versions("torch", "transformers", "sae_posttrain"),
    }
    arguments.out.parent.mkdir(exist_ok=True)
    arguments.out.write_text(json.dumps(report, indent=2) + "\n")
    for each in report["blocks"]:
        share = (each["block"] + 1) / num_blocks
        print(
            f"block {each['block']} of {num_blocks}: {each['ratio']} of the whole pass' time (by turn "
            f"{each['ratios_by_turn']}); {share:.2f} of the blocks run"
        )


if __name__ == "__main__":
    main()
