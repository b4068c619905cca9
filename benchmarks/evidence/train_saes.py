"""
Trains the SAEs of an experiment's sweeps over width and k, on one block, all on the same tokens for as many steps.

    python benchmarks/evidence/train_saes.py --data data/help --model models/help-qwen3-7m

Which ones, stands in `sensitivity.yaml`, as `sae: {width: …, k: …}` of an arm's features. They go to `--work`, which
must be that of `run.py`; what they explain of held-back tokens goes to `results/sensitivity_saes.json`. SAEs that are
there already are not trained again.
"""

import argparse
import json
import time
from argparse import Namespace
from pathlib import Path
from typing import Any

import torch
from run import HERE  # first: it makes the modules of ../help importable
from settings import Experiment

# isort: split
from code_switching_arms import Bench
from machine import hardware
from make_model import Page, build_parser, collect_outputs, encode_pages, measure_sae, split_for_saes, train_sae

EXPERIMENT = "sensitivity"


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of <lang>.jsonl[.gz]")
    parser.add_argument("--model", type=Path, required=True, help="folder of the model")
    parser.add_argument("--tokens", type=int, default=64_000, help="to train on (%(default)s)")
    parser.add_argument("--test-tokens", type=int, default=12_000, help="of other pages to test on (%(default)s)")
    parser.add_argument("--epochs", type=int, default=8, help="(%(default)s)")
    parser.add_argument("--batch-size", type=int, default=512, help="tokens in a step (%(default)s)")
    parser.add_argument("--work", type=Path, default=Path("runs/evidence"))
    parser.add_argument("--results", type=Path, default=HERE / "results")
    parser.add_argument("--threads", type=int, default=0, help="of torch; 0 leaves its default")
    arguments = parser.parse_args(argv)
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    bench = Bench(arguments.model, arguments.data, arguments.work / EXPERIMENT)
    block, shapes = wanted_saes(Experiment.read(HERE / f"{EXPERIMENT}.yaml"))
    settings = trainer_settings(arguments)
    file = arguments.results / f"{EXPERIMENT}_saes.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    train_all(bench, block, shapes, settings, file)


def wanted_saes(experiment: Experiment) -> tuple[int, list[dict[str, int]]]:
    """
    Block and shapes of the SAEs that the arms ask for.

    Raises:
        ValueError: If no arm asks for any, or they ask for several blocks.
    """
    asked = [
        features
        for arm in experiment.arms
        for config in experiment.configs(arm)
        if "sae" in (features := experiment.settings(arm, config).get("features", {}))
    ]
    blocks = {block for features in asked for block in features["blocks"]}
    if len(blocks) != 1:
        raise ValueError(f"The arms of {experiment.name}.yaml must ask for `sae` in one block, got {sorted(blocks)}.")
    shapes = {(features["sae"]["width"], features["sae"]["k"]) for features in asked}
    return blocks.pop(), [{"width": width, "k": k} for width, k in sorted(shapes)]


def trainer_settings(arguments: argparse.Namespace) -> Namespace:
    """Settings of the trainer of `make_model.py`; those of the shipped model's SAEs where nothing else was asked."""
    settings = build_parser().parse_args(["--data", str(arguments.data), "--out", str(arguments.work)])
    settings.sae_tokens, settings.sae_test_tokens = arguments.tokens, arguments.test_tokens
    settings.sae_epochs, settings.sae_batch_size = arguments.epochs, arguments.batch_size
    return settings


def train_all(bench: Bench, block: int, shapes: list[dict[str, int]], settings: Namespace, file: Path) -> None:
    """
    Train what is not there yet and write how good each is, SAE by SAE.

    Raises:
        ValueError: If the file holds SAEs that were trained with other settings.
    """
    training = {name: value for name, value in vars(settings).items() if name.startswith("sae_")}
    del training["sae_features"], training["sae_k"]
    training |= {"block": block, "length": settings.length, "seed": settings.seed}
    report = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {"settings": training, "saes": []}
    if report["settings"] != training:
        raise ValueError(f"{file} is of SAEs with other settings: {report['settings']}. Remove it and their folders.")
    done = [(sae["width"], sae["k"]) for sae in report["saes"] if bench.saes(sae)[0].is_dir()]
    missing = [shape for shape in shapes if (shape["width"], shape["k"]) not in done]
    if not missing:
        print("all SAEs are there")
        return
    train_ND, test_ND = block_outputs(bench, block, settings)
    for shape in missing:
        started = time.perf_counter()
        own = Namespace(**vars(settings) | {"sae_features": shape["width"], "sae_k": shape["k"]})
        tensors, dead_in_training = train_sae(train_ND, own, block)
        folder, k = bench.saes(shape)
        folder.mkdir(parents=True, exist_ok=True)
        torch.save(tensors, folder / f"layer{block}.sae.pt")
        measured: dict[str, Any] = {**shape, **measure_sae(folder, test_ND, block, k)}
        measured |= {"dead_features_in_last_epoch": dead_in_training, "seconds": round(time.perf_counter() - started)}
        others = [sae for sae in report["saes"] if (sae["width"], sae["k"]) != (shape["width"], shape["k"])]
        report["saes"] = sorted(
            [*others, measured | {"hardware": hardware()}], key=lambda sae: (sae["width"], sae["k"])
        )
        file.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
        print(measured, flush=True)


def block_outputs(bench: Bench, block: int, settings: Namespace) -> tuple[torch.Tensor, torch.Tensor]:
    """What the block writes at tokens to train on and at tokens of other pages, `(N, D)` each; no held-out page."""
    pages = [Page(row["id"], row["lang"], row["title"], row["text"]) for row in bench.training_pages()]
    ids = encode_pages(bench.tokenizer.backend_tokenizer, pages)
    train, test = split_for_saes(pages, ids, settings)
    model = bench.load().to("cuda" if torch.cuda.is_available() else "cpu")
    outputs = [
        collect_outputs(model, part, num, settings.batch_size, f"outputs to {what} SAEs")[block].to(model.device)
        for part, num, what in ((train, settings.sae_tokens, "train"), (test, settings.sae_test_tokens, "test"))
    ]
    return outputs[0], outputs[1]


if __name__ == "__main__":
    main()
