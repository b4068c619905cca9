"""How each arm of `repetition.yaml` comes to its model: DAPO with other rewards or negatives, or a rival of it."""

import fcntl
import random
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from code_switching_arms import Bench as Bench
from code_switching_arms import Trained, no_change
from datasets import Dataset
from pages import as_example
from repetition import REPLACED, train_arm
from repetition_features import (
    STRENGTHS,
    TARGET,
    average_loops,
    best_of_blocks,
    find,
    likeliest,
    random_control,
    with_strength,
)
from start import train_start
from torch import Tensor
from trl.rewards import get_repetition_penalty_reward, get_soft_overlong_punishment

from sae_posttrain import FeatureSet, calibrate
from sae_posttrain.baselines import UnlikelihoodConfig, UnlikelihoodTrainer, sample_unlikely_rows
from sae_posttrain.features.calibrate.calibration import Calibration


def make(bench: Bench, settings: dict[str, Any], seed: int) -> Trained:
    """The model of an arm."""
    method = settings["method"]
    model = bench.load(start_folder(bench, settings))
    if method == "none":
        return Trained(model, no_change, [])
    if method == "repetition_penalty":
        return Trained(model, lambda: repetition_penalty(model, settings["repetition_penalty"]), [])
    if method == "unlikelihood":
        return Trained(model, no_change, train_unlikelihood(bench, model, settings, seed))
    if method == "dapo":
        return Trained(model, no_change, train_dapo(bench, model, settings, seed))
    raise ValueError(f"Unknown method {method!r}.")


def start_folder(bench: Bench, settings: dict[str, Any]) -> Path:
    """Folder of the model that all arms start from, trained once."""
    folder = bench.work / "start"
    with alone(bench.work / "start.lock"):
        if not folder.exists():
            unfinished = bench.work / "start.unfinished"
            train_start(bench.model, bench.training_pages(), unfinished, **settings["start"])
            unfinished.rename(folder)
    return folder


def train_dapo(bench: Bench, model: Any, settings: dict[str, Any], seed: int) -> list[dict[str, Any]]:
    """Trains the model in place; returns the log."""
    negative, sampling = settings["negative"], settings["sampling"]
    feature_set, strength = None, None
    if negative != "none" and negative not in REPLACED:
        feature_set = features_for(bench, settings, seed)
        strength = settings["strength"] * feature_set.notes["calibration"]["strength"]
    rewards = []
    if "overlong" in settings:
        rewards.append(get_soft_overlong_punishment(sampling["max_new_tokens"], settings["overlong"]))
    if "ngram" in settings:
        rewards.append(get_repetition_penalty_reward(ngram_size=settings["ngram"]))
    rollouts = {
        "max_completion_length": sampling["max_new_tokens"],
        "generation_kwargs": {"temperature": sampling["temperature"]},
        "disable_tqdm": True,
    }
    return train_arm(
        model,
        bench.tokenizer,
        [as_example(row) for row in bench.training_pages()],
        negative,
        settings["grpo"] | rollouts,
        seed,
        bench.scratch,
        feature_set=feature_set,
        strength=strength,
        rewards=rewards,
    )


def train_unlikelihood(bench: Bench, model: Any, settings: dict[str, Any], seed: int) -> list[dict[str, Any]]:
    """
    Half of the rows are pages, half the start's own greedy answers, whose repeated tokens are to become unlikely.

    Where answers hold nothing to mark, pages take their places: the number of rows is that of the other arms.
    """
    options = settings["unlikelihood"]
    num_rows = options["max_steps"] * options["per_device_train_batch_size"]
    pages = [as_example(row) for row in bench.training_pages()]
    random.Random(seed).shuffle(pages)
    asked, rest = pages[: num_rows // 2], pages[num_rows // 2 :]
    unlikely = sample_unlikely_rows(
        model,
        bench.tokenizer,
        [row["prompt"] for row in asked],
        rule=settings["rule"],
        max_new_tokens=settings["sampling"]["max_new_tokens"],
        batch_size=64,
        seed=seed,
    )
    trainer = UnlikelihoodTrainer(
        model,
        UnlikelihoodConfig(
            str(bench.scratch / "training"),
            bf16=True,  # autocast; the weights stay float32
            use_cpu=not torch.cuda.is_available(),
            gradient_checkpointing=False,
            lr_scheduler_type="constant_with_warmup",
            seed=seed,
            logging_steps=1,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            **options,
        ),
        unlikely_dataset=unlikely,
        train_dataset=Dataset.from_list(rest[: num_rows - len(unlikely)]),
        processing_class=bench.tokenizer,
    )
    trainer.train()
    history = trainer.state.log_history
    return [
        {key: value for key, value in entry.items() if key in ("step", "loss") or key.startswith("unlikelihood/")}
        for entry in history
        if "loss" in entry
    ]


def features_for(bench: Bench, settings: dict[str, Any], seed: int) -> FeatureSet:
    """What an arm pushes along, with its calibrated strength; a random direction is drawn anew for every seed."""
    folder = bench.work / "features"
    with alone(bench.work / "features.lock"):
        if not (folder / "difference_of_means.safetensors").exists():
            write_features(bench, settings, folder)
    if settings["negative"] == "random":
        return random_control(FeatureSet.load(folder / "sae.safetensors"), seed)
    return FeatureSet.load(folder / f"{settings['negative']}.safetensors")


def write_features(bench: Bench, settings: dict[str, Any], folder: Path) -> None:
    """
    The SAE feature and the difference of means, from loops of the start on training pages, calibrated on dev pages.

    Of the best feature of each block the one whose loops the start itself finds likeliest is kept: see
    `../help/repetition_features.py`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    model, tokenizer, sampling = bench.load(bench.work / "start"), bench.tokenizer, settings["sampling"]
    max_new_tokens, wanted = sampling["max_new_tokens"], settings["features"]
    train = [{"prompt": as_example(row)["prompt"]} for row in bench.training_pages()]
    pages = bench.pages()
    dev = [{"prompt": as_example(pages[lang][i])["prompt"]} for lang in sorted(pages) for i in bench.ids("dev")]

    def sweep(feature_set: FeatureSet) -> Calibration:
        return calibrate(
            model,
            feature_set,
            dev,
            strengths=STRENGTHS,
            target=TARGET,
            temperature=sampling["temperature"],
            max_new_tokens=max_new_tokens,
            num_prompts=wanted["num_prompts"],
            tokenizer=tokenizer,
        )

    found = find(
        model,
        tokenizer,
        train,
        folder / "found.safetensors",
        sae=bench.model / "sae",
        blocks=wanted["blocks"],
        temperature=sampling["temperature"],
        max_new_tokens=max_new_tokens,
    )
    sweeps = {name: sweep(found.select(names=[name])) for name in best_of_blocks(found)}
    with_strength(sweeps[likeliest(sweeps)]).save(folder / "sae.safetensors", overwrite=True)
    means = average_loops(model, tokenizer, train, max_new_tokens=max_new_tokens)
    with_strength(sweep(means)).save(folder / "difference_of_means.safetensors", overwrite=True)


@contextmanager
def repetition_penalty(model: Any, factor: float) -> Iterator[None]:
    """What `generate` does with its `repetition_penalty`, at every position of whole sequences."""

    def penalise(_model, _args, kwargs, output):
        output.logits = penalised(output.logits, kwargs["input_ids"], factor)
        return output

    with model.register_forward_hook(penalise, with_kwargs=True):
        yield


def penalised(logits: Tensor, input_ids: Tensor, factor: float) -> Tensor:
    """
    Logits `(B, T, V)` after a repetition penalty (https://huggingface.co/papers/1909.05858): tokens that stand at or
    before a position are divided by the factor there if above 0, else multiplied by it.
    """
    seen_BTV = torch.zeros(logits.shape, dtype=torch.int8, device=logits.device)
    seen_BTV = seen_BTV.scatter_(2, input_ids[..., None], 1).cummax(dim=1).values.bool()
    return torch.where(seen_BTV, torch.where(logits > 0, logits / factor, logits * factor), logits)


@contextmanager
def alone(lock: Path) -> Iterator[None]:
    """One process at a time: the others wait for what it makes."""
    lock.parent.mkdir(parents=True, exist_ok=True)
    with open(lock, "w", encoding="utf-8") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
