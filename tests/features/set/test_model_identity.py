"""Features belong to one model: by its whole name, and by its configuration."""

from dataclasses import replace

import pytest
from peft import LoraConfig, get_peft_model

from sae_posttrain import FeatureSet, find_directions
from sae_posttrain.features.set.model_identity import fingerprint, found_on, is_same_name

OWN = {"model_type": "qwen3", "hidden_size": 32, "num_hidden_layers": 2, "tie_word_embeddings": False}


@pytest.mark.parametrize(
    ("known", "name", "same"),
    [
        ("Qwen/Qwen3-1.7B", "Qwen/Qwen3-1.7B", True),
        ("Qwen/Qwen3-1.7B", "someone/Qwen3-1.7B", False),
        ("Qwen/Qwen3-1.7B", "Qwen/Qwen3-4B", False),
        ("Qwen/Qwen3-1.7B", "/data/models/Qwen3-1.7B", True),
        ("Qwen/Qwen3-1.7B", "./Qwen3-1.7B/", True),
        ("Qwen/Qwen3-1.7B", "/hub/models--Qwen--Qwen3-1.7B/snapshots/" + "0" * 40, True),
        ("Qwen/Qwen3-1.7B", "/hub/models--someone--Qwen3-1.7B/snapshots/" + "0" * 40, False),
        ("Qwen3-1.7B", "/data/models/Qwen3-1.7B", True),
        ("Qwen3-1.7B", "Qwen/Qwen3-1.7B", True),
        ("runs/a/checkpoint-100", "runs/b/checkpoint-100", False),
        ("runs/a/checkpoint-100", "/home/me/runs/a/checkpoint-100", True),
        ("a/checkpoint-100", "/home/me/runs/b/checkpoint-100", False),
        ("a/checkpoint-100", "/home/me/runs/a/checkpoint-100", True),
        ("a/checkpoint-100", "/home/me/runs/a/checkpoint-200", False),
        ("runs/a/sft", "runs/b/sft", False),
        ("a/final", "/runs/b/final", False),
        ("checkpoint-100", "/runs/b/checkpoint-100", True),  # a file that says no more
    ],
)
def test_names_are_compared_whole(known, name, same):
    assert is_same_name(known, name) is same


def test_features_of_a_hub_model_are_used_on_a_local_copy(make_model, make_features, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models/base").mkdir(parents=True)
    model = make_model()
    model.config._name_or_path = "models/base"
    features = replace(make_features(base_model="owner/base"), fingerprint=fingerprint(model))
    features.check_model(model)
    model.config._name_or_path = str(tmp_path / "models/base")
    features.check_model(model)
    features.check_model(get_peft_model(model, LoraConfig(target_modules=["q_proj"])))
    (tmp_path / "other").mkdir()
    model.config._name_or_path = "other"
    with pytest.raises(ValueError, match="found on 'owner/base', this model is 'other'. .*allow_base_model='other'"):
        features.check_model(model)
    features.check_model(model, allow_base_model="other")


def test_local_copy_of_another_configuration_is_refused_and_told_in_what(make_model, make_features):
    features = replace(
        make_features(base_model="owner/base"), fingerprint=fingerprint(make_model()) | {"num_hidden_layers": 28}
    )
    model = make_model()
    model.config._name_or_path = "/data/base"
    with pytest.raises(ValueError, match="its number of layers is 28, this model's is 2. .*allow_base_model='base'"):
        features.check_model(model)
    features.check_model(model, allow_base_model="base")
    model.config._name_or_path = ""
    with pytest.raises(ValueError, match=r"this model has no name: its number of layers is 28.*fingerprint=\{\}"):
        features.check_model(model)
    replace(features, fingerprint={}).check_model(model)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"vocab_size": 999}, "its vocabulary size is 260, this model's is 999"),
        ({"model_type": "llama"}, "its type is 'qwen3', this model's is 'llama'"),
        ({"tie_word_embeddings": True}, "its tying of input and output embeddings is False, this model's is True"),
    ],
)
def test_every_entry_of_the_configuration_counts(make_model, make_features, change, message):
    model = make_model()
    model.config._name_or_path = "/data/base"
    features = replace(make_features(base_model="owner/base"), fingerprint=fingerprint(model))
    for name, value in change.items():
        setattr(model.config, name, value)
    with pytest.raises(ValueError, match=message):
        features.check_model(model)


def test_tokens_added_to_the_very_model_do_not_matter(make_model, make_features, tokenizer):
    model = make_model()
    model.config._name_or_path = "owner/base"
    features = replace(make_features(), **found_on(model, tokenizer))
    model.resize_token_embeddings(300)
    features.check_model(model, tokenizer=tokenizer)


def test_another_vocabulary_is_another_model(make_model, make_features, tokenizer):
    class Other:
        added_tokens_encoder = tokenizer.added_tokens_encoder

        def get_vocab(self):
            return {token + "x" * (number > 200): number for token, number in tokenizer.get_vocab().items()}

    model = make_model()
    features = replace(make_features(), **found_on(model, tokenizer))
    features.check_model(model, tokenizer=tokenizer)
    features.check_model(model)
    with pytest.raises(ValueError, match="its tokenizer .hash of its vocabulary. is"):
        features.check_model(model, tokenizer=Other())


def test_files_without_a_fingerprint_are_judged_by_name(make_model, make_features):
    model = make_model()
    model.config._name_or_path = "/data/base"
    make_features(base_model="owner/base").check_model(model)
    model.config._name_or_path = "someone/base"
    with pytest.raises(ValueError, match="found on 'owner/base', this model is 'someone/base'"):
        make_features(base_model="owner/base").check_model(model)
    with pytest.raises(ValueError, match="this model is 'someone/base'"):
        make_features(base_model="owner/base").check_model(model, allow_base_model="third/base")


def test_searches_record_name_and_configuration_and_files_keep_them(make_model, tokenizer, tmp_path):
    model = make_model()
    folder = tmp_path / "runs/first/checkpoint-10"
    folder.mkdir(parents=True)
    model.config._name_or_path = str(folder)
    rows = [{"lang": lang, "text": f"{lang} text {i}"} for lang in ("zh", "en") for i in range(4)]
    options = {"method": "difference_of_means", "target_group": "zh", "blocks": [0], "tokenizer": tokenizer}
    found = find_directions(model, rows, **options)
    assert found.base_model == "first/checkpoint-10"
    loaded = FeatureSet.load(found.save(tmp_path))
    assert OWN.items() <= loaded.fingerprint.items() and "tokenizer" in loaded.fingerprint
    loaded.check_model(model, tokenizer=tokenizer)
    other = tmp_path / "runs/second/checkpoint-10"
    other.mkdir(parents=True)
    model.config._name_or_path = str(other)
    with pytest.raises(ValueError, match="allow_base_model='second/checkpoint-10'"):
        loaded.check_model(model)
    loaded.check_model(model, allow_base_model="second/checkpoint-10")
