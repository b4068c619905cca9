"""Strengths as words of a command line."""

import pytest

from sae_posttrain.steering.strengths import describe_strengths, parse_strengths


def test_words_give_names_their_strengths(make_features):
    features = make_features(blocks=(1,)).rename({"1.3": "loop", "1.13": "a=b"})
    assert parse_strengths(["loop=-0.8", "a=b=.5"], features) == {"loop": -0.8, "a=b": 0.5}
    assert parse_strengths(["2"], features) == {"loop": 2.0, "a=b": 2.0}
    assert describe_strengths({"loop": -0.8, "chinese": -0.5}) == "loop=-0.8 chinese=-0.5"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["loop=much"], "The strength in 'loop=much' is not a finite number"),
        (["loop=nan"], "The strength in 'loop=nan' is not a finite number"),
        (["1.13"], "names '1.13' without a number: write 1.13=-0.8"),
        (["many"], "The strength in 'many' is not a finite number"),
        (["loop=1", "2"], "is written name=number, such as loop=-0.8, .* got '2'"),
        (["lop=1"], "names 'lop', which is not in the feature set. Known: loop, 1.13. Did you mean 'loop'"),
        (["loop=1", "loop=2"], "names 'loop' twice"),
    ],
)
def test_other_words_are_refused(make_features, words, message):
    with pytest.raises(ValueError, match=message):
        parse_strengths(words, make_features(blocks=(1,)).rename({"1.3": "loop"}))
