"""
Repetition features of the help model: found in its own loops, checked by cause, calibrated, and set beside controls.

    python benchmarks/help/repetition_features.py --data data/help --start runs/help/start \
        --sae models/help-qwen3-7m/sae --out runs/help/repetition

Writes the feature sets that `repetition.py` steers along to `--out`, and what was measured, with a picture for each
temperature, to `results/`. Features are found on training pages and calibrated on the dev pages.

Among the best feature of each block the one is taken whose steered answers the unsteered model finds likeliest: a push
that forces one unlikely token for ever counts as a loop too, but says nothing of the loops that the model falls into.
"""

import argparse
import json
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from code_switching import hardware
from pages import as_example, load_pages, rows_of, split_ids
from transformers import AutoModelForCausalLM, AutoTokenizer

from sae_posttrain import FeatureSet, calibrate
from sae_posttrain.features.calibrate.calibration import Calibration
from sae_posttrain.features.calibrate.picture import draw_calibration
from sae_posttrain.features.controls.random_directions import difference_of_means, random_directions
from sae_posttrain.features.find.answers import Sampling, read_questions
from sae_posttrain.features.find.by_repetition import find_repetition_features
from sae_posttrain.features.find.loop_texts import collect_samples
from sae_posttrain.features.set.calibrated_for import calibrated_features

HERE = Path(__file__).parent
MAX_NEW_TOKENS = 160
TARGET = 0.6
STRENGTHS = (0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0)
SEEDS = (0, 1, 2)
MEANS_BLOCK = 1  # of blocks 1 to 5 the one where a difference of means makes loops at the smallest strength


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of <lang>.jsonl[.gz]")
    parser.add_argument("--start", type=Path, required=True, help="folder of the model that RL starts from")
    parser.add_argument("--sae", type=Path, required=True, help="folder of its SAEs")
    parser.add_argument("--out", type=Path, required=True, help="folder to write the feature sets to")
    parser.add_argument("--blocks", type=int, nargs="+", default=[1, 3, 5])
    parser.add_argument(
        "--temperatures", type=float, nargs="+", default=[0.25, 0.4, 0.6], help="the first is trained at"
    )
    parser.add_argument("--num-prompts", type=int, default=48, help="of each calibration")
    parser.add_argument("--results", type=Path, default=HERE / "results")
    parser.add_argument("--threads", type=int, default=0, help="of torch; 0 leaves its default")
    arguments = parser.parse_args(argv)
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    tokenizer = AutoTokenizer.from_pretrained(arguments.start)
    model = AutoModelForCausalLM.from_pretrained(arguments.start, dtype=torch.float32)
    pages = load_pages(arguments.data)
    splits = split_ids(pages, num_held_out=150)
    train, dev = (
        [{"prompt": as_example(row)["prompt"]} for row in rows_of(pages, splits, split)] for split in ("train", "dev")
    )
    arguments.out.mkdir(parents=True, exist_ok=True)

    found = find(
        model,
        tokenizer,
        train,
        arguments.out / "found.safetensors",
        sae=arguments.sae,
        blocks=arguments.blocks,
        temperature=arguments.temperatures[0],
    )
    means = average_loops(model, tokenizer, train)
    sweeps: dict[str, dict[str, Calibration]] = {}
    for temperature in arguments.temperatures:

        def sweep(feature_set: FeatureSet, temperature: float = temperature) -> Calibration:
            calibration = calibrate(
                model,
                feature_set,
                dev,
                strengths=STRENGTHS,
                target=TARGET,
                temperature=temperature,
                max_new_tokens=MAX_NEW_TOKENS,
                num_prompts=arguments.num_prompts,
                tokenizer=tokenizer,
            )
            print(f"temperature {temperature:g}\n{calibration}\n", flush=True)
            return calibration

        of_temperature = {name: sweep(found.select(names=[name])) for name in best_of_blocks(found)}
        chosen = likeliest(of_temperature)
        random = random_directions(found.select(names=[chosen]), seed=0)
        of_temperature |= {"random": sweep(random), "difference of means": sweep(means)}
        sweeps[f"{temperature:g}"] = of_temperature
        draw_calibration(
            of_temperature[chosen],
            arguments.results / f"repetition_calibration_{temperature:g}.png",
            others={name: other for name, other in of_temperature.items() if name != chosen},
        )
        if temperature == arguments.temperatures[0]:
            write_sets(of_temperature, chosen, arguments.out)

    report = {
        "features": {name: scores(found, name) for name in found.names},
        "notes": found.notes,
        "sweeps": {t: {name: c.as_dict() for name, c in of_t.items()} for t, of_t in sweeps.items()},
        "hardware": hardware(),
        "versions": {package: version(package) for package in ("torch", "transformers", "sae_posttrain")},
    }
    file = arguments.results / "repetition_features.json"
    file.write_text(json.dumps(report, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")


def find(
    model: Any,
    tokenizer: Any,
    train: list[dict[str, Any]],
    file: Path,
    *,
    sae: Path,
    blocks: list[int],
    temperature: float,
    max_new_tokens: int = MAX_NEW_TOKENS,
) -> FeatureSet:
    """The best features of each block, found once; they stay in the file."""
    if not file.exists():
        find_repetition_features(
            model,
            str(sae),
            prompts=train,
            blocks=blocks,
            num_features=2,
            num_candidates=12,
            num_loops=40,
            num_prompts=12,
            strength=0.8,
            max_new_tokens=max_new_tokens,
            normal_temperature=temperature,
            tokenizer=tokenizer,
            batch_size=96,
            k=32,
        ).save(file, overwrite=True)
    return FeatureSet.load(file)


def average_loops(
    model: Any, tokenizer: Any, train: list[dict[str, Any]], *, max_new_tokens: int = MAX_NEW_TOKENS
) -> FeatureSet:
    """The mean of loops less that of normal answers, at one block."""
    samples = collect_samples(
        model,
        tokenizer,
        questions=read_questions(train, tokenizer),
        num_loops=60,
        sampling=Sampling(max_new_tokens, 0.0, seed=0, batch_size=96),
        normal_temperature=0.6,
    )
    return difference_of_means(
        model, samples.loop_texts(skip_first_round=True), samples.normal_texts(), blocks=[MEANS_BLOCK]
    )


def best_of_blocks(found: FeatureSet) -> list[str]:
    """Name of the first feature of each block."""
    return [found.names[found.blocks.index(block)] for block in sorted(set(found.blocks))]


def likeliest(sweeps: dict[str, Calibration]) -> str:
    """The feature whose answers are likeliest without steering, of those that reach the target, or else of all."""
    reached = {name: sweep for name, sweep in sweeps.items() if sweep.strength is not None} or sweeps

    def loss(name: str) -> float:
        sweep = reached[name]
        strength = sweep.strength if sweep.strength is not None else sweep.best.strength
        return next(row.loss for row in sweep.rows if row.strength == strength)

    return min(reached, key=loss)


def write_sets(sweeps: dict[str, Calibration], chosen: str, out: Path) -> None:
    """The sets with the strengths they are trained with; random directions get that of the feature."""
    for name, sweep in ((chosen, sweeps[chosen]), ("difference_of_means", sweeps["difference of means"])):
        with_strength(sweep).save(
            out / ("sae.safetensors" if name == chosen else f"{name}.safetensors"), overwrite=True
        )
        if name == chosen:
            for seed in SEEDS:
                random_control(sweep.feature_set, seed).save(out / f"random{seed}.safetensors", overwrite=True)


def with_strength(sweep: Calibration) -> FeatureSet:
    """The set with the strength it is trained with: the one that reached the target, or else the best."""
    calibration = sweep.as_dict() | {"strength": sweep.strength or sweep.best.strength}
    sweep.feature_set.notes["calibration"] = calibration
    return sweep.feature_set


def random_control(feature_set: FeatureSet, seed: int) -> FeatureSet:
    """Random directions in place of a set's own, pushed with its strength."""
    random = random_directions(feature_set, seed)
    calibration = {**feature_set.notes["calibration"], "features": calibrated_features(random)}
    random.notes["calibration"] = calibration
    return random


def scores(found: FeatureSet, name: str) -> dict[str, Any]:
    """What the search found of a feature."""
    index = found.names.index(name)
    return {key: float(values[index]) for key, values in found.scores.items()}


if __name__ == "__main__":
    main()
