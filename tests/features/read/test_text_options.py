import pytest

from sae_posttrain.features.read.text_options import TextOptions


def test_settings_that_are_options_are_taken_out_and_the_others_stay():
    settings = {"max_texts": 5, "seed": 3, "split": "test"}
    assert TextOptions(max_length=64).take(settings) == TextOptions(split="test", max_texts=5, max_length=64)
    assert settings == {"seed": 3}


@pytest.mark.parametrize("name", ["max_length", "batch_size"])
def test_options_below_one_are_refused(name):
    with pytest.raises(ValueError, match=f"`{name}` must be 1 or more, got 0"):
        TextOptions(**{name: 0})
