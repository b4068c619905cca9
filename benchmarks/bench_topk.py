"""
Finding the active features of tokens in a TopK SAE in chunks of features, compared with `topk` of all pre-activations,
and with sparsify and SAELens on the same weights.

The limit: all do the encoder's 2·N·D·F operations. The dense form holds N·F floats (SAELens twice as many, for
activations that are nearly all 0), the chunks hold N·(chunk + 2·k). The results are checked to be equal.

    pip install eai-sparsify sae-lens   # each is left out if it is missing
    python benchmarks/bench_topk.py
"""

import argparse
import json
import statistics
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from machine import hardware, seconds, versions
from torch import Tensor

from sae_posttrain.estimate.live_bytes import LiveBytes
from sae_posttrain.saes import FrozenSAE, SAESource

RESULTS = Path(__file__).parent / "results" / "bench_topk.json"


def forms(sae: FrozenSAE, x_ND: Tensor) -> dict[str, Callable[[], Any]]:
    """By name: a call that finds the active features."""
    k = sae.k or 1
    found: dict[str, Callable[[], Any]] = {
        "chunks": lambda: sae.encode_topk(x_ND),
        "dense": lambda: torch.relu(sae.pre_activations(x_ND)).topk(k, dim=-1),
    }
    if find_spec("sparsify"):
        found["sparsify"] = sparsify(sae, x_ND)
    if find_spec("sae_lens"):
        found["sae_lens"] = sae_lens(sae, x_ND)
    return found


def sparsify(sae: FrozenSAE, x_ND: Tensor) -> Callable[[], Any]:
    from sparsify import SparseCoder, SparseCoderConfig

    config = SparseCoderConfig(num_latents=sae.num_features, k=sae.k or 1)
    coder = SparseCoder(sae.d_model, config, device=x_ND.device, decoder=False)
    coder.encoder.weight.data, coder.encoder.bias.data = sae.W_enc.T, sae.b_enc

    def run() -> Any:
        with torch.no_grad():
            return coder.encode(x_ND)

    return run


def sae_lens(sae: FrozenSAE, x_ND: Tensor) -> Callable[[], Any]:
    from sae_lens import TopKSAE, TopKSAEConfig

    sizes = {"d_in": sae.d_model, "d_sae": sae.num_features, "k": sae.k or 1}
    coder = TopKSAE(TopKSAEConfig(**sizes, device=str(x_ND.device), dtype="float32"))
    coder.W_enc.data, coder.b_enc.data = sae.W_enc, sae.b_enc

    def run() -> Any:
        with torch.no_grad():
            return coder.encode(x_ND)

    return run


def in_order(found: Any, k: int) -> Tensor:
    """Activations `(N, k)`, the strongest first: of `(N, F)`, or of a tuple that begins with those of k features."""
    values = found if isinstance(found, Tensor) else found[0]
    return values.topk(k, dim=-1).values


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--features", type=int, default=65_536)
    parser.add_argument("--width", type=int, default=4096)
    parser.add_argument("--k", type=int, default=100)
    parser.add_argument("--tokens", type=int, default=256)
    parser.add_argument("--turns", type=int, default=7)
    parser.add_argument("--threads", type=int, default=0, help="of torch; 0 leaves its default")
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(0)
    W = torch.randn(arguments.features, arguments.width, device=device) / arguments.width**0.5
    sae = FrozenSAE(
        W_enc=W.T,
        b_enc=torch.randn(arguments.features, device=device),
        W_dec=None,
        b_dec=torch.zeros(arguments.width, device=device),
        activation="topk",
        block=0,
        source=SAESource("", None, "random", "qwen_scope", Path("random")),
        k=arguments.k,
    )
    x_ND = torch.randn(arguments.tokens, arguments.width, device=device)
    calls = forms(sae, x_ND)
    first = in_order(calls["chunks"](), arguments.k)  # also warms up
    for call in calls.values():
        torch.testing.assert_close(in_order(call(), arguments.k), first)
    taken: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(arguments.turns):
        for name in list(calls) if turn % 2 == 0 else reversed(list(calls)):
            started = seconds()
            calls[name]()
            taken[name].append(seconds() - started)
    peaks = {}
    for name, call in calls.items():
        with LiveBytes() as live:
            call()
        peaks[name] = live.peak
    others = [name for name in calls if name != "chunks"]
    by_turn = {
        name: [round(ours / theirs, 3) for ours, theirs in zip(taken["chunks"], taken[name])] for name in others
    }
    libraries = [{"sparsify": "eai-sparsify", "sae_lens": "sae-lens"}[name] for name in others if name != "dense"]
    report = {
        "question": "Active features under a TopK SAE, in chunks, beside all and then `topk`, sparsify and SAELens.",
        "settings": vars(arguments),
        "ratio_of_time": {name: round(statistics.median(ratios), 3) for name, ratios in by_turn.items()},
        "ratio_by_turn": by_turn,
        "peak_bytes_beyond_the_weights": peaks,
        "ratio_of_peaks": {name: round(peaks["chunks"] / peaks[name], 3) for name in others},
        "seconds": taken,
        "hardware": hardware(),
        "versions": versions("torch", "sae_posttrain", *libraries),
    }
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(report, indent=2) + "\n")
    for name in others:
        sizes = f"{peaks['chunks'] / 1e6:.0f} MB to {peaks[name] / 1e6:.0f} MB"
        print(
            f"{report['ratio_of_time'][name]} × the time of {name} (by turn {by_turn[name]}), memory beyond the "
            f"weights {report['ratio_of_peaks'][name]} × ({sizes})"
        )


if __name__ == "__main__":
    main()
