"""
`read_activations`, compared with what any form must do, and with SAELens' `encode` over the same texts.

The limit is the forward pass that stops after the deepest block, and each SAE's product `x · W_enc + b_enc`: nothing
that reads SAEs can leave these out. `with TopK` adds the choice of each token's k features. `sae_lens` runs the same
pass and the same weights in SAELens' `TopKSAE.encode`, whose result is dense, and takes the maximum over each text.
The forms take turns in one run. Time is processor time. The activations are checked to be equal.

Memory: the largest resident size of a fresh process that reads more and more texts from a file, at most 32 tokens of
each, beside the size of the sparse result, which is all that should grow. Up to 4,096 texts are tokenized at a time.

    pip install sae-lens   # left out if it is missing
    python benchmarks/bench_read_activations.py --model models/help-qwen3-7m --sae models/help-qwen3-7m/sae \\
        --k 32 --blocks 2 4 --texts data/help/en.jsonl.gz
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from machine import hardware, seconds, versions
from transformers import AutoModelForCausalLM, AutoTokenizer

from sae_posttrain import TextOptions, load_sae
from sae_posttrain.analysis import read_activations
from sae_posttrain.features.read.texts import batches, read_rows, tokenize
from sae_posttrain.hooks.truncated import read_sites

RESULTS = Path(__file__).parent / "results" / "bench_read_activations.json"


class Forms:
    """The forms that take turns; each returns the largest activation of every feature, or nothing."""

    def __init__(self, arguments: argparse.Namespace):
        self.model = AutoModelForCausalLM.from_pretrained(arguments.model, dtype=torch.float32).eval()
        self.tokenizer = AutoTokenizer.from_pretrained(arguments.model)
        self.saes = [load_sae(arguments.sae, block=block, k=arguments.k) for block in arguments.blocks]
        self.rows = [{"text": row["text"]} for row in read_rows(arguments.texts)[: arguments.num_texts]]
        self.options = TextOptions(max_length=arguments.max_length, batch_size=arguments.batch_size)
        self.coders = [self._coder(sae) for sae in self.saes] if find_spec("sae_lens") else []

    def _coder(self, sae: Any) -> Any:
        from sae_lens import TopKSAE, TopKSAEConfig

        config = TopKSAEConfig(d_in=sae.d_model, d_sae=sae.num_features, k=sae.k, device="cpu", dtype="float32")
        coder = TopKSAE(config)
        coder.W_enc.data, coder.b_enc.data = sae.W_enc.contiguous(), sae.b_enc
        return coder

    def read(self) -> list[np.ndarray]:
        read = read_activations(self.model, self.saes, self.rows, tokenizer=self.tokenizer, text_options=self.options)
        return [read.at(place).max(axis=0).toarray().ravel() for place in read.places]

    def limit(self) -> None:
        self._over_batches(lambda number, x_ND, _: self.saes[number].pre_activations(x_ND))

    def with_topk(self) -> None:
        self._over_batches(
            lambda number, x_ND, _: self.saes[number].activate_topk(self.saes[number].pre_activations(x_ND))
        )

    def sae_lens(self) -> list[np.ndarray]:
        best = [np.zeros(sae.num_features, dtype=np.float32) for sae in self.saes]

        def encode(number: int, x_ND: torch.Tensor, text_N: torch.Tensor) -> None:
            acts_NF = self.coders[number].encode(x_ND)
            for text in range(int(text_N.max()) + 1):
                members = acts_NF[text_N == text]
                if len(members):
                    best[number] = np.maximum(best[number], members.amax(dim=0).numpy())

        self._over_batches(encode)
        return best

    def _over_batches(self, work: Any) -> None:
        texts = tokenize([{**row, "lang": "any"} for row in self.rows], self.tokenizer, self.options)
        places = [(sae.block, sae.site) for sae in self.saes]
        with torch.inference_mode():
            for batch in batches(texts, ["any"], self.options.batch_size):
                values = read_sites(self.model, places, input_ids=batch.input_ids, attention_mask=batch.attention_mask)
                text_N = batch.counted.nonzero()[:, 0]
                for number, place in enumerate(places):
                    work(number, values[place][batch.counted], text_N)


def resident_mb(name: str) -> float:
    """A line of the process's status: `VmHWM` is the largest resident size, `VmRSS` that of now."""
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return round(int(status[name].split()[0]) / 1024, 1)


def memory(arguments: argparse.Namespace) -> dict[str, Any]:
    """What this process needs to read that many texts."""
    forms = Forms(arguments)
    options = TextOptions(max_length=32, batch_size=arguments.batch_size)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "texts.jsonl"
        with file.open("w", encoding="utf-8") as lines:
            for number in range(arguments.memory_of):
                text = f"{number} {forms.rows[number % len(forms.rows)]['text']}"
                lines.write(json.dumps({"text": text}, ensure_ascii=False) + "\n")
        before = resident_mb("VmRSS")
        read = read_activations(forms.model, forms.saes, str(file), tokenizer=forms.tokenizer, text_options=options)
    result = sum(
        part.nbytes for values in read.values.values() for part in (values.data, values.indices, values.indptr)
    )
    return {
        "texts": arguments.memory_of,
        "before_mb": before,
        "peak_mb": resident_mb("VmHWM"),
        "sparse_result_mb": round(result / 2**20, 1),
    }


def peak_of(number: int) -> dict[str, Any]:
    """`memory` in a process of its own, with the same arguments."""
    called = [sys.executable, __file__, *sys.argv[1:], "--memory-of", str(number)]
    return json.loads(subprocess.run(called, check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()[-1])


def times(arguments: argparse.Namespace) -> dict[str, Any]:
    """The forms in turn."""
    forms = Forms(arguments)
    calls = {"read_activations": forms.read, "limit": forms.limit, "with TopK": forms.with_topk}
    if forms.coders:
        calls["sae_lens"] = forms.sae_lens
        for ours, theirs in zip(forms.read(), forms.sae_lens()):
            np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-4)
    forms.limit()  # warms up
    taken: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(arguments.turns):
        for name in list(calls) if turn % 2 == 0 else reversed(list(calls)):
            started = seconds()
            calls[name]()
            taken[name].append(seconds() - started)
    ratios = {
        name: [round(ours / theirs, 3) for ours, theirs in zip(taken["read_activations"], taken[name])]
        for name in calls
        if name != "read_activations"
    }
    return {
        "question": "Time of read_activations beside the truncated pass with the encoders' products, and SAELens.",
        "settings": {**vars(arguments), "model": arguments.model.name, "sae": Path(arguments.sae).name,
                     "texts": arguments.texts.name, "out": arguments.out.name},
        "ratio_of_time": {name: statistics.median(each) for name, each in ratios.items()},
        "ratio_by_turn": ratios,
        "seconds": taken,
        "hardware": hardware(),
        "versions": versions("torch", "scipy", *(["sae-lens"] if forms.coders else [])),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--sae", required=True, help="folder of TopK SAEs")
    parser.add_argument("--k", type=int, help="active features per token, if the files do not say it")
    parser.add_argument("--blocks", type=int, nargs="+", required=True)
    parser.add_argument("--texts", type=Path, required=True, help="data file with a `text` a row")
    parser.add_argument("--num-texts", type=int, default=128)
    parser.add_argument("--max-length", type=int, default=128)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1, help="of torch")
    parser.add_argument("--parts", nargs="+", choices=["time", "memory"], default=["time", "memory"])
    parser.add_argument("--memory-texts", type=int, nargs="*", default=[1000, 4000, 8000])
    parser.add_argument("--memory-of", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.memory_of is not None:
        print(json.dumps(memory(arguments)))
        return
    report: dict[str, Any] = json.loads(arguments.out.read_text()) if arguments.out.exists() else {}
    report |= times(arguments) if "time" in arguments.parts else {}
    if "memory" in arguments.parts:
        report["memory"] = [peak_of(number) for number in arguments.memory_texts]
    arguments.out.parent.mkdir(exist_ok=True)
    arguments.out.write_text(json.dumps(report, indent=2) + "\n")
    for name, ratio in report.get("ratio_of_time", {}).items():
        print(f"{ratio} × the time of {name} (by turn {report['ratio_by_turn'][name]})")
    for each in report.get("memory", []):
        print(", ".join(f"{name} {value}" for name, value in each.items()))


if __name__ == "__main__":
    main()
