import json
import math

import pytest
import torch
from safetensors.torch import save_file

from sae_posttrain.saes import load_sae
from sae_posttrain.saes.describe import describe_sae, format_listing, list_place

LENS = {"apply_b_dec_to_input": False, "normalize_activations": "none", "dtype": "float32", "d_in": 6, "d_sae": 16}
LENS |= {"metadata": {"hook_name": "blocks.4.hook_resid_post", "sae_lens_version": "6.20.0", "model_name": "gpt2"}}


@pytest.fixture
def qwen_scope(tmp_path, weights):
    w = weights
    w["W_dec"][[1, 2, 5, 7]] = 0
    stored = {"W_enc": w["W_enc"].T, "W_dec": w["W_dec"].T, "b_enc": w["b_enc"], "b_dec": w["b_dec"]}
    stored = {name: tensor.contiguous().bfloat16() for name, tensor in stored.items()}
    torch.save(stored, tmp_path / "layer4.sae.pt")
    return tmp_path


@pytest.fixture
def save_lens(tmp_path, weights):
    def save(names=("W_enc", "W_dec", "b_enc", "b_dec"), folder="sae", **config):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "cfg.json").write_text(json.dumps({**LENS, **config}))
        save_file({name: weights[name] for name in names}, tmp_path / folder / "sae_weights.safetensors")
        return tmp_path / folder

    return save


def test_description_of_a_qwen_scope_file(qwen_scope, weights):
    described = describe_sae(load_sae(qwen_scope, block=4))
    assert (described.format, described.file, described.block, described.site) == (
        *("qwen_scope", "layer4.sae.pt", 4),
        "resid_post",
    )
    assert (described.num_features, described.d_model) == (16, 6)
    tensors = {tensor.name: tensor for tensor in described.tensors}
    assert {tensor.dtype for tensor in tensors.values()} == {"bfloat16"}
    assert (tensors["W_enc"].shape, tensors["W_enc"].num_bytes) == ((16, 6), 192)
    assert tensors["W_enc"].reads_alone is True  # a feature is a row
    assert tensors["W_dec"].reads_alone is False  # a feature is a column
    assert tensors["b_enc"].reads_alone is None
    norms = weights["W_enc"].bfloat16().float().norm(dim=0)
    assert described.encoder_norms.max == pytest.approx(float(norms.max()))
    assert described.encoder_norms.zero == 0
    assert described.decoder_norms.zero == 4 / 16
    assert described.uses["encode"] == described.uses["find features"]
    assert "give `k`" in described.uses["encode"]
    assert described.uses["penalty"] == described.uses["steering"] == ""
    assert len(described.sha256) == 64


def test_median_cosine_is_that_of_encoder_and_direction(save_lens, weights):
    weights["W_enc"] = weights["W_dec"].T.contiguous()
    assert describe_sae(load_sae(save_lens(), block=4)).encoder_decoder_cosine == pytest.approx(1)
    weights["W_enc"] = -weights["W_enc"]
    assert describe_sae(load_sae(save_lens(folder="b"), block=4)).encoder_decoder_cosine == pytest.approx(-1)


def test_thresholds_are_shown_as_quantiles(save_lens, weights):
    weights["threshold"] = torch.arange(16.0)
    sae = load_sae(save_lens(("W_enc", "W_dec", "b_enc", "b_dec", "threshold"), architecture="jumprelu"), block=4)
    described = describe_sae(sae)
    assert described.thresholds == {"min": 0, "25 %": 4, "median": 8, "75 %": 11, "max": 15}
    assert "above its feature's threshold (min 0, 25 % 4" in str(described)
    assert not any(described.uses.values())


def test_sae_that_normalises_tokens_can_steer_and_encode_but_not_be_penalised(save_lens):
    described = describe_sae(load_sae(save_lens(normalize_activations="layer_norm"), block=4))
    assert "no affine function" in described.uses["penalty"]
    assert "no affine function" in described.uses["find features"]
    assert described.uses["steering"] == described.uses["encode"] == ""
    assert "each token normalised first (layer_norm)" in str(described)


def test_printed_page_names_what_matters(save_lens):
    page = str(describe_sae(load_sae(save_lens(architecture="topk", k=3), block=4)))
    for fact in (
        "resid_post of block 4 (the block's output)",
        "of the model   gpt2",
        "16, of width 6",
        "topk: the 3 largest of each token",
        "W_dec: read without the rest, 24 bytes each",
        "W_enc: a feature's values are scattered or compressed; all 384 bytes are read",
        "b_enc 16 float32",
        "find features  yes",
    ):
        assert fact in page


def test_description_is_json(qwen_scope):
    described = describe_sae(load_sae(qwen_scope, block=4, k=3))
    content = json.loads(json.dumps(described.as_dict(), allow_nan=False))
    assert content["k"] == 3
    assert content["tensors"][0].keys() == {"name", "shape", "dtype", "num_bytes", "reads_alone"}
    assert math.isfinite(content["encoder_norms"]["median"])


def test_part_of_an_sae_is_refused(qwen_scope):
    with pytest.raises(ValueError, match="Only 2 features were loaded"):
        describe_sae(load_sae(qwen_scope, block=4, features=[1, 2]))
    with pytest.raises(ValueError, match="directions=True"):
        describe_sae(load_sae(qwen_scope, block=4, directions=False))


def test_place_is_listed_by_block_with_what_files_say(tmp_path, qwen_scope, save_lens):
    save_lens(folder="b", metadata={"hook_name": "blocks.2.hook_mlp_out"})
    listed = list_place(tmp_path)
    assert [(sae.format, sae.block, sae.site, sae.file) for sae in listed] == [
        ("saelens", 2, "mlp_out", "b/sae_weights.safetensors"),
        ("qwen_scope", 4, "resid_post", "layer4.sae.pt"),
    ]
    assert [sae.block for sae in list_place(tmp_path, format="saelens")] == [2]
    assert format_listing(listed).splitlines() == [
        "format      block  site        file",
        "saelens     2      mlp_out     b/sae_weights.safetensors",
        "qwen_scope  4      resid_post  layer4.sae.pt",
    ]


def test_place_that_files_do_not_say_is_a_question_mark(tmp_path, save_lens):
    save_lens(metadata={"hook_name": "unembed"})
    assert format_listing(list_place(tmp_path)).splitlines()[1].split() == [
        *("saelens", "?", "?"),
        "sae/sae_weights.safetensors",
    ]


def test_names_in_files_cannot_steer_the_terminal(tmp_path, save_lens):
    folder = save_lens(folder="\x1b[2Jsae", metadata={**LENS["metadata"], "model_name": "gpt2\x1b[31m\r"})
    assert "\x1b" not in format_listing(list_place(tmp_path))
    page = str(describe_sae(load_sae(folder, block=4)))
    assert "\x1b" not in page and "\r" not in page
