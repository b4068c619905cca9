"""
Whether features that read a register in English read it in other languages too, block by block; nothing is trained.

    python benchmarks/evidence/register_transfer.py --data data/help --model models/help-qwen3-7m

In each block the features are taken whose mean activation on English reference pages is furthest above that on English
guides. On other pages, of every language, is the difference still there? Writes `results/register_transfer.json`.
"""

import argparse
import json
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent), str(HERE.parent / "help")]

import torch  # noqa: E402
from register_arms import GROUP, OPENING, Bench, texts_to_find  # noqa: E402
from register_judge import REFERENCE  # noqa: E402
from register_measures import JUDGED  # noqa: E402

from sae_posttrain.features.read.loading import load_saes, place_of  # noqa: E402
from sae_posttrain.features.read.statistics import collect_statistics  # noqa: E402
from sae_posttrain.features.read.text_options import TextOptions  # noqa: E402
from sae_posttrain.features.read.texts import batches, tokenize  # noqa: E402

NUM_FEATURES = 16
HALVES = ("choose", "measure")


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of <lang>.jsonl[.gz]")
    parser.add_argument("--model", type=Path, required=True, help="folder of the model, with its SAEs in sae/")
    parser.add_argument("--threads", type=int, default=0, help="of torch; 0 leaves its default")
    parser.add_argument("--results", type=Path, default=HERE / "results")
    arguments = parser.parse_args(argv)
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    bench = Bench(arguments.model, arguments.data, Path("runs/evidence/register"))
    model = bench.load().eval()
    rows = [
        row | {"half": f"{HALVES[place % 2]} {'reference' if row[GROUP] == REFERENCE else 'guide'} {lang}"}
        for lang in JUDGED
        for place, row in enumerate(texts_to_find(bench, [lang]))
    ]
    texts = tokenize(rows, bench.tokenizer, TextOptions(group_column="half", max_length=OPENING))
    groups = sorted({text.group for text in texts})
    folder, k = bench.saes()
    saes = load_saes(folder, range(model.config.num_hidden_layers), None, k=k, format=None, revision=None)
    sums = collect_statistics(
        model,
        batches(texts, groups, 16),
        saes,
        len(groups),
        num_tokens=sum(len(text.ids) for text in texts),
    )
    found = {}
    for sae in saes:
        mean_GF = sums[place_of(sae)].mean_activation.float()
        difference_F = {
            (half, lang): mean_GF[groups.index(f"{half} reference {lang}")]
            - mean_GF[groups.index(f"{half} guide {lang}")]
            for half in HALVES
            for lang in JUDGED
        }
        english = difference_F["choose", "en"].topk(NUM_FEATURES).indices
        found[sae.block] = {
            lang: {
                "of_english": round(float(difference_F["measure", lang][english].mean()), 4),
                "of_own": round(float(difference_F["measure", lang][own].mean()), 4),
            }
            for lang in JUDGED
            for own in [difference_F["choose", lang].topk(NUM_FEATURES).indices]
        }
    arguments.results.mkdir(exist_ok=True)
    file = arguments.results / "register_transfer.json"
    file.write_text(json.dumps({"num_features": NUM_FEATURES, "blocks": found}, indent=1) + "\n", encoding="utf-8")
    print(file.read_text(encoding="utf-8"))


if __name__ == "__main__":
    main()
