"""What only reads runs no block behind the sites that it reads, and no output head."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from sae_posttrain import FrozenSAE
from sae_posttrain.features.find.answers import Question
from sae_posttrain.features.find.by_group import _held_out_auroc
from sae_posttrain.features.find.loop_scores import mean_increase
from sae_posttrain.features.find.loop_texts import RepeatedText
from sae_posttrain.features.read.readings import read_features
from sae_posttrain.features.read.statistics import collect_statistics
from sae_posttrain.features.read.text_options import ALL_TEXTS
from sae_posttrain.features.read.texts import batches, tokenize
from sae_posttrain.features.read.tokens import read_tokens
from sae_posttrain.penalty.probe_texts import ProbeSet, read_probe
from sae_posttrain.sae_training.activations import activation_batches
from sae_posttrain.saes.stored.source import SAESource

PLACE = (0, "resid_post")
ROWS = [{"text": f"{letter * 9} text", "lang": lang} for letter in "abcdef" for lang in ("en", "zh")]


class FurtherThanNeeded(Exception):
    pass


@pytest.fixture
def stopping_model(make_model):
    """A model that raises when it goes further than its first block."""

    def refuse(*_):
        raise FurtherThanNeeded

    model = make_model(num_blocks=3).eval()
    for module in (model.model.layers[1], model.lm_head):
        module.register_forward_pre_hook(refuse)
    return model


@pytest.fixture
def sae() -> FrozenSAE:
    return FrozenSAE(
        W_enc=torch.eye(32),
        b_enc=torch.zeros(32),
        W_dec=torch.eye(32),
        b_dec=torch.zeros(32),
        activation="relu",
        block=0,
        source=SAESource("", None, "made_here", "made", Path("nowhere")),
    )


def probe(model, texts, _sae, features, tokenizer) -> object:
    """The drift callback's reading, where no token belongs to the target alone."""
    found = ProbeSet.from_rows(ROWS, tokenizer, ["zh"], ALL_TEXTS)
    without = replace(found, target_tokens=torch.zeros_like(found.target_tokens))
    reading = read_probe(model, without, features, {})
    assert not reading.target_probability.any()
    return reading


def rises(model, texts, sae, features, tokenizer) -> object:
    return mean_increase(model, [RepeatedText((9, 7, 5, 6, 5, 6), 2, 6, Question((), ()))], [sae])


READERS: dict[str, Callable] = {
    "features": lambda model, texts, sae, features, tokenizer: read_features(model, features, ROWS, tokenizer),
    "statistics": lambda model, texts, sae, features, tokenizer: collect_statistics(
        model, batches(texts, ["en", "zh"], 4), [sae], 2
    ),
    "tokens": lambda model, texts, sae, features, tokenizer: next(
        read_tokens(model, batches(texts, ["en", "zh"], 4), [PLACE])
    ),
    "held out": lambda model, texts, sae, features, tokenizer: _held_out_auroc(
        model, list(batches(texts, ["en", "zh"], 4)), [sae], {PLACE: torch.tensor([0])}, 1
    ),
    "rises": rises,
    "SAE training": lambda model, texts, sae, features, tokenizer: next(
        activation_batches(model, texts, [PLACE], batch_size=8, buffer_tokens=64, texts_per_pass=4, seed=0)
    ),
    "drift": probe,
}


@pytest.mark.parametrize("reader", READERS)
def test_reader_goes_no_further_than_it_must(stopping_model, sae, make_features, tokenizer, reader):
    features, texts = make_features(blocks=(0,)), tokenize(ROWS, tokenizer, ALL_TEXTS)
    READERS[reader](stopping_model, texts, sae, features, tokenizer)
    deeper = make_features(blocks=(1,))
    with pytest.raises(FurtherThanNeeded):
        read_features(stopping_model, deeper, ROWS, tokenizer)
