"""What features read on texts, on a tiny model."""

from dataclasses import replace

import pytest
import torch

from sae_posttrain.features.read.readings import read_features
from sae_posttrain.features.read.text_options import TextOptions
from sae_posttrain.hooks.record import record_blocks

ROWS = [
    {"text": "안녕하세요", "lang": "ko"},
    {"text": "a longer English text", "lang": "en"},
    {"text": "Short one", "lang": "en"},
]


def test_mean_and_spread_are_those_of_a_groups_tokens(make_model, make_features, tokenizer):
    model, features = make_model(), make_features()
    read = read_features(model, features, ROWS, tokenizer, TextOptions(batch_size=2))
    assert list(read) == list(features.names)
    ids = torch.tensor([tokenizer(ROWS[0]["text"])["input_ids"]])
    with torch.no_grad(), record_blocks(model.eval(), [0]) as outputs:
        model(input_ids=ids)
    expected = features.select(block=0).pre_activations(outputs[0][0][0, 1:])  # the first position does not count
    mean, std = read[features.names[0]]["ko"]
    assert mean == pytest.approx(float(expected[:, 0].mean()), abs=1e-4)
    assert std == pytest.approx(float(expected[:, 0].std(correction=0)), abs=1e-4)


def test_each_feature_is_read_at_its_own_site(make_model, make_features, tokenizer):
    model, features = make_model().eval(), make_features(blocks=(1,))
    features = replace(features, sites=("mlp_out", "attn_z"))
    read = read_features(model, features, ROWS, tokenizer)
    seen = {}
    block = model.model.layers[1]
    with (
        torch.no_grad(),
        block.mlp.register_forward_hook(lambda _m, _a, output: seen.update(mlp_out=output)),
        block.self_attn.o_proj.register_forward_pre_hook(lambda _m, args: seen.update(attn_z=args[0])),
    ):
        model(input_ids=torch.tensor([tokenizer(ROWS[0]["text"])["input_ids"]]))
    for name, site in zip(features.names, features.sites):
        expected = features.select(names=[name]).pre_activations(seen[site][0, 1:]).mean()
        assert read[name]["ko"][0] == pytest.approx(float(expected), abs=1e-4)


def test_batches_do_not_change_what_is_read(make_model, make_features, tokenizer):
    model, features = make_model(), make_features()
    one = read_features(model, features, ROWS, tokenizer, TextOptions(batch_size=1))
    three = read_features(model, features, ROWS, tokenizer, TextOptions(batch_size=3))
    for name in features.names:
        for lang in ("en", "ko"):
            assert one[name][lang] == pytest.approx(three[name][lang], abs=1e-4)


def test_a_model_in_training_is_read_without_dropout_and_left_in_training(make_model, make_features, tokenizer):
    model = make_model().train()
    read_features(model, make_features(), ROWS, tokenizer)
    assert model.training


def test_a_group_without_a_token_that_counts_is_an_error(make_model, make_features, tokenizer):
    with pytest.raises(ValueError, match="No token of zh counts"):
        read_features(make_model(), make_features(), [*ROWS, {"text": "a", "lang": "zh"}], tokenizer)
