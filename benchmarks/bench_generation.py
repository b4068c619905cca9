"""
Time of `generate` with steered rows, as a ratio to plain `generate`, compared with other steering libraries.

Model, prompts and directions are the same for all. Decoding is greedy, and every row has exactly `--max-new-tokens`
tokens. Each library adds the same vectors at every position of every row and must produce the same tokens. Ours also
steers one row of eight, which the others do not offer in `generate`. In each round, all run in turn; ratios are of
medians.

The limit: a push at B rows of width D takes 2·B·D operations and one kernel per block and step, compared with 2·B·P
for P parameters. The main cost is the host's work for each hook. On a CPU this is too small to be seen beside the
matrix products, so it is also counted without noise: the additional calls of Python and C functions, and the
additional operators of torch, in a step of decoding.

    pip install steering-vectors repeng nnsight   # each is left out if it is missing
    python benchmarks/bench_generation.py
"""

import argparse
import json
import statistics
import sys
import threading
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from machine import hardware, seconds, versions
from tqdm import tqdm
from transformers import Qwen3Config, Qwen3ForCausalLM

from sae_posttrain import FeatureSet, steer

RESULTS = Path(__file__).parent / "results" / "bench_generation.json"
WORK = RESULTS.with_stem("bench_generation_work")
PROMPT_LENGTH = 16
Generate = Callable[[], torch.Tensor]


def make_model(arguments: argparse.Namespace) -> Any:
    """Random weights in Qwen3's architecture."""
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=arguments.vocab_size,
        hidden_size=arguments.width,
        intermediate_size=3 * arguments.width,
        num_hidden_layers=arguments.blocks,
        num_attention_heads=arguments.width // 64,
        num_key_value_heads=arguments.width // 128,
        head_dim=64,
        tie_word_embeddings=True,
        eos_token_id=None,
        pad_token_id=0,
    )
    on_gpu = torch.cuda.is_available()
    return Qwen3ForCausalLM(config).to("cuda" if on_gpu else "cpu", torch.bfloat16 if on_gpu else torch.float32).eval()


def ways(model: Any, arguments: argparse.Namespace, num_tokens: int) -> tuple[dict[str, Generate], list[str]]:
    """By name: a call of `generate`; and which of them push all rows at all positions of so many blocks."""
    ids = torch.randint(1, arguments.vocab_size, (arguments.rows, PROMPT_LENGTH), device=model.device)
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    length = {"max_new_tokens": num_tokens, "do_sample": False}

    def plain() -> torch.Tensor:
        return model.generate(**inputs, **length)

    found: dict[str, Generate] = {"plain": plain}
    middle = arguments.blocks // 2
    some = [rows == 0 for rows in range(arguments.rows)]
    for num in (1, 8):
        blocks = list(range(middle - num // 2, middle - num // 2 + num))
        vectors = torch.randn(num, arguments.width, generator=torch.Generator().manual_seed(1))
        features = FeatureSet.from_directions(
            vectors, blocks=blocks, names=[str(b) for b in blocks], residual_norms=[1.0] * num
        )
        found[f"sae_posttrain, 1 row, {num}"] = steered(model, features, inputs, length, rows=some)
        found[f"sae_posttrain, all rows, {num}"] = steered(model, features, inputs, length, positions="all")
        pushes = {block: vectors[i] / vectors[i].norm() for i, block in enumerate(blocks)}
        for name, make in (("steering_vectors", steering_vectors), ("repeng", repeng), ("nnsight", nnsight)):
            if find_spec(name):
                found[f"{name}, all rows, {num}"] = make(model, pushes, inputs, length)
    return found, [name for name in found if "all rows" in name]


def steered(model: Any, features: FeatureSet, inputs: dict, length: dict, **options: Any) -> Generate:
    def run() -> torch.Tensor:
        with steer(model, features, strength=1.0, unit="raw", **options):
            return model.generate(**inputs, **length)

    return run


def steering_vectors(model: Any, pushes: dict[int, torch.Tensor], inputs: dict, length: dict) -> Generate:
    from steering_vectors import SteeringVector

    vector = SteeringVector(layer_activations=pushes)

    def run() -> torch.Tensor:
        with vector.apply(model):
            return model.generate(**inputs, **length)

    return run


def repeng(model: Any, pushes: dict[int, torch.Tensor], inputs: dict, length: dict) -> Generate:
    import numpy

    if not hasattr(numpy, "float_"):  # repeng 0.4 names it in an annotation; it is gone from NumPy 2
        numpy.float_ = numpy.float64
    from repeng.control import ControlModel

    def run() -> torch.Tensor:
        control = ControlModel(model, list(pushes))
        try:
            control.set_raw_control({block: push.to(model.device, model.dtype) for block, push in pushes.items()})
            return control.generate(**inputs, **length)
        finally:
            control.unwrap()

    return run


def nnsight(model: Any, pushes: dict[int, torch.Tensor], inputs: dict, length: dict) -> Generate:
    from nnsight import NNsight

    traced = NNsight(model)
    pushes = {block: push.to(model.device, model.dtype) for block, push in pushes.items()}

    def run() -> torch.Tensor:
        with traced.trace(fn=model.generate, **inputs, **length) as tracer:
            for _ in tracer.iter[: length["max_new_tokens"]]:
                for block, push in pushes.items():
                    traced.model.layers[block].output = traced.model.layers[block].output + push
            ids = tracer.result.save()
        return ids

    return run


def host_work(call: Generate) -> tuple[int, int]:
    """Calls of functions, in this thread and in those it starts, and operators of torch."""
    num_calls = 0

    def count(_frame: Any, event: str, _argument: Any) -> None:
        nonlocal num_calls
        num_calls += event in ("call", "c_call")

    threading.setprofile(count)
    sys.setprofile(count)
    try:
        call()
    finally:
        sys.setprofile(None)
        threading.setprofile(None)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        call()
    operators = sum(event.count for event in profile.key_averages() if event.key.startswith("aten::"))
    return num_calls, operators


def added_per_step(model: Any, arguments: argparse.Namespace) -> dict[str, dict[str, float]]:
    """What each way adds to a step of decoding, from the difference of a longer and a shorter answer."""
    lengths = (8, 16)
    counted = [
        {name: host_work(call) for name, call in ways(model, arguments, length)[0].items()} for length in lengths
    ]
    steps = lengths[1] - lengths[0]
    per_step = {
        name: [(long - short) / steps for short, long in zip(counted[0][name], counted[1][name])]
        for name in counted[0]
    }
    return {
        name: {
            "calls": round(work[0] - per_step["plain"][0], 1),
            "operators": round(work[1] - per_step["plain"][1], 1),
        }
        for name, work in per_step.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--blocks", type=int, default=12)
    parser.add_argument("--vocab-size", type=int, default=8192)
    parser.add_argument("--rows", type=int, default=8)
    parser.add_argument("--max-new-tokens", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=9, help="of times; 0 counts the host's work alone")
    parser.add_argument("--threads", type=int, default=0, help="of torch; 0 leaves its default")
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    model = make_model(arguments)
    calls, alike = ways(model, arguments, arguments.max_new_tokens)
    tokens = {name: call() for name, call in calls.items()}  # also warms up
    for num in (1, 8):
        same = [name for name in alike if name.endswith(f", {num}")]
        different = [name for name in same if not tokens[name].equal(tokens[same[0]])]
        if different or tokens[same[0]].equal(tokens["plain"]):
            raise SystemExit(f"Not the same push as {same[0]}: {', '.join(different) or 'plain is the same'}.")
    libraries = ("steering-vectors", "repeng", "nnsight")
    made_with = {
        "hardware": hardware(),
        "versions": versions(
            *("torch", "transformers", "sae_posttrain"),
            *(name for name in libraries if find_spec(name.replace("-", "_"))),
        ),
    }
    added = added_per_step(model, arguments)
    work = {"question": "What steering adds to the host's work for a step of decoding.", "settings": vars(arguments)}
    WORK.parent.mkdir(exist_ok=True)
    WORK.write_text(json.dumps({**work, "added_per_step": added, **made_with}, indent=2) + "\n")
    for name, more in added.items():
        print(f"{name:36} {more['calls']:7.1f} calls and {more['operators']:5.1f} operators a step more than plain")
    if not arguments.rounds:
        return
    taken: dict[str, list[float]] = {name: [] for name in calls}
    for number in tqdm(range(arguments.rounds), unit="round"):
        for name in list(calls) if number % 2 == 0 else reversed(list(calls)):
            started = seconds()
            calls[name]()
            taken[name].append(seconds() - started)
    by_round = {name: [a / b for a, b in zip(own, taken["plain"])] for name, own in taken.items()}
    ratios = {name: round(statistics.median(own), 4) for name, own in by_round.items()}
    report = {
        "question": "Time of `generate` with rows steered, against plain `generate` and other libraries.",
        "settings": vars(arguments),
        "ratio": ratios,
        "ratio_by_round": {name: [round(value, 3) for value in own] for name, own in by_round.items()},
        "seconds": {name: [round(value, 4) for value in own] for name, own in taken.items()},
        **made_with,
    }
    RESULTS.write_text(json.dumps(report, indent=2) + "\n")
    for name, ratio in ratios.items():
        spread = sorted(by_round[name])
        print(f"{name:36} {ratio:.3f} × plain ({spread[0]:.3f} to {spread[-1]:.3f})")


if __name__ == "__main__":
    main()
