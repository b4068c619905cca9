import dataclasses
import json

import pytest
import torch

from sae_posttrain.saes import FrozenSAE, SAESource, convert, load_sae
from sae_posttrain.saes.convert import convert_sae, saelens_form, write_saelens

VARIANTS = {
    "relu": {"activation": "relu"},
    "jumprelu": {"activation": "jumprelu"},
    "gated": {"activation": "gated"},
    "topk": {"activation": "topk", "k": 5},
    "topk by decoder norm": {"activation": "topk", "k": 5, "rescale": True},
    "topk by one factor, taken back": {"activation": "topk", "k": 5, "norm_in_acts": False, "factor": 3.0},
    "abstopk": {"activation": "abstopk", "k": 5},
    "abstopk by decoder norm": {"activation": "abstopk", "k": 5, "rescale": True},
    "layer norm": {"activation": "topk", "k": 5, "input_norm": "layer_norm"},
    "constant norm": {"activation": "relu", "input_norm": "constant_norm"},
}


@pytest.fixture
def make_sae(weights, tmp_path):
    """Builds an SAE of any kind from the random weights."""
    file = tmp_path / "source" / "layer4.sae.pt"
    file.parent.mkdir()
    file.write_bytes(b"weights")

    def make(activation="relu", rescale=False, factor=None, **options) -> FrozenSAE:
        w = weights
        more = {"threshold": w["threshold"]} if activation == "jumprelu" else {}
        if activation == "gated":
            more = {"magnitude_scale": w["r_mag"].exp(), "magnitude_shift": w["b_mag"]}
        if rescale:
            more["decoder_norm"] = w["W_dec"].norm(dim=1)
        if factor:
            more["decoder_norm"] = torch.full((16,), factor)
        options = {"site": "resid_post", "base_model": "Qwen/Qwen3-0.6B", **options}
        source = SAESource("owner/saes", "a" * 40, "layer4.sae.pt", "qwen_scope", file)
        named = {name: w[name] for name in ("W_enc", "b_enc", "W_dec", "b_dec")}
        return FrozenSAE(**named, activation=activation, block=4, source=source, **more, **options)

    return make


@pytest.mark.parametrize("options", VARIANTS.values(), ids=VARIANTS.keys())
def test_what_is_written_reads_back_as_the_same_sae(make_sae, tmp_path, x, options):
    sae = make_sae(**options)
    written = write_saelens(sae, tmp_path / "out")
    assert written.notes == ()
    back = load_sae(tmp_path / "out", block=4)
    assert back.source.format == "saelens"
    assert (back.block, back.site, back.base_model) == (4, "resid_post", "Qwen/Qwen3-0.6B")
    torch.testing.assert_close(back.pre_activations(x), sae.pre_activations(x))
    torch.testing.assert_close(back.encode(x), sae.encode(x))
    torch.testing.assert_close(back.reconstruct(x), sae.reconstruct(x))
    assert back.direction(3).equal(sae.direction(3))


def test_qwen_scope_converts_from_its_files_and_says_what_becomes_of_negative_values(tmp_path, weights, x):
    w = weights
    stored = {"W_enc": w["W_enc"].T, "W_dec": w["W_dec"].T, "b_enc": w["b_enc"], "b_dec": w["b_dec"]}
    folder = tmp_path / "SAE-Res-Qwen3-1.7B-Base-W32K-L0_12"
    folder.mkdir()
    torch.save({name: tensor.contiguous() for name, tensor in stored.items()}, folder / "layer4.sae.pt")
    written = convert_sae(folder, tmp_path / "new" / "out", block=4)
    assert written.architecture == "topk"
    assert written.notes == ("SAELens sets negative values among the k largest to 0; this SAE keeps them.",)
    config = json.loads((written.folder / "cfg.json").read_text())
    assert (config["architecture"], config["k"], config["d_in"], config["d_sae"]) == ("topk", 12, 6, 16)
    assert config["apply_b_dec_to_input"] is False
    metadata = config["metadata"]
    assert metadata["model_name"] == "Qwen/Qwen3-1.7B-Base"
    assert metadata["hook_name"] == "blocks.4.hook_resid_post"
    source = load_sae(folder, block=4).source
    origin = {"repository": "", "revision": None, "file": "layer4.sae.pt"}
    assert metadata["converted_from"] == {"format": "qwen_scope", **origin, "sha256": source.sha256()}
    acts = load_sae(folder, block=4).encode(x)
    assert (acts < 0).any()
    torch.testing.assert_close(load_sae(written.folder, block=4).encode(x), torch.relu(acts))


@pytest.mark.parametrize(
    ("site", "hook", "model_class", "note"),
    [
        ("mlp_out", "blocks.4.hook_mlp_out", None, None),
        ("attn_z", "blocks.4.attn.hook_z", None, "turn_on_forward_pass_hook_z_reshaping"),
        ("mlp.output", "model.layers.4.mlp", "AutoModelForCausalLM", None),
        ("mlp.down_proj.input", "model.layers.4.mlp.down_proj.input", "AutoModelForCausalLM", "only outputs"),
    ],
)
def test_site_is_named_as_saelens_names_it(make_sae, tmp_path, site, hook, model_class, note):
    written = write_saelens(make_sae(site=site), tmp_path / "out")
    metadata = json.loads((tmp_path / "out" / "cfg.json").read_text())["metadata"]
    assert (metadata["hook_name"], metadata["model_class_name"]) == (hook, model_class)
    assert note in written.notes[0] if note else written.notes == ()
    assert load_sae(tmp_path / "out", block=4).site == site


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"activation": "groupmax", "k": 4}, "no activation 'groupmax'; it has relu"),
        ({"activation": "topk"}, "do not say how many features are active"),
        ({"activation": "topk", "k": 5, "rescale": True, "norm_in_acts": False}, "returns them without that norm"),
        ({"activation": "topk", "k": 5, "factor": 2.0}, "factors that are not the norms of its directions"),
        ({"activation": "jumprelu", "rescale": True}, "only before TopK; this is a jumprelu SAE"),
    ],
)
def test_what_saelens_cannot_say_is_refused(make_sae, tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        write_saelens(make_sae(**options), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_directions_that_saelens_would_divide_by_zero_are_refused(make_sae, weights):
    weights["W_dec"][3] = 0
    with pytest.raises(ValueError, match="1 of the 16 directions are 0; SAELens divides by their norm"):
        saelens_form(make_sae(activation="topk", k=5, rescale=True))


def test_a_part_of_an_sae_is_refused(make_sae):
    part = dataclasses.replace(make_sae(), features=tuple(range(16)))
    with pytest.raises(ValueError, match="Only 16 features were loaded"):
        saelens_form(part)


def test_existing_folder_is_kept_unless_it_is_empty(make_sae, tmp_path):
    (tmp_path / "out").mkdir()
    write_saelens(make_sae(), tmp_path / "out")
    before = (tmp_path / "out" / "cfg.json").read_text()
    with pytest.raises(FileExistsError, match="exists and is no empty folder"):
        write_saelens(make_sae(activation="gated"), tmp_path / "out")
    with pytest.raises(FileExistsError, match="exists and is no empty folder"):
        convert_sae("no/such/repository/at/all", tmp_path / "out", block=4)  # before anything is fetched
    assert (tmp_path / "out" / "cfg.json").read_text() == before


def test_write_that_fails_leaves_nothing(make_sae, tmp_path, monkeypatch):
    def fill_the_disk(tensors, path):
        path.write_bytes(b"half")
        raise OSError("No space left on device")

    monkeypatch.setattr(convert, "save_file", fill_the_disk)
    before = sorted(tmp_path.iterdir())
    with pytest.raises(OSError, match="No space left"):
        write_saelens(make_sae(), tmp_path / "out")
    assert sorted(tmp_path.iterdir()) == before
