import pytest

from sae_posttrain.sites import SITES, TRANSFORMER_LENS_SITES, is_site, parse_hook, transformer_lens_hook


@pytest.mark.parametrize(
    ("hook", "place"),
    [
        ("blocks.5.hook_resid_post", (5, "resid_post")),
        ("blocks.5.hook_resid_mid", (5, "resid_mid")),
        ("blocks.5.hook_attn_out", (5, "attn_out")),
        ("blocks.5.hook_mlp_out", (5, "mlp_out")),
        ("blocks.5.attn.hook_z", (5, "attn_z")),
        ("blocks.127.hook_resid_post", (127, "resid_post")),
    ],
)
def test_transformer_lens_names_are_read(hook, place):
    assert parse_hook(hook) == place


@pytest.mark.parametrize(
    "layers",
    ["model.layers", "layers", "model.language_model.layers", "gpt_neox.layers", "transformer.h", "h"],
)
def test_module_paths_are_read_in_every_model_and_below_every_prefix(layers):
    assert parse_hook(f"{layers}.5") == (5, "resid_post")
    assert parse_hook(f"{layers}.5.output") == (5, "resid_post")
    assert parse_hook(f"{layers}.5.input") == (4, "resid_post")
    assert parse_hook(f"{layers}.5.mlp") == (5, "mlp.output")
    assert parse_hook(f"{layers}.5.mlp.output") == (5, "mlp.output")
    assert parse_hook(f"{layers}.5.mlp.down_proj.input") == (5, "mlp.down_proj.input")


def test_input_of_the_output_projection_is_the_heads_output():
    assert parse_hook("model.layers.5.self_attn.o_proj.input") == (5, "attn_z")
    assert parse_hook("model.layers.5.self_attn.o_proj.output") == (5, "self_attn.o_proj.output")


def test_block_input_is_the_output_of_the_block_before():
    assert parse_hook("blocks.5.hook_resid_pre") == parse_hook("blocks.4.hook_resid_post") == (4, "resid_post")
    assert parse_hook("blocks.0.hook_resid_pre") == parse_hook("model.layers.0.input") == (0, "resid_pre")


@pytest.mark.parametrize(
    "hook",
    [
        "",
        "hook_embed",
        "unembed",
        "lm_head",
        "model.embed_tokens",
        "ln_final.hook_normalized",
        "blocks.5",
        "blocks.5.attn.hook_q",
        "blocks.5.mlp.hook_post",
        "blocks.5.ln1.hook_normalized",
        "blocks.5.hook_resid_pre_768",
        "blocks.-1.hook_resid_post",
        "blocks.hook_resid_post",
        "blocks.12345.hook_resid_post",
        f"model.layers.{'9' * 5000}",
        "model.layers.5.",
        "model.layers.5..mlp",
        "model.layers.5/../6",
        "model.layers.5 ",
        "model.layers.5\n",
        "encoder.layer.5",
    ],
)
def test_what_is_no_site_of_a_decoder_block_is_none(hook):
    assert parse_hook(hook) is None


@pytest.mark.parametrize("site", SITES)
def test_known_sites_are_sites_and_have_a_transformer_lens_name_that_leads_back(site):
    assert is_site(site)
    assert parse_hook(transformer_lens_hook(0, site)) == (0, site)


def test_every_site_of_transformer_lens_is_known():
    assert set(TRANSFORMER_LENS_SITES.values()) == set(SITES)


@pytest.mark.parametrize("site", ["mlp.down_proj.input", "self_attn.output", "mlp.experts.3.output"])
def test_modules_are_sites_but_have_no_transformer_lens_name(site):
    assert is_site(site)
    assert transformer_lens_hook(3, site) is None


@pytest.mark.parametrize(
    "site", ["", "output", "mlp", "mlp.down_proj", ".output", "mlp..input", "3.output", "mlp.input "]
)
def test_other_names_are_no_sites(site):
    assert not is_site(site)


def test_what_is_parsed_is_always_a_site():
    for hook in (
        "blocks.0.hook_resid_pre",
        "blocks.2.attn.hook_z",
        "h.3",
        "h.3.attn",
        "model.layers.2.mlp.act_fn.input",
    ):
        assert is_site(parse_hook(hook)[1])
