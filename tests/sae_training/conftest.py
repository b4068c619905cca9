import pytest

from sae_posttrain.features.read.texts import tokenize

SENTENCES = [
    "open the file and save it",
    "press this key now",
    "choose a colour",
    "close the window, then the door",
    "insert a line",
    "delete the page",
    "go",
]


@pytest.fixture
def texts(tokenizer):
    """A token a byte, of which the first does not count."""
    return tokenize([{"text": sentence, "lang": "en"} for sentence in SENTENCES], tokenizer)
