"""
Arms of `register.yaml`: the register of reference pages is to be kept out of answers that should be guides.

Which features, directions or tokens stand for it is found from some languages' texts alone; how high a feature may
read for free is the mean of each language's own guides.
"""

import json
import random
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from code_switching_arms import Bench as Bench
from code_switching_arms import Trained, features_for, no_change, train
from pages import as_example, as_text
from register_judge import GUIDE, PASSAGE_CHARS, REFERENCE, RegisterJudge, register_of

from sae_posttrain import FeatureSet, find_features, steer
from sae_posttrain.features.controls.matched_random import matched_random_features
from sae_posttrain.features.find.by_direction import find_directions
from sae_posttrain.features.find.causal import target_tokens
from sae_posttrain.features.read.group_statistics import measure_groups
from sae_posttrain.features.read.text_options import TextOptions
from sae_posttrain.features.read.texts import Text

GROUP = "register"  # column of the rows
NUM_ROWS = 320  # training rows of each register, in all languages together
NUM_CHARS = 1200  # of a page; more than `max_length` tokens in every language
NUM_TEXTS = 200  # of each register and language, to find what stands for it
OPENING = 64  # their tokens, as many as an answer has
NUM_LEVEL_TEXTS = 60  # of each group, to measure the level that costs nothing
LEVEL_LENGTH = 128  # their tokens, as many as training reads
LANGUAGES = ("en", "es", "ko", "ru", "zh")


def make(bench: Bench, settings: dict[str, Any], seed: int) -> Trained:
    """The model of an arm."""
    method = settings.get("method", "sft")
    if method == "sft":
        added: dict[str, Any] = {"group_column": GROUP}
        if "tokens" in settings:
            file = typical_tokens(bench, **settings["tokens"])
            added |= {"penalised_tokens": str(file), "target_group": REFERENCE}
        settings = settings | {"training": settings["training"] | added}
        return train(bench, settings, seed, training_rows(bench), finder=find)
    model = plain_model(bench, settings, seed)
    if method == "plain":
        return Trained(model, no_change, [])
    if method == "steer":
        features = features_for(bench, settings["features"], seed, finder=find)
        own = {"positions": "all", "allow_base_model": model.config._name_or_path}  # fine-tuned before
        return Trained(model, lambda: steer(model, features, strength=-settings["strength"], **own), [])
    raise ValueError(f"Unknown method {method!r}.")


def plain_model(bench: Bench, settings: dict[str, Any], seed: int) -> Any:
    """Plain SFT of a seed, trained once for all arms that begin with it."""
    folder = bench.work / "plain" / str(seed)
    if not (folder / "config.json").exists():
        plain = {"training": settings["training"] | {"group_column": GROUP}}
        train(bench, plain, seed, training_rows(bench)).model.save_pretrained(folder)
    return bench.load(folder)


@lru_cache(maxsize=1)
def pages_by_register(bench: Bench) -> dict[str, list[dict[str, Any]]]:
    """Training pages of each register, all languages."""
    by_register: dict[str, list[dict[str, Any]]] = {REFERENCE: [], GUIDE: []}
    for row in bench.training_pages():
        register = register_of(row["id"])
        if register is not None:
            by_register[register].append(row)
    return by_register


def training_rows(bench: Bench) -> list[dict[str, Any]]:
    """Pages as answers to their titles, as many of each register; guides are penalised, in groups of one language."""
    rows = []
    for register, pages in pages_by_register(bench).items():
        for row in random.Random(0).sample(pages, NUM_ROWS):
            rows.append(as_example(row | {"text": row["text"][:NUM_CHARS]}) | {GROUP: group_of(register, row["lang"])})
    return rows


@lru_cache(maxsize=1)
def judges(bench: Bench) -> dict[str, RegisterJudge]:
    """A judge for each language, fitted on the training pages."""
    pages = pages_by_register(bench)
    return {
        lang: RegisterJudge.fit(
            *([passage(row) for row in pages[register] if row["lang"] == lang] for register in (REFERENCE, GUIDE))
        )
        for lang in LANGUAGES
    }


def passage(row: dict[str, Any]) -> str:
    """What is judged of a page."""
    return row["text"][: PASSAGE_CHARS[row["lang"]]]


def group_of(register: str, lang: str) -> str:
    """Group of a text: the register that is held down is one, of the other each language is one for itself."""
    return REFERENCE if register == REFERENCE else f"{register}.{lang}"


def texts_to_find(bench: Bench, langs: list[str]) -> list[dict[str, Any]]:
    """Beginnings of guides and of reference pages that have a heading, in some languages, as many of each."""
    texts = []
    for lang in langs:
        judge = judges(bench)[lang]
        for register, pages in pages_by_register(bench).items():
            own = [row for row in pages if row["lang"] == lang]
            own = [row for row in own if judge.has_heading(passage(row)) == (register == REFERENCE)]
            drawn = random.Random(0).sample(own, min(NUM_TEXTS, len(own)))
            texts += [as_text(row) | {GROUP: group_of(register, lang)} for row in drawn]
    return texts


def find(bench: Bench, method: str, options: dict[str, Any], seed: int) -> FeatureSet:
    """Features or directions from the texts of some languages, with the level of every language's guides."""
    langs = options.pop("langs")
    texts = texts_to_find(bench, langs)
    common: dict[str, Any] = {"text_options": TextOptions(group_column=GROUP, max_length=OPENING).take(options)}
    sae, k = bench.saes()
    if method == "sae":
        found = find_features(str(bench.model), sae, texts, k=k, target_group=REFERENCE, **common, **options)
    elif method == "matched_random":
        wanted = features_for(bench, {"method": "sae", "langs": langs, **options}, seed, finder=find)
        found = matched_random_features(str(bench.model), wanted, sae, texts, k=k, seed=seed, **common)
    else:
        found = find_directions(str(bench.model), texts, method=method, target_group=REFERENCE, **common, **options)
    levels = [
        as_text(row) | {GROUP: group_of(register, row["lang"])}
        for register, pages in pages_by_register(bench).items()
        for row in pages
    ]
    return measure_groups(
        str(bench.model),
        found,
        levels,
        target_group=REFERENCE,
        text_options=TextOptions(group_column=GROUP, max_texts=NUM_LEVEL_TEXTS, max_length=LEVEL_LENGTH),
        held_out=0.0,
    )


def typical_tokens(bench: Bench, langs: list[str], min_share: float) -> Path:
    """A file with the tokens that reference pages of some languages use much more than guides of the same."""
    file = bench.work / f"tokens-{'-'.join(langs)}-{min_share}.json"
    if not file.exists():
        tokenizer, chosen = bench.tokenizer, set()
        for lang in langs:
            texts = []
            for row in texts_to_find(bench, [lang]):
                ids = tokenizer(row["text"][:4000])["input_ids"][:OPENING]
                texts.append(Text(row[GROUP], ids, [True] * len(ids)))
            typical = target_tokens(texts, REFERENCE, len(tokenizer), min_share=min_share)
            chosen |= set(torch.nonzero(typical).flatten().tolist())
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(sorted(chosen)), encoding="utf-8")
    return file
