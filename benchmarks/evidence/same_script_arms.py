"""Arms of `same_script_<target>.yaml`: as those of `code_switching.yaml`, with another language to keep out."""

import json
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from code_switching_arms import Bench as Bench
from code_switching_arms import Trained, train
from pages import as_text

from sae_posttrain.features.find.causal import target_tokens
from sae_posttrain.features.read.texts import Text

MAX_LENGTH = 256  # tokens of a text, as for features


def make(bench: Bench, settings: dict[str, Any], seed: int) -> Trained:
    """The model of an arm."""
    if settings["method"] != "sft":
        raise ValueError(f"Unknown method {settings['method']!r}.")
    bench = replace(bench, target=settings["target"])
    if "tokens" in settings:
        file = typical_tokens(bench, **settings["tokens"])
        added = {"penalised_tokens": str(file), "target_group": bench.target}
        settings = settings | {"training": settings["training"] | added}
    return train(bench, settings, seed, bench.training_rows())


def typical_tokens(bench: Bench, min_share: float, max_texts: int = 200) -> Path:
    """A file with the tokens that the target's texts use much more than those of any other language."""
    file = bench.work / f"tokens-{bench.target}-{min_share}-{max_texts}.json"
    if not file.exists():
        tokenizer = bench.tokenizer
        rows = list(map(as_text, bench.training_pages()))
        texts = []
        for lang in sorted({row["lang"] for row in rows}):
            own = [row for row in rows if row["lang"] == lang]
            for row in random.Random(0).sample(own, min(max_texts, len(own))):
                ids = tokenizer(row["text"][:4000])["input_ids"][:MAX_LENGTH]
                texts.append(Text(lang, ids, [True] * len(ids)))
        chosen = target_tokens(texts, bench.target, len(tokenizer), min_share=min_share)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(torch.nonzero(chosen).flatten().tolist()), encoding="utf-8")
    return file
