"""Where sites lie, told numerically: on models of every family the halves of a block add up to the residual stream."""

import pytest
import torch
from torch import Tensor

from sae_posttrain.hooks.blocks import find_blocks
from sae_posttrain.hooks.record import record_sites
from sae_posttrain.hooks.sites import Place, find_site
from sae_posttrain.sites import SITES

IDS = torch.arange(3, 17).reshape(2, 7)
SIDE_BY_SIDE = ("phi", "gpt_neox")
FAMILIES = (
    "qwen2",
    "qwen3",
    "qwen3_5",
    "qwen3_moe",
    "gemma2",
    "gemma3",
    "gemma3_multimodal",
    "llama",
    "mistral",
    "phi",
    "phi3",
    "olmo2",
    "gpt_neox",
    "gpt2",
)
NORMED_BEHIND = ("gemma2", "gemma3", "gemma3_multimodal", "olmo2")


def record(model, places: list[Place]) -> dict[Place, Tensor]:
    with torch.no_grad(), record_sites(model, places) as values:
        model(input_ids=IDS)
    return {place: value for place, (value,) in values.items()}


@pytest.mark.parametrize("family", FAMILIES)
def test_what_the_halves_of_a_block_add_makes_up_the_residual_stream(make_family, family):
    model = make_family(family)
    sites = [site for site in SITES if not (site == "resid_mid" and family in SIDE_BY_SIDE)]
    at = record(model, [(block, site) for block in (0, 1) for site in sites])
    for block in (0, 1):
        mid = at[block, "resid_pre"] + at[block, "attn_out"]
        if family not in SIDE_BY_SIDE:
            torch.testing.assert_close(at[block, "resid_mid"], mid)
        torch.testing.assert_close(at[block, "resid_post"], mid + at[block, "mlp_out"], rtol=1e-4, atol=1e-4)
        for site in sites:
            assert find_site(model, (block, site)).width == at[block, site].shape[-1]
    assert at[0, "resid_post"].equal(at[1, "resid_pre"])


@pytest.mark.parametrize("family", FAMILIES)
def test_what_the_attention_adds_is_the_projection_of_its_heads(make_family, family):
    model = make_family(family)
    at = record(model, [(block, site) for block in (0, 1) for site in ("attn_z", "attn_out")])
    for number, block in enumerate(find_blocks(model)):
        modules = dict(block.named_modules())
        names = ("self_attn.o_proj", "linear_attn.out_proj", "self_attn.dense", "attention.dense", "attn.c_proj")
        (projection,) = (modules[name] for name in names if name in modules)
        with torch.no_grad():
            expected = projection(at[number, "attn_z"])
            if family in NORMED_BEHIND:
                expected = block.post_attention_layernorm(expected)
        torch.testing.assert_close(at[number, "attn_out"], expected)


def test_hybrid_model_has_both_kinds_of_attention(make_family):
    first, second = find_blocks(make_family("qwen3_5"))
    assert hasattr(first, "linear_attn") and hasattr(second, "self_attn")  # so the tests above have seen both


@pytest.mark.parametrize("family", ["gemma2", "gemma3"])
def test_mlp_output_of_gemma_is_what_is_added_to_the_residual_stream(make_family, family):
    """Its MLP's own output is normed before it is added."""
    model = make_family(family)
    at = record(model, [(1, site) for site in ("resid_mid", "mlp_out", "mlp.output", "resid_post")])
    torch.testing.assert_close(at[1, "mlp_out"], at[1, "resid_post"] - at[1, "resid_mid"], rtol=1e-4, atol=1e-4)
    with torch.no_grad():
        assert at[1, "mlp_out"].equal(find_blocks(model)[1].post_feedforward_layernorm(at[1, "mlp.output"]))


def test_block_with_attention_and_mlp_side_by_side_has_nothing_between_them(make_family):
    with pytest.raises(ValueError, match="Block 1 has no site 'resid_mid': in a PhiDecoderLayer attention and MLP"):
        find_site(make_family("phi"), (1, "resid_mid"))


def test_block_that_is_built_otherwise_is_refused_with_its_modules(make_family):
    model = make_family("llama")
    model.model.layers[1].third_norm = torch.nn.LayerNorm(32)
    message = (
        "'mlp_out' lies in block 1, a LlamaDecoderLayer, is not known; its modules are self_attn, mlp, .*third_norm"
    )
    with pytest.raises(ValueError, match=message):
        find_site(model, (1, "mlp_out"))
    find_site(model, (0, "mlp_out"))
    assert find_site(model, (1, "attn_z")).width == 48  # of these no norm says anything
    assert find_site(model, (1, "mlp.down_proj.output")).width == 32
    del model.model.layers[0].self_attn.o_proj
    with pytest.raises(ValueError, match="Where 'attn_z' lies in block 0.*Give a module's path with '.input' or"):
        find_site(model, (0, "attn_z"))


def test_block_that_scales_what_it_adds_is_refused(make_family):
    model = make_family("llama")  # as Granite does, with modules of the same names
    model.model.layers[0].residual_multiplier = 0.5
    for site in ("resid_mid", "attn_out", "mlp_out"):
        with pytest.raises(ValueError, match=f"Where '{site}' lies in block 0"):
            find_site(model, (0, site))
    find_site(model, (0, "resid_pre"))
