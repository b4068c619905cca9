"""A tiny model that loops when it is pushed, with questions to it."""

from dataclasses import replace

import pytest
import torch

from sae_posttrain.features.find.answers import Sampling
from sae_posttrain.steering.questions import read_asked


@pytest.fixture
def model(make_model):
    return make_model().eval()


@pytest.fixture
def features(make_features, tokenizer, model):
    """Features of block 1; the first one points to the output row of the letter a, so that a push writes a's."""
    found = make_features(blocks=(1,)).rename({"1.3": "loop", "1.13": "other"})
    letter = tokenizer.convert_tokens_to_ids("a")
    directions = found.directions.clone()
    with torch.no_grad():
        directions[0] = model.lm_head.weight[letter] * model.model.norm.weight
    return replace(found, directions=directions)


@pytest.fixture
def sampling():
    return Sampling(max_new_tokens=72, temperature=0.3, top_p=1.0, seed=0, batch_size=4)


@pytest.fixture
def questions(tokenizer):
    return read_asked([{"prompt": text, "lang": "en"} for text in ("Hello", "How do I save a page?")], tokenizer)
