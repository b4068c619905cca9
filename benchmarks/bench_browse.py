"""
Time and size of `browse`: the pages of ten thousand features, beyond the pass over the texts.

The pass is what any form must do: the forward pass that stops after the SAE's block, the product with its encoder and
the activation. What `browse_features` takes beyond it is its whole time minus that. The SAE is a real one, widened to
`--num-features` by its own features with noise on their rows; its `k` stays.

`--worst` measures no model. It takes the texts as they are, and lets every feature fire in other places than all
others: no snippet shares its text with another, the largest folder there can be with so many features.

    python benchmarks/bench_browse.py --name smollm2 --model models/smollm2 --sae saes/smollm2 --block 14 \\
        --texts data/help/en.jsonl.gz
"""

import argparse
import json
import resource
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from machine import hardware, versions
from scipy import sparse

from sae_posttrain import FrozenSAE, TextOptions, load_sae
from sae_posttrain.analysis import browse_features
from sae_posttrain.analysis.browse import browse
from sae_posttrain.analysis.browse.reading import Reading, active_entries, tokens_per_tile
from sae_posttrain.analysis.browse.snippets import Pairs
from sae_posttrain.features.read.loading import load_model_and_tokenizer, place_of
from sae_posttrain.features.read.statistics import GroupSums
from sae_posttrain.features.read.texts import Text, batches, read_rows, tokenize
from sae_posttrain.features.read.tokens import read_tokens

RESULTS = Path(__file__).parent / "results"


def widened(sae: FrozenSAE, num_features: int) -> FrozenSAE:
    """The SAE with its own features again, a little changed, up to so many."""
    rows = torch.arange(num_features) % sae.num_features
    normal = torch.Generator().manual_seed(0)

    def changed(rows_FD: torch.Tensor) -> torch.Tensor:
        copies = rows_FD[rows].clone()
        noise = torch.randn(copies.shape, generator=normal) * rows_FD.std()
        copies[sae.num_features :] += 0.3 * noise[sae.num_features :]
        return copies

    norms = None if sae.decoder_norm is None else sae.decoder_norm[rows]
    return replace(
        sae,
        W_enc=changed(sae.W_enc.T).T,
        W_dec=changed(sae.directions),
        b_enc=sae.b_enc[rows],
        decoder_norm=norms,
    )


def bare_pass(model: Any, sae: FrozenSAE, texts: list[Text], batch_size: int) -> None:
    groups = sorted({text.group for text in texts})
    with torch.inference_mode():
        for tokens in read_tokens(model, batches(texts, groups, batch_size), [place_of(sae)]):
            residual_ND = tokens.values[place_of(sae)]
            size = tokens_per_tile(sae, residual_ND.device)
            for begin in range(0, len(residual_ND), size):
                active_entries(sae, sae.pre_activations(residual_ND[begin : begin + size]))


def apart(sae: FrozenSAE, texts: list[Text], num_snippets: int) -> Reading:
    """A reading in which no two snippets overlap, as long as the texts have room for it."""
    random = np.random.default_rng(0)
    places = [(number, peak) for number, text in enumerate(texts) for peak in range(28, len(text.ids), 45)]
    num_pairs = sae.num_features * num_snippets
    chosen = np.array(places)[random.permutation(num_pairs) % len(places)]
    lengths = np.full(num_pairs, 8)
    positions = (chosen[:, 1][:, None] + np.arange(-4, 4)).clip(0)
    values = random.random((num_pairs, 8)).astype(np.float32)
    values[:, 4] = 2.0
    features = np.repeat(np.arange(sae.num_features), num_snippets)
    pairs = Pairs(features, chosen[:, 0], values.max(axis=1), chosen[:, 1], np.cumsum(lengths) - lengths, lengths,
                  positions.ravel(), values.ravel())  # fmt: skip
    groups = sorted({text.group for text in texts})
    sums = GroupSums.zeros(len(groups), sae.num_features, torch.device("cpu"))
    sums.num_tokens += 1000
    sums.fired += torch.rand(sums.fired.shape)
    strongest = sparse.csr_array((pairs.strongest, (chosen[:, 0], features)), shape=(len(texts), sae.num_features))
    members = np.array([groups.index(text.group) for text in texts])[:1000]
    means = random.random((len(members), sae.num_features)).astype(np.float32)
    return Reading(texts, groups, sums, strongest, means, members, pairs)


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    rows = []
    for path in arguments.texts:
        rows += [{"lang": path.name.split(".")[0], "text": row["text"]} for row in read_rows(path)][
            : arguments.num_texts
        ]
    options = TextOptions(max_length=arguments.max_length, batch_size=arguments.batch_size)
    model, tokenizer = load_model_and_tokenizer(str(arguments.model), None)
    loaded = load_sae(arguments.sae, block=arguments.block, k=arguments.k)
    sae = widened(loaded, arguments.num_features)
    texts = tokenize(rows, tokenizer, options)
    found: dict[str, Any] = {"num_texts": len(texts), "num_tokens": sum(len(text.ids) for text in texts)}
    if arguments.worst:
        reading = apart(sae, texts, 8)
        browse.read_all_features = lambda *_, **__: reading
        found["num_places"] = len({(*each,) for each in zip(reading.snippets.texts, reading.snippets.peaks)})
    else:
        bare_pass(model, sae, texts[: arguments.batch_size], arguments.batch_size)  # warms up
        begun = time.perf_counter()
        bare_pass(model, sae, texts, arguments.batch_size)
        found["seconds_of_pass"] = round(time.perf_counter() - begun, 1)
    with tempfile.TemporaryDirectory() as folder:
        begun = time.perf_counter()
        page = browse_features(model, sae, rows, Path(folder) / "pages", tokenizer=tokenizer, text_options=options)
        found["seconds"] = round(time.perf_counter() - begun, 1)
        files = [file for file in page.parent.rglob("*") if file.is_file()]
        sizes = {file.relative_to(page.parent).as_posix(): file.stat().st_size for file in files}
    found["seconds_beyond_the_pass"] = round(found["seconds"] - found.get("seconds_of_pass", 0.0), 1)
    found["megabytes"] = round(sum(sizes.values()) / 1e6, 2)
    kinds = {
        kind: sum(size for name, size in sizes.items() if kind in name) / 1e6
        for kind in ("features-", "texts-", "index.js")
    }
    found["megabytes_of"] = {kind: round(size, 2) for kind, size in kinds.items()}
    found["num_files"] = len(sizes)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--sae", required=True, help="folder of SAEs")
    parser.add_argument("--k", type=int, help="active features per token, if the files do not say it")
    parser.add_argument("--block", type=int, required=True)
    parser.add_argument("--texts", type=Path, nargs="+", required=True, help="data files, a group each")
    parser.add_argument("--num-texts", type=int, default=300, help="texts of each file")
    parser.add_argument("--max-length", type=int, default=128)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--num-features", type=int, default=10_000)
    parser.add_argument("--threads", type=int, default=1, help="of torch")
    parser.add_argument("--worst", action="store_true", help="no pass: every snippet from a place of its own")
    parser.add_argument("--name", required=True, help="of this measurement in the results")
    parser.add_argument("--out", type=Path, default=RESULTS / "bench_browse.json")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    measured = measure(arguments)
    report = json.loads(arguments.out.read_text()) if arguments.out.is_file() else {}
    report[arguments.name] = {
        **measured,
        "peak_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
        "settings": {**vars(arguments), "model": arguments.model.name, "sae": Path(arguments.sae).name,
                     "texts": [path.name for path in arguments.texts], "out": arguments.out.name},
        "hardware": hardware(),
        "versions": versions("torch", "transformers", "scipy"),
    }  # fmt: skip
    arguments.out.parent.mkdir(exist_ok=True)
    arguments.out.write_text(json.dumps(report, indent=2) + "\n")
    print(json.dumps(measured, indent=2))


if __name__ == "__main__":
    main()
