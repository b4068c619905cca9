import pytest

from sae_posttrain.shown import printable, shown


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("a\x1b[2J", r"'a\x1b[2J'"),
        (1_700_000_000_000, "1700000000000"),
        (True, "True"),
        ({"k": [10**5000]}, "{'k': [a huge number]}"),
        ({"role": "user", "content": "Why?"}, "{'content': 'Why?', 'role': 'user'}"),
    ],
)
def test_value_is_shown_as_python_writes_it(value, expected):
    assert shown(value) == expected


@pytest.mark.parametrize("value", ["x" * 1000, ["x" * 1000] * 1000, dict.fromkeys(range(1000), "x" * 1000)])
def test_large_value_is_shown_short(value):
    assert len(shown(value)) <= 200


def test_deep_value_is_shown():
    value = []
    for _ in range(100_000):
        value = [value]
    assert shown(value) == "[[[[[[[...]]]]]]]"
    while value:  # to free it from the outside needs no recursion
        value = value[0]


def test_printable_text_stays_as_it_is():
    assert printable("中 é\n\x1b") == r"中 é\n\x1b"
