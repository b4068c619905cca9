"""How each arm of `code_switching.yaml` comes to its model: what is trained, filtered, scaled or pushed."""

import json
import math
import os
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from intended import training_rows
from pages import as_example, as_text, load_pages, shared_ids
from smoothie import smoothie_factors
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import GRPOConfig, GRPOTrainer

from sae_posttrain import FeatureSet, LanguageConsistencyReward, SASFTConfig, SASFTTrainer, find_features, steer
from sae_posttrain.baselines.ablation import ablate
from sae_posttrain.baselines.data_filter import drop_switched
from sae_posttrain.baselines.lm_head_scaling import scale_lm_head
from sae_posttrain.features.controls.matched_random import matched_random_features
from sae_posttrain.features.find.by_direction import find_directions
from sae_posttrain.features.read.group_statistics import measure_groups
from sae_posttrain.features.read.text_options import TextOptions
from sae_posttrain.measure.faults.script_tokens import script_tokens

TARGET = "zh"
NUM_HELD_OUT = 300  # pages of each language on the dev and on the test side
NUM_PAGES = 840  # training rows that answer a title with its page
NUM_INTENDED = 60  # training rows of each kind of Chinese that was asked for
NUM_CHARS = 1200  # of a page; more than `max_length` tokens in every language
LOGGED = ("step", "loss")


@dataclass(frozen=True)
class Bench:
    """What all arms share: the model, its SAEs, the pages, and a folder for what can be thrown away."""

    model: Path
    data: Path
    work: Path
    part: str = "1of1"  # of several processes that share the folder
    target: str = TARGET  # language that the features stand for

    @property
    def scratch(self) -> Path:
        """Folder of this process alone."""
        return self.work / f"{self.part}-{os.getpid()}"

    def saes(self, shape: dict[str, int] | None = None) -> tuple[Path, int]:
        """Folder of SAEs and their k: the model's own, or those of a width and k that `train_saes.py` makes."""
        if shape is None:
            return self.model / "sae", 32
        return self.work / "saes" / f"{shape['width']}_{shape['k']}", shape["k"]

    def load(self, folder: Path | None = None) -> Any:
        """A fresh copy of the start, or of what an arm left in a folder."""
        return AutoModelForCausalLM.from_pretrained(folder or self.model, dtype=torch.float32)

    @property
    def tokenizer(self) -> Any:
        return AutoTokenizer.from_pretrained(self.model)

    def pages(self) -> dict[str, dict[str, dict[str, Any]]]:
        return _pages(self.data)

    def ids(self, split: str) -> list[str]:
        """Ids of the held-out pages: `dev` holds all on which earlier settings were looked at, `test` fresh ones."""
        first = 0 if split == "dev" else NUM_HELD_OUT
        return shared_ids(self.pages())[first : first + NUM_HELD_OUT]

    def training_pages(self) -> list[dict[str, Any]]:
        pages = self.pages()
        held_out = {*self.ids("dev"), *self.ids("test")}
        return [row for rows in pages.values() for page_id, row in rows.items() if page_id not in held_out]

    def training_rows(self) -> list[dict[str, Any]]:
        """Pages as answers to their titles, and Chinese that was asked for; the same rows for every arm and seed."""
        pages = self.training_pages()
        ids = sorted({row["id"] for row in pages})
        by_lang: dict[str, dict[str, Any]] = {}
        for row in pages:
            by_lang.setdefault(row["lang"], {})[row["id"]] = row
        # No more than is read: tokenizing all of every page would take as long as the training.
        drawn = random.Random(0).sample(pages, NUM_PAGES)
        answers = [as_example(row | {"text": row["text"][:NUM_CHARS]}) for row in drawn]
        return answers + training_rows(by_lang, ids, NUM_INTENDED)


_pages = lru_cache(maxsize=1)(load_pages)


@dataclass
class Trained:
    """A model to be measured; `answering` is the context in which it answers in languages other than the target."""

    model: Any
    answering: Any
    log: list[dict[str, Any]]


def make(bench: Bench, settings: dict[str, Any], seed: int) -> Trained:
    """The model of an arm."""
    method = settings["method"]
    if method == "sft":
        return train(bench, settings, seed, bench.training_rows())
    if method == "data_filter":
        rows = Dataset.from_list(bench.training_rows())
        return train(bench, settings, seed, drop_switched(rows, target_lang=TARGET))
    model = plain_model(bench, settings, seed)
    if method == "lm_head_scaling":
        scale_head(bench, model, settings)
        return Trained(model, no_change, [])
    if method == "ablation":
        features, strength = features_for(bench, settings["features"], seed), settings.get("strength")
        if strength is None:
            return Trained(model, lambda: ablate(model, features, positions="all"), [])
        own = {"positions": "all", "allow_base_model": model.config._name_or_path}  # fine-tuned before
        return Trained(model, lambda: steer(model, features, strength=-strength, **own), [])
    if method == "grpo":
        return reward_language(bench, model, settings, seed)
    raise ValueError(f"Unknown method {method!r}.")


def scale_head(bench: Bench, model: Any, settings: dict[str, Any]) -> None:
    """
    Rows of the head, or probabilities, of the target's tokens scaled. Probabilities by a hook, since what
    `sequence_bias` leaves to the settings of `generate` would not show in the held-out loss.
    """
    ids, factors = script_tokens(bench.tokenizer, TARGET).ids, settings.get("factor")
    if settings["scale"] == "smoothie":
        ids, factors = smoothie_factors(bench.tokenizer, TARGET)
    if settings["scale"] != "probabilities":
        scale_lm_head(model, ids, factors)
        return
    shift = torch.zeros(model.config.vocab_size)
    shift[list(ids)] = math.log(factors)
    model.get_output_embeddings().register_forward_hook(lambda _head, _args, logits: logits + shift.to(logits))


@contextmanager
def no_change() -> Iterator[None]:
    """For a model that answers as it is."""
    yield


def train(
    bench: Bench,
    settings: dict[str, Any],
    seed: int,
    rows: Any,
    peft_config: Any = None,
    finder: Callable[..., FeatureSet] | None = None,
) -> Trained:
    """SFT with what the settings add to its loss; with a `peft_config`, of adapters; features found by a `finder`."""
    feature_set = features_for(bench, settings["features"], seed, finder) if "features" in settings else None
    args = SASFTConfig(
        str(bench.scratch / "training"),
        train_sampling_strategy="group_by_length",  # less padding to compute
        bf16=True,  # autocast; the weights stay float32
        use_cpu=not torch.cuda.is_available(),
        gradient_checkpointing=False,
        seed=seed,
        logging_steps=10,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        **settings["training"],
    )
    model = bench.load()
    trainer = SASFTTrainer(
        model,
        args,
        feature_set=feature_set,
        train_dataset=rows if isinstance(rows, Dataset) else Dataset.from_list(rows),
        processing_class=bench.tokenizer,
        peft_config=peft_config,
    )
    trainer.train()
    kept = ("sae/penalty", "sae/excess_rate", "tokens/mass")
    log = [{k: v for k, v in entry.items() if k in (*LOGGED, *kept)} for entry in trainer.state.log_history]
    return Trained(trainer.model, no_change, log)


def plain_model(bench: Bench, settings: dict[str, Any], seed: int) -> Any:
    """Plain SFT of the same seed, trained once for all arms that begin with it."""
    folder = bench.work / "plain" / str(seed)
    if not (folder / "config.json").exists():
        plain = {"training": {**settings["training"], "penalty_weight": 0.0}}
        train(bench, plain, seed, bench.training_rows()).model.save_pretrained(folder)
    return bench.load(folder)


def reward_language(bench: Bench, model: Any, settings: dict[str, Any], seed: int) -> Trained:
    """GRPO from plain SFT: 1 for an answer in the language of its prompt, without unexpected Chinese."""
    prompts = [as_example(row) for row in bench.training_pages()]
    rows = [{"prompt": row["prompt"], "lang": row["lang"]} for row in prompts]
    args = GRPOConfig(
        str(bench.scratch / "training"),
        max_completion_length=settings["sampling"]["max_new_tokens"],
        temperature=1.0,
        bf16=True,
        use_cpu=not torch.cuda.is_available(),
        gradient_checkpointing=False,
        seed=seed,
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        lr_scheduler_type="constant_with_warmup",
        **settings["grpo"],
    )
    trainer = GRPOTrainer(
        model,
        LanguageConsistencyReward(target_lang=TARGET),
        args,
        train_dataset=Dataset.from_list(rows).shuffle(seed=seed),
        processing_class=bench.tokenizer,
    )
    trainer.train()
    kept = ("step", "reward", "kl", "frac_reward_zero_std")
    log = [{k: v for k, v in entry.items() if k in kept} for entry in trainer.state.log_history if "reward" in entry]
    return Trained(model, no_change, log)


def features_for(
    bench: Bench, wanted: dict[str, Any], seed: int, finder: Callable[..., FeatureSet] | None = None
) -> FeatureSet:
    """
    The features of an arm, found once for all runs that want the same; controls are drawn anew for every seed. A
    `finder` takes what [`find`] takes, which it stands in for.
    """
    wanted = dict(wanted)
    key = json.dumps(wanted | ({"seed": seed} if wanted["method"] == "matched_random" else {}), sort_keys=True)
    file = bench.work / "features" / ("".join(c if c.isalnum() else "_" for c in key) + ".safetensors")
    if not file.exists():
        (finder or find)(bench, wanted.pop("method"), wanted, seed).save(file, overwrite=True)
    return FeatureSet.load(file)


def find(bench: Bench, method: str, options: dict[str, Any], seed: int) -> FeatureSet:
    """Features by one of the methods, on the same texts."""
    texts = [as_text(row) for row in bench.training_pages()]
    text_options = TextOptions(max_texts=200, max_length=256).take(options)
    common: dict[str, Any] = {"target_group": bench.target, "text_options": text_options}
    shape = options.pop("sae", None)
    sae, k = bench.saes(shape)
    if shape and not sae.is_dir():
        raise ValueError(f"There are no SAEs in {sae}. Make them with train_saes.py and the same `--work`.")
    if method == "sae":
        return find_features(str(bench.model), sae, texts, k=k, **common, **options)
    if method == "sae_decoder":
        found = find_features(str(bench.model), sae, texts, k=k, **common, **options)
        written = FeatureSet.from_directions(
            found.directions / found.directions.norm(dim=1, keepdim=True),
            blocks=found.blocks,
            names=[f"decoder.{name}" for name in found.names],
            residual_norms=found.residual_norms.tolist(),
            base_model=found.base_model,
        )
        return measure_groups(str(bench.model), written, texts, **common)
    if method == "matched_random":
        found = find_features(str(bench.model), sae, texts, k=k, **common, **options)
        del common["target_group"]
        return matched_random_features(str(bench.model), found, sae, texts, k=k, seed=seed, **common)
    return find_directions(str(bench.model), texts, method=method, **common, **options)
