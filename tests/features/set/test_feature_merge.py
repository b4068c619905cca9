"""Sets from several sources as one: directions, several SAEs of one site, rows whose numbers were known."""

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from sae_posttrain import FeatureSet, FrozenSAE, steer
from sae_posttrain.saes.stored.source import SAESource


def sae(seed: int, *, block: int = 0, repository: str = "") -> FrozenSAE:
    generator = torch.Generator().manual_seed(seed)
    return FrozenSAE(
        W_enc=torch.randn(32, 8, generator=generator),
        b_enc=torch.randn(8, generator=generator),
        W_dec=torch.randn(8, 32, generator=generator),
        b_dec=torch.zeros(32),
        activation="topk",
        block=block,
        source=SAESource(repository, None, "layer0.sae.pt", "qwen_scope", Path("layer0.sae.pt"), f"{seed}" * 64),
    )


def direction(seed: int, name: str = "mine", block: int = 0, num: int = 1) -> FeatureSet:
    vectors = torch.randn(num, 32, generator=torch.Generator().manual_seed(seed))
    return FeatureSet.from_directions(vectors, blocks=[block] * num, names=[name] * num if num > 1 else [name])


def test_two_sets_of_directions_at_one_block_are_numbered_on():
    merged = direction(0, num=2).merge(direction(1, "other", num=2))
    assert merged.feature_ids == (0, 1, 2, 3)
    assert merged.names == ("mine", "mine", "other", "other")
    assert torch.equal(merged.directions[2:], direction(1, num=2).directions)


@pytest.mark.parametrize("repositories", [("a/sae", "b/sae"), ("", "")])
def test_equal_numbers_from_two_saes_keep_them_and_get_names_of_their_own(repositories, tmp_path):
    one, other = (
        FeatureSet.from_sae(sae(seed, repository=repository), [5, 2]) for seed, repository in enumerate(repositories)
    )
    merged = one.merge(other)
    assert merged.feature_ids == (5, 2, 5, 2)
    assert merged.names == ("0.5", "0.2", "0.5#2", "0.2#2")
    assert torch.equal(merged.encoder_rows[2:], other.encoder_rows)
    loaded = FeatureSet.load(merged.save(tmp_path))
    assert (loaded.feature_ids, loaded.names) == (merged.feature_ids, merged.names)
    assert [(each.repository, each.sha256) for each in loaded.sources[1:3]] == [
        (repositories[0], "0" * 64),
        (repositories[1], "1" * 64),
    ]


def test_one_feature_in_two_sets_is_an_error_also_under_two_names():
    one = FeatureSet.from_sae(sae(0), [5, 2])
    with pytest.raises(ValueError, match="stands twice in the feature set, as '0.5' and 'again'. Leave one out"):
        one.merge(replace(one[0], names=("again",)))


def test_rows_of_an_sae_join_a_set_that_was_measured(make_features):
    found = make_features(blocks=(0,), base_model="org/base")
    merged = found.merge(FeatureSet.from_sae(sae(0), [5]))
    assert merged.base_model == "org/base" and merged.groups == found.groups
    assert torch.equal(merged.mean[:2], found.mean) and bool(
        merged.mean[2].isnan().all() & merged.std[2].isnan().all()
    )
    assert merged.residual_norms.tolist() == [5.0, 5.0, 5.0]  # the norm is the site's
    other_site = found.merge(FeatureSet.from_sae(sae(0, block=1), [5]))
    assert math.isnan(other_site.residual_norms[2])
    turned = FeatureSet.from_sae(sae(0), [5]).merge(found)
    assert turned.base_model == "org/base" and turned.groups == found.groups
    assert turned.residual_norms.tolist() == [5.0, 5.0, 5.0]


def test_merged_set_with_rows_that_were_not_measured_travels_and_prints(make_features, tmp_path):
    merged = make_features(blocks=(0,)).merge(FeatureSet.from_sae(sae(0), [5]))
    loaded = FeatureSet.load(merged.save(tmp_path))
    assert torch.equal(loaded.mean.isnan(), merged.mean.isnan())
    assert "nan" in str(loaded).splitlines()[-1]


def test_statistics_of_an_unknown_model_are_not_mixed_with_those_of_a_known_one(make_features):
    with pytest.raises(ValueError, match="Cannot merge features of '' and 'org/base'"):
        make_features(blocks=(0,)).merge(make_features(blocks=(1,), base_model="org/base"))


def test_sets_found_on_the_hub_and_on_a_local_copy_merge_under_the_hubs_name(make_features):
    first = replace(make_features(blocks=(0,), base_model="base"), fingerprint={"hidden_size": 32})
    second = replace(make_features(blocks=(1,), base_model="org/base"), fingerprint={"hidden_size": 32})
    assert first.merge(second).base_model == "org/base"
    third = replace(second, fingerprint={"hidden_size": 32, "num_hidden_layers": 4})
    assert first.merge(third).fingerprint == {"hidden_size": 32, "num_hidden_layers": 4}
    with pytest.raises(ValueError, match="Cannot merge features of two models: the hidden size of one is 32, of the"):
        first.merge(replace(second, fingerprint={"hidden_size": 64}))


def test_features_that_share_a_name_are_pushed_together(make_model, make_features, tokenizer):
    features = make_features()
    shared = replace(features, names=("a", "a", "b", "b"))
    assert shared.labels == ("a (0.3)", "a (0.13)", "b (1.23)", "b (1.33)")
    assert shared.select(names=["b"]).feature_ids == features.feature_ids[2:]
    model = make_model().eval()
    ids = torch.tensor([[5, 6, 7]])
    with steer(model, shared, strength={"a": 1.0, "b": 0.0}):
        together = model(ids).logits
    by_hand = dict(zip(features.names, (1.0, 1.0, 0.0, 0.0)))
    with steer(model, features, strength=by_hand):
        assert torch.equal(model(ids).logits, together)
