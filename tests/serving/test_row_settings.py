import pytest

from sae_posttrain.serving.row_settings import RowSettings


def test_a_plain_row_says_nothing():
    assert RowSettings().extra_args("f") == {}
    assert not RowSettings(strength={"a": 0.0}).is_steered


def test_a_steered_row_says_how_far_from_where_and_along_what():
    said = RowSettings(1.5).extra_args("f")
    assert said == {"steer": "1.5", "steer_positions": "generated", "steer_features": "f"}
    assert RowSettings({"b": 1, "a": -0.5}, "all").extra_args("f")["steer"] == '{"a": -0.5, "b": 1.0}'


def test_the_salt_tells_apart_what_must_not_share_a_cache():
    rows = [RowSettings(1.0), RowSettings(1.5), RowSettings({"a": 1.0}), RowSettings(1.0, "all")]
    salts = [row.salt("f", 7) for row in rows] + [RowSettings(1.0).salt("g", 7), RowSettings(1.0).salt("f", 8)]
    assert len(set(salts)) == 6
    assert all(salt.startswith("sae_posttrain:") for salt in salts)


def test_the_salt_is_one_where_the_cache_can_be_shared():
    # the temperature changes no key or value, and from position 0 on prompts of all lengths are pushed alike
    assert RowSettings(1.0).salt("f", 7) == RowSettings(1, sampling={"temperature": 0.3}).salt("f", 7)
    assert RowSettings(1.0, "all").salt("f", 7) == RowSettings(1.0, "all").salt("f", 8)


def test_rows_of_equal_settings_have_equal_keys():
    assert RowSettings({"a": 1, "b": 2}).key == RowSettings({"b": 2.0, "a": 1.0}).key
    assert RowSettings(sampling={"top_p": 0.9}).key != RowSettings().key


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"strength": float("inf")}, "finite number"),
        ({"strength": "1"}, "finite number"),
        ({"strength": {"a": True}}, "finite number"),
        ({"strength": {}}, "empty mapping"),
        ({"positions": "prompt"}, "'generated' or 'all', got 'prompt'"),
        ({"sampling": {"n": 2}}, "cannot set 'n'"),
        ({"sampling": {"extra_args": {}}}, "cannot set 'extra_args'"),
    ],
)
def test_settings_that_mean_nothing_are_refused(given, message):
    with pytest.raises(ValueError, match=message):
        RowSettings(**given)
