"""
Where the probability of a switch lies, and what of it features can see: plain SFT on the dev pages.

    python benchmarks/evidence/reach.py --data data/help --model models/help-qwen3-7m

A penalty on features acts where one of them reads high. Over the positions that predict an answer's token in another
language, this sums the probability of Han tokens: in all, where a feature of SASFT's reads more than 2 or 3 standard
deviations above the mean of its language, and where Han tokens have more than a tenth. Writes `results/reach.json`.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent), str(HERE.parent / "help")]

import torch  # noqa: E402
from code_switching_arms import TARGET, Bench, features_for, plain_model  # noqa: E402
from code_switching_measures import OTHERS  # noqa: E402
from machine import hardware  # noqa: E402
from pages import as_example  # noqa: E402
from settings import Experiment  # noqa: E402
from shared_measures import draw_ids  # noqa: E402
from torch import Tensor  # noqa: E402

from sae_posttrain import FeatureSet  # noqa: E402
from sae_posttrain.features.read.text_options import TextOptions  # noqa: E402
from sae_posttrain.features.read.texts import TextBatch, batches, tokenize  # noqa: E402
from sae_posttrain.hooks.record import record_sites  # noqa: E402
from sae_posttrain.measure.faults.script_tokens import script_tokens  # noqa: E402


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of <lang>.jsonl[.gz]")
    parser.add_argument("--model", type=Path, required=True, help="folder of the model, with its SAEs in sae/")
    parser.add_argument("--work", type=Path, default=Path("runs/evidence"))
    parser.add_argument("--threads", type=int, default=0, help="of torch; 0 leaves its default")
    arguments = parser.parse_args(argv)
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    experiment = Experiment.read(HERE / "code_switching.yaml")
    bench = Bench(arguments.model, arguments.data, arguments.work / experiment.name, "reach")
    settings = experiment.settings("sasft", "w30_m2")
    seed = experiment.tune["seed"]
    features = features_for(bench, settings["features"], seed)
    model = plain_model(bench, settings, seed).eval()
    sums: dict[str, list[float]] = {}
    for lang in OTHERS:
        rows = [as_example(bench.pages()[lang][i]) for i in draw_ids(bench.ids("dev"), experiment.tune["num_ids"])]
        for name, (count, mass) in reach(bench, model, features, rows, settings["training"]["max_length"]).items():
            total = sums.setdefault(name, [0.0, 0.0])
            total[0] += count
            total[1] += mass
    every = sums["all"]
    shares = {
        name: {"positions": round(count / every[0], 4), "probability": round(mass / every[1], 4)}
        for name, (count, mass) in sums.items()
    }
    result = {"num_positions": every[0], "mean_probability": every[1] / every[0], "shares": shares}
    file = HERE / "results" / "reach.json"
    file.write_text(json.dumps(result | {"hardware": hardware()}, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(result, indent=2))


def reach(
    bench: Bench, model: Any, features: FeatureSet, rows: list[dict[str, Any]], max_length: int
) -> dict[str, tuple[float, float]]:
    """Number of positions and sum of the probability of Han tokens there, by kind of position; of one language."""
    lang, tokenizer = rows[0]["lang"], bench.tokenizer
    texts = [{"lang": lang, "messages": [*row["prompt"], *row["completion"]]} for row in rows]
    is_han = torch.zeros(model.config.vocab_size, dtype=torch.bool)
    is_han[list(script_tokens(tokenizer, TARGET).ids)] = True
    sums: dict[str, tuple[float, float]] = {}
    for batch in batches(tokenize(texts, tokenizer, TextOptions(max_length=max_length)), [lang], 30):
        mass_BT, highest_BT = probability_and_reading(model, features, batch, is_han, lang)
        counted_BT = batch.counted[:, 1:] & ~is_han[batch.input_ids[:, 1:]]
        kinds = {
            "all": counted_BT,
            "a feature above 2 std": counted_BT & (highest_BT > 2),
            "a feature above 3 std": counted_BT & (highest_BT > 3),
            "Han above a tenth": counted_BT & (mass_BT > 0.1),
        }
        for name, kind_BT in kinds.items():
            count, mass = sums.get(name, (0.0, 0.0))
            sums[name] = (count + float(kind_BT.sum()), mass + float(mass_BT[kind_BT].sum()))
    return sums


def probability_and_reading(
    model: Any, features: FeatureSet, batch: TextBatch, is_han: Tensor, lang: str
) -> tuple[Tensor, Tensor]:
    """Probability of Han at each position, and the highest reading of a feature there, in its std on the language."""
    with torch.inference_mode(), record_sites(model, list(features.places)) as values:
        logits = model(input_ids=batch.input_ids, attention_mask=batch.attention_mask, use_cache=False).logits
    group = features.groups.index(lang)
    readings = []
    for block, site in features.places:
        own = features.select(block=block, site=site)
        pre_BTF = own.pre_activations(values[block, site][0][:, :-1])
        readings.append((pre_BTF - own.mean[:, group]) / own.std[:, group])
    return logits[:, :-1].float().softmax(dim=-1)[..., is_han].sum(dim=-1), torch.cat(readings, dim=-1).amax(dim=-1)


if __name__ == "__main__":
    main()
