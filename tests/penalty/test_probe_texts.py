from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from sae_posttrain.features.read.text_options import TextOptions
from sae_posttrain.penalty.probe_texts import ProbeSet, read_probe

PLACE = (0, "resid_post")
WORDS = {"zh": "打开文件夹", "ko": "폴더를 열기", "en": "open the folder"}
ROWS = [{"lang": lang, "text": f"{i} {word} {i * 7}"} for i in range(6) for lang, word in WORDS.items()]
OPTIONS = TextOptions(max_texts=64, max_length=64, batch_size=4)


@pytest.fixture
def probe(tokenizer):
    return ProbeSet.from_rows(ROWS, tokenizer, ("zh",), OPTIONS)


def test_the_probe_set_is_the_same_at_every_start(tokenizer):
    first, second = (ProbeSet.from_rows(ROWS, tokenizer, ("zh",), replace(OPTIONS, max_texts=4)) for _ in range(2))
    assert all(torch.equal(a.input_ids, b.input_ids) for a, b in zip(first.batches, second.batches))
    assert sum(len(batch.groups) for batch in first.batches) == 12
    assert sum(int(batch.groups.sum()) for batch in first.batches) == 4


def test_target_tokens_are_those_of_the_targets_texts(probe, tokenizer):
    own = {tokenizer.convert_ids_to_tokens(i) for i in probe.target_tokens.nonzero().flatten().tolist()}
    assert own and own <= set("".join(tokenizer.tokenize(WORDS["zh"])))


def test_a_reading_is_what_the_model_and_the_features_give(probe, make_model, make_features):
    model, features = make_model(), make_features(blocks=(0,))
    reading = read_probe(model, probe, features, {})
    text = 0
    for batch in probe.batches:
        for ids, counted, group in zip(batch.input_ids, batch.counted, batch.groups):
            length = int(counted.nonzero().max()) + 1
            with torch.no_grad():
                output = model(ids[None, :length], output_hidden_states=True)
            residual = output.hidden_states[1][0][counted[:length]]
            torch.testing.assert_close(reading.mean_values[PLACE][text], residual.mean(dim=0), rtol=1e-4, atol=1e-5)
            used = output.logits[0][counted[:length]].softmax(dim=-1)[:, probe.target_tokens.nonzero().flatten()]
            assert reading.target_probability[text].item() == pytest.approx(used.sum().item(), rel=1e-4)
            assert reading.text_is_target[text].item() == bool(group)
            assert reading.num_tokens[text] == len(residual)
            text += 1
    assert text == len(reading.text_is_target)
    assert reading.pre_activations[PLACE].shape == (int(reading.num_tokens.sum()), 2)
    of_texts = features.pre_activations(reading.mean_values[PLACE]) * reading.num_tokens[:, None]
    torch.testing.assert_close(reading.pre_activations[PLACE].sum(dim=0), of_texts.sum(dim=0), rtol=1e-3, atol=1e-3)


def test_variance_explained_is_one_less_the_share_that_is_lost(probe, make_model, make_features):
    def explained(reconstruct):
        sae = SimpleNamespace(reconstruct=reconstruct)
        return read_probe(make_model(), probe, make_features(blocks=(0,)), {PLACE: sae}).variance_explained[PLACE]

    assert explained(lambda x: x) == 1.0
    values = read_values(probe, make_model())
    mean = values.mean(dim=0)
    assert explained(lambda x: mean.expand_as(x)) == pytest.approx(0.0, abs=1e-4)
    assert explained(lambda x: mean + (x - mean) / 2) == pytest.approx(0.75, abs=1e-4)


def read_values(probe, model):
    with torch.no_grad():
        parts = [
            model(b.input_ids, attention_mask=b.attention_mask, output_hidden_states=True).hidden_states[1][b.counted]
            for b in probe.batches
        ]
    return torch.cat(parts)


def test_reading_leaves_modes_gradients_and_random_numbers_as_they_were(probe, make_model, make_features):
    model = make_model().train()
    model.model.layers[1].eval()
    modes = [module.training for module in model.modules()]
    state = torch.get_rng_state()
    read_probe(model, probe, make_features(blocks=(0,)), {})
    assert [module.training for module in model.modules()] == modes
    assert torch.equal(torch.get_rng_state(), state)
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not any(module._forward_hooks for module in model.modules())


@pytest.mark.parametrize("group", ["zh", "others"])
def test_too_few_texts_of_either_side_are_refused(group, tokenizer):
    rows = [row for row in ROWS if (row["lang"] == "zh") != (group == "zh")] + [
        next(row for row in ROWS if (row["lang"] == "zh") == (group == "zh"))
    ]
    with pytest.raises(ValueError, match="has 1 texts of .* it needs 4 or more"):
        ProbeSet.from_rows(rows, tokenizer, ("zh",), OPTIONS)


def test_target_of_the_probe_set_is_found_by_its_language(probe, tokenizer):
    named = [{**row, "lang": {"zh": "zho_Hans"}.get(row["lang"], row["lang"])} for row in ROWS]
    found = ProbeSet.from_rows(named, tokenizer, ("zh",), OPTIONS)
    assert sum(int(batch.groups.sum()) for batch in found.batches) == 6
    assert torch.equal(found.target_tokens, probe.target_tokens)
