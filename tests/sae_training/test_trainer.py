"""`train_sae` around the trainer, which is a stand-in here; with SAELens itself in `test_saelens_library.py`."""

import itertools
import json

import pytest
import torch
from safetensors.torch import save_file

from sae_posttrain import load_sae
from sae_posttrain.sae_training import saelens, trainer
from sae_posttrain.sae_training.folder import read_report
from sae_posttrain.sae_training.trainer import train_sae

from .conftest import SENTENCES

ROWS = [{"text": 10 * sentence} for sentence in SENTENCES]
SMALL = {"held_out": 0.3, "num_tokens": 64, "batch_size": 8, "buffer_tokens": 32, "k": 4, "num_features": 64}


@pytest.fixture
def stand_in(monkeypatch):
    """
    A trainer whose SAEs have the identity and its negative as their features, so that k = D explains everything; the
    dictionary that is returned holds what it was given.
    """
    given = {}

    def fit(recipe, batches, hook_names, metadata, checkpoints, processes):
        given.update(recipe=recipe, batches=list(itertools.islice(batches, 8)))
        widths = {place: values.shape[1] for place, values in given["batches"][0].items()}
        saes = {
            place: (recipe.k, widths[place], {**metadata, "hook_name": hook}) for place, hook in hook_names.items()
        }
        return saes, 1.5

    def save(sae, folder):
        k, width, metadata = sae
        folder.mkdir(parents=True)
        W_dec = torch.cat([torch.eye(width), -torch.eye(width)])
        weights = {"W_enc": W_dec.T, "W_dec": W_dec, "b_enc": torch.zeros(2 * width), "b_dec": torch.zeros(width)}
        save_file({name: tensor.contiguous() for name, tensor in weights.items()}, folder / "sae_weights.safetensors")
        config = {"architecture": "topk", "d_in": width, "d_sae": 2 * width, "k": k, "apply_b_dec_to_input": False}
        (folder / "cfg.json").write_text(json.dumps({**config, "metadata": metadata}))

    monkeypatch.setattr(trainer, "fit", fit)
    monkeypatch.setattr(trainer, "save", save)
    monkeypatch.setattr(trainer, "require_saelens", lambda: None)
    monkeypatch.setattr(trainer, "version", lambda package: "1.0")
    return given


def train(model, tokenizer, out, **options):
    return train_sae(model, ROWS, output_dir=out, tokenizer=tokenizer, **{"blocks": [0, 1], **SMALL, **options})


def test_saes_load_by_block_and_the_report_says_how_well_they_do(tmp_path, make_model, tokenizer, stand_in):
    out = tmp_path / "saes"
    folders = train(make_model(), tokenizer, out, k=32)
    assert [folder.name for folder in folders] == ["blocks.0.hook_resid_post", "blocks.1.hook_resid_post"]
    assert load_sae(out, block=1).k == 32
    entry = read_report(out)["blocks.1.hook_resid_post"]
    assert entry["measured"]["fvu"] == pytest.approx(0, abs=1e-6)
    assert entry["measured"]["l0"] == pytest.approx(32)
    assert entry["measured"]["loss_with_sae"] == pytest.approx(entry["measured"]["loss"], abs=1e-4)
    assert entry["settings"]["num_features"] == 64
    assert entry["versions"]["sae-lens"] == "1.0"


def test_held_out_texts_are_measured_on_and_not_trained_on(tmp_path, make_model, tokenizer, stand_in):
    train(make_model(), tokenizer, tmp_path / "saes", held_out=0.4, buffer_tokens=1000)
    entry = read_report(tmp_path / "saes")["blocks.0.hook_resid_post"]
    assert entry["data"]["num_texts"] == 4
    counted = sum(10 * len(sentence) - 1 for sentence in SENTENCES)
    assert entry["data"]["num_tokens"] + entry["measured"]["num_tokens"] == counted


def test_the_report_names_no_folder_of_this_machine(tmp_path, make_model, tokenizer, stand_in):
    make_model().save_pretrained(tmp_path / "tiny")
    tokenizer.save_pretrained(tmp_path / "tiny")
    [folder] = train(str(tmp_path / "tiny"), None, tmp_path / "saes", blocks=[1])
    assert load_sae(folder, block=1).base_model == "tiny"
    assert str(tmp_path) not in (tmp_path / "saes" / "training.json").read_text()


@pytest.mark.parametrize("site", ["resid_mid", "attn_z", "mlp_out", "mlp.down_proj.input"])
def test_other_sites_are_read_and_found_again(tmp_path, make_model, tokenizer, stand_in, site):
    model = make_model()
    train(model, tokenizer, tmp_path / "saes", site=site, blocks=[1])
    width = 48 if site == "mlp.down_proj.input" else 32
    assert stand_in["batches"][0][1, site].shape == (8, width)
    assert load_sae(tmp_path / "saes", block=1, site=site).site == site


def test_a_training_that_fails_leaves_nothing(tmp_path, make_model, tokenizer, stand_in, monkeypatch):
    def save_half(sae, folder):
        folder.mkdir()
        (folder / "cfg.json").write_text("{}")
        raise RuntimeError("disk full")

    monkeypatch.setattr(trainer, "save", save_half)
    with pytest.raises(RuntimeError, match="disk full"):
        train(make_model(), tokenizer, tmp_path / "saes")
    assert not list(tmp_path.iterdir())


def test_a_measurement_that_fails_does_not_lose_the_saes(tmp_path, make_model, tokenizer, stand_in, monkeypatch):
    def fail(*_, **__):
        raise RuntimeError("no memory")

    with monkeypatch.context() as patch:
        patch.setattr(trainer, "measure_fit", fail)
        with pytest.raises(RuntimeError, match="no memory"):
            train(make_model(), tokenizer, tmp_path / "saes")
    assert load_sae(tmp_path / "saes", block=1).num_features == 64
    stand_in.clear()
    train(make_model(), tokenizer, tmp_path / "saes")  # measures, and trains nothing
    assert not stand_in
    assert read_report(tmp_path / "saes")["blocks.1.hook_resid_post"]["seconds"] == 1.5
    assert [path.name for path in tmp_path.iterdir()] == ["saes"]


def test_the_model_is_left_as_it_was(tmp_path, make_model, tokenizer, stand_in):
    model = make_model().train()
    before = torch.get_rng_state()
    train(model, tokenizer, tmp_path / "saes")
    assert model.training
    assert torch.equal(torch.get_rng_state(), before)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_without_saelens_it_says_what_to_install(tmp_path, make_model, tokenizer, monkeypatch):
    monkeypatch.setattr(saelens, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"needs SAELens: pip install 'sae_posttrain\[train\]'"):
        train(make_model(), tokenizer, tmp_path / "saes")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"blocks": []}, "Say which `blocks`"),
        ({"blocks": [1, 1]}, "names each once; got \\[1, 1\\]"),
        ({"blocks": [-1]}, "counts decoder blocks from 0"),
        ({"blocks": [2]}, "Unknown block 2: the model has blocks 0 to 1"),
        ({"site": "residual"}, "Unknown site 'residual'. Known: resid_pre"),
        ({"blocks": [1], "site": "resid_pre"}, "resid_pre of block 1 is what is called resid_post of block 0"),
        ({"site": "self_attn.o_proj.input"}, "what is called attn_z of block 0"),
        ({"site": "mlp.nothing.output"}, "has no module 'nothing'"),
        ({"k": 65}, "`k` is 65, but an SAE has only 64 features"),
        ({"held_out": 0.0}, "`held_out` must be in \\(0, 1\\), got 0.0"),
        ({"save_every": -1.0}, "`save_every` must be 0 or more minutes, got -1.0"),
        ({"max_length": 0}, "`max_length` must be 1 or more"),
        ({"text_column": "body"}, "no text in the column `body`"),
        ({"max_length": 20}, "The held-out texts hold 38 tokens that count, too few"),
        ({"batch_size": 5000, "num_tokens": 5000, "buffer_tokens": 10_000}, "fewer than a batch of 5000"),
    ],
)
def test_what_cannot_be_trained_is_refused_at_the_start(tmp_path, make_model, tokenizer, stand_in, options, message):
    with pytest.raises(ValueError, match=message):
        train(make_model(), tokenizer, tmp_path / "saes", **options)
    assert not stand_in
    assert not (tmp_path / "saes").exists()


def test_no_texts_are_refused(tmp_path, make_model, tokenizer, stand_in):
    with pytest.raises(ValueError, match="There are no texts to train an SAE on"):
        train_sae(make_model(), [], blocks=[0], output_dir=tmp_path / "saes", tokenizer=tokenizer)
