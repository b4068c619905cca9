import pytest

from sae_posttrain.sae_training.saelens import DEFAULT_SPARSITY, SPARSITY_OF, Recipe

PLAIN = {
    "architecture": "topk",
    "num_features": None,
    "expansion": 8,
    "k": None,
    "l1_coefficient": None,
    "num_tokens": 1000,
    "batch_size": 100,
    "learning_rate": 1e-3,
    "seed": 0,
}


def recipe(**options):
    return Recipe(**{**PLAIN, **options})


def test_every_architecture_has_a_default_sparsity():
    for architecture, name in SPARSITY_OF.items():
        assert recipe(architecture=architecture).sparsity == DEFAULT_SPARSITY[name]


def test_number_of_features_is_the_given_one_or_a_multiple_of_the_width():
    assert recipe().features_of(192) == 1536
    assert recipe(num_features=100).features_of(192) == 100


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"architecture": "sparse"}, "Unknown architecture 'sparse'. Known: topk, batchtopk"),
        ({"k": 0}, "`k` must be 1 or more, got 0"),
        ({"num_features": 0}, "`num_features` must be 1 or more"),
        ({"batch_size": 0}, "`batch_size` must be 1 or more"),
        ({"num_tokens": 99}, "`num_tokens` is 99, less than a batch of 100"),
        ({"learning_rate": float("nan")}, "`learning_rate` must be above 0 and finite, got nan"),
        ({"l1_coefficient": 5.0}, "`l1_coefficient` makes standard, gated sparse; topk takes `k` instead"),
        ({"architecture": "gated", "k": 32}, "gated takes `l1_coefficient` instead"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        recipe(**options)


def test_more_active_features_than_features_are_refused():
    with pytest.raises(ValueError, match="`k` is 32, but an SAE has only 16 features"):
        recipe(expansion=1).features_of(16)
