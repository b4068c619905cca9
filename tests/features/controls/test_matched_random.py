import logging
import random
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from sae_posttrain import FeatureSet, FrozenSAE, find_features
from sae_posttrain.features.controls.matched_random import draw_matches, eligible_features, matched_random_features
from sae_posttrain.features.read.group_statistics import measure_groups
from sae_posttrain.features.read.text_options import TextOptions
from sae_posttrain.saes.stored.source import SAESource

ALPHABETS = {"zh": "qxzjkv", "en": "aeioun", "ko": "tslrdm"}


def make_rows(num: int = 8) -> list[dict[str, str]]:
    letters = random.Random(0)
    return [
        {"lang": group, "text": "".join(letters.choices(alphabet, k=20 + 3 * i))}
        for i in range(num)
        for group, alphabet in ALPHABETS.items()
    ]


ROWS = make_rows()


def make_sae(block: int, **settings) -> FrozenSAE:
    normal = torch.Generator().manual_seed(block)
    return FrozenSAE(
        W_enc=torch.randn(32, 80, generator=normal) / 4,
        b_enc=torch.randn(80, generator=normal) / 4,
        W_dec=torch.randn(80, 32, generator=normal),
        b_dec=torch.zeros(32),
        block=block,
        source=SAESource("owner/sae", None, "sae", "by hand", Path(__file__)),
        **{"activation": "topk", "k": 8, **settings},
    )


SAES = [make_sae(1), make_sae(0)]


@pytest.fixture
def settings(tokenizer):
    return {"tokenizer": tokenizer, "text_options": TextOptions(batch_size=8)}


@pytest.fixture
def found(make_model, settings) -> FeatureSet:
    return find_features(make_model(), SAES, ROWS, target_group="zh", num_features=3, **settings)


def test_as_many_other_features_of_the_same_saes_stand_at_the_same_places(make_model, settings, found):
    control = matched_random_features(make_model(), found, SAES, ROWS, **settings)
    assert (control.blocks, control.sites) == (found.blocks, found.sites) == ((1,) * 3 + (0,) * 3, found.sites)
    own = set(zip(found.blocks, found.feature_ids))
    drawn = list(zip(control.blocks, control.feature_ids))
    assert len(set(drawn)) == 6 and not own & set(drawn)
    assert (control.target_groups, control.base_model) == (("zh",), found.base_model)
    assert control.notes["stands_for"] == dict(zip(control.names, found.names))
    assert control.names[0] == f"matched0.1.{control.feature_ids[0]}"
    sae = {sae.block: sae for sae in SAES}
    for row, (block, number) in enumerate(drawn):
        assert torch.equal(control.encoder_rows[row], sae[block].W_enc[:, number])
        assert torch.equal(control.directions[row], sae[block].W_dec[number])


def test_statistics_of_the_drawn_features_are_those_of_any_set(make_model, settings, found):
    control = matched_random_features(make_model(), found, SAES, ROWS, **settings)
    measured = measure_groups(make_model(), control, ROWS, **settings)
    for name in ("mean", "std", "residual_norms"):
        torch.testing.assert_close(getattr(control, name), getattr(measured, name), rtol=1e-4, atol=1e-4)
    assert control.groups == measured.groups


def test_nearest_in_rate_and_norms_are_drawn_and_the_targets_own_are_not(make_model, settings, found):
    everything = find_features(make_model(), SAES, ROWS, target_group="zh", num_features=80, **settings)
    # features that `find_features` lists fire most on the target: those beyond the factor are out
    specific = {
        (block, number)
        for block, number, here, there in zip(
            everything.blocks,
            everything.feature_ids,
            everything.scores["firing_rate"].tolist(),
            everything.scores["firing_rate_elsewhere"].tolist(),
        )
        if here >= 2 * there
    }
    assert len(specific) > 6
    for seed in range(5):
        control = matched_random_features(make_model(), found, SAES, ROWS, seed=seed, num_neighbours=8, **settings)
        assert not specific & set(zip(control.blocks, control.feature_ids))
        for name in ("encoder_norm", "direction_norm"):
            ratio = control.scores[name] / control.scores[f"{name}_wanted"]
            assert ratio.min() > 0.6 and ratio.max() < 1.7


def test_seed_decides_the_draw(make_model, settings, found):
    def draw(seed):
        return matched_random_features(make_model(), found, SAES, ROWS, seed=seed, **settings).feature_ids

    assert draw(0) == draw(0)
    assert len({draw(seed) for seed in range(4)}) > 1


def test_features_in_mixed_order_keep_their_order(make_model, settings, found):
    mixed = found[[3, 0, 4, 1]]
    control = matched_random_features(make_model(), mixed, SAES, ROWS, **settings)
    assert control.blocks == mixed.blocks == (0, 1, 0, 1)
    wanted = [control.notes["stands_for"][name] for name in control.names]
    assert wanted == list(mixed.names)


def test_saes_may_be_given_by_their_folder(make_model, settings, found, tmp_path):
    for sae in SAES:
        weights = {"W_enc": sae.W_enc.T.contiguous(), "W_dec": sae.W_dec.T.contiguous()}
        torch.save({**weights, "b_enc": sae.b_enc, "b_dec": sae.b_dec}, tmp_path / f"layer{sae.block}.sae.pt")
    control = matched_random_features(make_model(), found, tmp_path, ROWS, k=8, **settings)
    assert control.feature_ids == matched_random_features(make_model(), found, SAES, ROWS, **settings).feature_ids
    assert {source.format for source in control.sources} == {"qwen_scope"}


def test_eligible_features_fire_and_are_neither_the_targets_nor_the_sets_own():
    rates = torch.tensor(
        # target's, own,  dead, even, elsewhere, just below the factor
        [[0.4, 0.1, 0.0, 0.2, 0.0, 0.19], [0.1, 0.1, 0.0, 0.2, 0.3, 0.1], [0.2, 0.1, 0.0, 0.1, 0.0, 0.0]]
    )
    eligible = eligible_features(rates, targets=[0], own=[1])
    assert eligible.tolist() == [False, False, False, True, True, True]


def test_neighbours_are_near_by_factors_and_taken_once():
    rates = torch.tensor([0.1, 0.05, 0.21, 0.11, 0.001, 0.5])
    properties = torch.stack([rates, torch.ones(6)], dim=1)
    eligible = torch.tensor([False, True, True, True, True, True])
    seen = {tuple(draw_matches(properties, [0], eligible, 3, random.Random(seed))) for seed in range(40)}
    assert seen == {(1,), (2,), (3,)}  # factors 2, 2.1 and 1.1; the next is 5
    assert sorted(draw_matches(properties, [0] * 5, eligible, 1, random.Random(0))) == [1, 2, 3, 4, 5]
    with pytest.raises(ValueError, match="Only 5 features fire and are not the target's, 6 are wanted"):
        draw_matches(properties, [0] * 6, eligible, 1, random.Random(0))


def test_poor_match_is_warned_of(make_model, settings, found, caplog):
    few = [0, 1, *found.select(block=1).feature_ids]
    sae = make_sae(1, activation="relu", k=None)
    b_enc = sae.b_enc.clone()
    b_enc[:2] = 100.0  # the only ones left to draw are always on
    sae = replace(sae, b_enc=b_enc[few], W_enc=sae.W_enc[:, few], W_dec=sae.W_dec[few], features=tuple(few))
    with caplog.at_level(logging.WARNING, "sae_posttrain"):
        matched_random_features(make_model(), found.select(block=1)[:1], sae, ROWS, **settings)
    assert "1 of 1 drawn features fire more than 2 times as often" in caplog.text


def test_set_that_does_not_belong_to_the_sae_is_refused(make_model, settings, found):
    def draw(features=found, saes=SAES, **more):
        return matched_random_features(make_model(), features, saes, ROWS, **settings | more)

    other = [replace(sae, W_enc=sae.W_enc.flip(1)) for sae in SAES]
    with pytest.raises(ValueError, match="is not feature .* of the SAE sae at block 0. Give the SAE"):
        draw(saes=other)
    with pytest.raises(ValueError, match="The feature set names no target group"):
        draw(replace(found, target_groups=()))
    with pytest.raises(ValueError, match="`num_neighbours` must be 1 or more, got 0"):
        draw(num_neighbours=0)
    with pytest.raises(ValueError, match="Give one SAE for resid_post of each block"):
        draw(saes=SAES[:1])
    silent = [replace(sae, b_enc=torch.full((80,), -1e6), activation="relu", k=None) for sae in SAES]
    with pytest.raises(ValueError, match="never fires on these texts, so nothing matches it"):
        draw(saes=silent)
