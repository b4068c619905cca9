"""
The active features of tokens under a TopK SAE, in chunks of features, beside all pre-activations and then `topk`.

What the limit is: both do the encoder's 2·N·D·F operations; the dense form holds N·F floats (twice, with the sparse
activations in a dense tensor), the chunks N·(chunk + 2·k). The results are checked to be the same.

    python benchmarks/bench_topk.py
"""

import argparse
import json
import statistics
from pathlib import Path

import torch
from machine import LiveBytes, hardware, seconds, versions
from torch import Tensor

from sae_posttrain.saes import FrozenSAE, SAESource

RESULTS = Path(__file__).parent / "results" / "bench_topk.json"


def dense_topk(sae: FrozenSAE, x_ND: Tensor) -> tuple[Tensor, Tensor]:
    """The form of sparsify and SAELens: everything, then the largest."""
    values, ids = torch.relu(sae.pre_activations(x_ND)).topk(sae.k or 1, dim=-1)
    return values, ids


def chunks(sae: FrozenSAE, x_ND: Tensor) -> tuple[Tensor, Tensor]:
    return sae.encode_topk(x_ND)


FORMS = {"dense": dense_topk, "chunks": chunks}


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
    found = {name: form(sae, x_ND) for name, form in FORMS.items()}  # also warms up
    torch.testing.assert_close(found["chunks"][0], found["dense"][0])
    agreeing = float((found["chunks"][1] == found["dense"][1]).float().mean())
    taken: dict[str, list[float]] = {name: [] for name in FORMS}
    for turn in range(arguments.turns):
        for name in list(FORMS) if turn % 2 == 0 else reversed(list(FORMS)):
            started = seconds()
            FORMS[name](sae, x_ND)
            taken[name].append(seconds() - started)
    peaks = {}
    for name, form in FORMS.items():
        with LiveBytes() as live:
            form(sae, x_ND)
        peaks[name] = live.peak
    ratios = [ours / theirs for ours, theirs in zip(taken["chunks"], taken["dense"])]
    report = {
        "question": "Active features of tokens under a TopK SAE, in chunks of features, beside all and then `topk`.",
        "settings": vars(arguments),
        "ratio_of_time": round(statistics.median(ratios), 3),
        "ratio_by_turn": [round(ratio, 3) for ratio in ratios],
        "peak_bytes_beyond_the_weights": peaks,
        "ratio_of_peaks": round(peaks["chunks"] / peaks["dense"], 3),
        "share_of_equal_features": agreeing,
        "seconds": taken,
        "hardware": hardware(),
        "versions": versions("torch", "sae_posttrain"),
    }
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(report, indent=2) + "\n")
    mb = {name: f"{peak / 1e6:.0f} MB" for name, peak in peaks.items()}
    print(
        f"time {report['ratio_of_time']} × dense (by turn {report['ratio_by_turn']}), memory beyond the weights "
        f"{report['ratio_of_peaks']} × ({mb['chunks']} to {mb['dense']})"
    )


if __name__ == "__main__":
    main()
