"""Reading and changing what passes at a site, whatever the module and however it is called."""

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch.nn.functional import linear

from sae_posttrain import FeatureSet, steer
from sae_posttrain.hooks.blocks import find_blocks
from sae_posttrain.hooks.edit import edit_sites
from sae_posttrain.hooks.record import SiteRecorder, record_sites, training_capture
from sae_posttrain.hooks.sites import describe_place, find_site, place_name
from sae_posttrain.sites import SITES

IDS = torch.arange(3, 17).reshape(2, 7)
MID, Z, MLP = (0, "resid_mid"), (0, "attn_z"), (0, "mlp_out")


def logits(model) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=IDS).logits


def record(model, *places) -> list[torch.Tensor]:
    with torch.no_grad(), record_sites(model, places) as values:
        model(input_ids=IDS)
    return [values[place][0] for place in places]


# Reading -------------------------------------------------------------------------------------------------------------


def test_inputs_and_outputs_of_any_module_can_be_named(make_family):
    model = make_family("llama")
    names = ["self_attn.input", "input_layernorm.output", "mlp.down_proj.input", "mlp.gate_proj.output", "mlp.input"]
    attn_in, normed, down_in, gate_out, mlp_in = record(model, *((1, name) for name in names))
    assert attn_in.equal(normed)  # Llama's attention takes it as a keyword
    mlp = model.model.layers[1].mlp
    with torch.no_grad():
        torch.testing.assert_close(mlp.gate_proj(mlp_in), gate_out)
        torch.testing.assert_close(mlp.act_fn(gate_out) * mlp.up_proj(mlp_in), down_in)
    assert [find_site(model, (1, name)).width for name in names] == [32, 32, 40, 40, 32]
    assert find_site(model, (1, "mlp.act_fn.output")).width is None


def test_width_is_that_of_a_conv1d_too(make_family):
    model = make_family("gpt2")
    assert find_site(model, (0, "mlp.c_proj.input")).width == 128
    assert find_site(model, (0, "attn.c_attn.output")).width == 96


@pytest.mark.parametrize(
    ("place", "message"),
    [
        ((2, "attn_z"), "Unknown block 2: the model has blocks 0 to 1"),
        ((0, "attn_q"), "Unknown site 'attn_q'. Known: resid_pre, .*, or a module of the block with '.input'"),
        ((0, "mlp.up.output"), "The LlamaMLP of block 0 has no module 'up'; it has gate_proj, up_proj, down_proj"),
        ((1, "attn.output"), "Block 1 has no module 'attn'; it has self_attn, mlp"),
        ((1, "self_attn.layer_idx.input"), "has no module 'layer_idx'"),
    ],
)
def test_site_that_is_not_there_is_an_error_that_names_what_is(make_family, place, message):
    with pytest.raises(ValueError, match=message), record_sites(make_family("llama"), [place]):
        pass


def test_module_that_loses_rows_and_positions_is_no_site(make_family):
    model = make_family("qwen3_moe")  # its router sees one long list of tokens
    with pytest.raises(ValueError, match=r"for each row and position, \(B, T, D\); at this Qwen3MoeTopKRouter"):
        record(model, (0, "mlp.gate.input"))
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_module_that_the_model_does_not_call_is_an_error(make_family):
    model = make_family("llama")
    model.model.layers[0].mlp.spare = torch.nn.Linear(32, 32)
    with pytest.raises(ValueError, match="reached mlp.spare.input of block 0: nothing was recorded"):
        record(model, (0, "mlp.spare.input"))


def test_place_is_written_short_in_names_and_long_in_messages():
    assert (place_name((4, "resid_post")), place_name((4, "mlp_out"))) == ("4", "4.mlp_out")
    assert (describe_place((4, "resid_post")), describe_place((4, "mlp_out"))) == ("block 4", "mlp_out of block 4")


def test_under_lora_the_input_of_the_projection_is_the_same_tensor(make_family):
    model = make_family("llama")
    (plain,) = record(model, Z)
    adapted = get_peft_model(model, LoraConfig(target_modules=["o_proj"], init_lora_weights=False)).eval()
    inside = []
    base = find_blocks(adapted)[0].self_attn.o_proj.base_layer
    with base.register_forward_pre_hook(lambda _module, args: inside.append(args[0])):
        (recorded,) = record(adapted, Z)
    assert recorded.equal(plain)
    assert recorded.equal(inside[0])
    assert find_site(adapted, Z).width == 48


# Changing ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["llama", "gemma3", "olmo2", "qwen3_5", "gpt2"])
@pytest.mark.parametrize("site", SITES)
def test_push_moves_the_site_and_what_depends_on_it(make_family, family, site):
    model, place = make_family(family), (0, site)
    plain = record(model, place, (0, "resid_post"))
    direction = torch.randn(find_site(model, place).width, generator=torch.Generator().manual_seed(1))
    with edit_sites(model, {place: lambda value: direction.expand_as(value)}):
        pushed = record(model, place, (0, "resid_post"))
    torch.testing.assert_close(pushed[0] - plain[0], direction.expand_as(plain[0]), rtol=1e-4, atol=1e-4)
    assert (pushed[1] - plain[1]).norm(dim=-1).min() > 0.1
    assert record(model, place)[0].equal(plain[0])
    assert not any(module._forward_pre_hooks or module._forward_hooks for module in model.modules())


@pytest.mark.parametrize("family", ["llama", "gemma3", "olmo2", "gpt2"])
def test_push_between_attention_and_mlp_stays_in_the_stream(make_family, family):
    """A norm reads that site beside the stream: moving only what the norm reads would move the MLP alone."""
    model, direction = make_family(family), torch.linspace(-1, 1, 32)
    with edit_sites(model, {MID: lambda value: direction.expand_as(value)}):
        pre, mid, mlp_out, post = record(model, (0, "resid_pre"), MID, MLP, (0, "resid_post"))
    (plain,) = record(model, MID)
    torch.testing.assert_close(mid, plain + direction, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(post, plain + direction + mlp_out, rtol=1e-4, atol=1e-4)
    assert pre.equal(record(model, (0, "resid_pre"))[0])


def test_push_is_computed_from_what_passes_at_the_site(make_family):
    model = make_family("llama")
    for place in (MID, Z, MLP, (1, "resid_pre"), (1, "self_attn.input")):
        with edit_sites(model, {place: torch.neg}):
            (emptied,) = record(model, place)
        assert emptied.abs().max() < 1e-5


def test_steering_the_heads_adds_the_projected_push_to_the_stream(make_family):
    model = make_family("llama")
    direction = torch.randn(1, 48, generator=torch.Generator().manual_seed(2))
    at_heads = FeatureSet.from_directions(direction, blocks=[0], sites=["attn_z"], names=["z"], residual_norms=[2.0])
    projected = linear(direction, model.model.layers[0].self_attn.o_proj.weight).detach()
    in_stream = FeatureSet.from_directions(projected, blocks=[0], sites=["resid_mid"], names=["mid"])
    length = 3 * 2 * float(projected.norm() / direction.norm())
    plain = logits(model)
    with steer(model, at_heads, strength=3.0, positions="all"):
        steered = logits(model)
    with steer(model, in_stream, strength=length, unit="raw", positions="all"):
        expected = logits(model)
    torch.testing.assert_close(steered, expected, rtol=1e-4, atol=1e-4)
    assert (steered - plain).abs().max() > 0.1


def test_under_lora_steered_heads_pass_through_the_adapter(make_family):
    model = get_peft_model(make_family("llama"), LoraConfig(target_modules=["o_proj"], init_lora_weights=False)).eval()
    direction = torch.randn(1, 48, generator=torch.Generator().manual_seed(2))
    features = FeatureSet.from_directions(direction, blocks=[0], sites=["attn_z"], names=["z"])
    plain = record(model, Z, (0, "attn_out"))
    with steer(model, features, strength=2.0, unit="raw", positions="all"):
        steered = record(model, Z, (0, "attn_out"))
    push = steered[0] - plain[0]
    torch.testing.assert_close(push, 2 * torch.nn.functional.normalize(direction)[None].expand_as(push))
    with torch.no_grad():
        torch.testing.assert_close(
            steered[1], find_blocks(model)[0].self_attn.o_proj(steered[0]), rtol=1e-4, atol=1e-4
        )


def test_sites_of_one_model_are_steered_together_and_each_alone_while_generating(make_family):
    model = make_family("llama")
    directions = torch.randn(4, 32, generator=torch.Generator().manual_seed(3))
    sites = ["resid_pre", "attn_out", "resid_mid", "mlp_out"]
    features = FeatureSet.from_directions(directions, blocks=[0, 0, 1, 1], sites=sites, names=sites)
    options = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}

    def steered(strength):
        with steer(model, features, strength=strength, unit="raw", mode="add"):
            return model.generate(input_ids=IDS, attention_mask=torch.ones_like(IDS), **options)

    plain = steered(0.0)
    for site in sites:
        assert not steered({**dict.fromkeys(sites, 0.0), site: 20.0}).equal(plain)
    answers = steered(20.0)
    generated = torch.ones_like(answers, dtype=torch.bool)
    generated[:, : IDS.shape[1] - 1] = False
    with torch.no_grad(), steer(model, features, strength=20.0, unit="raw", positions=generated):
        replayed = model(input_ids=answers).logits.argmax(dim=-1)
    assert replayed[:, IDS.shape[1] - 1 : -1].equal(answers[:, IDS.shape[1] :])


@pytest.mark.parametrize("site", ["resid_mid", "attn_z", "mlp_out"])
def test_clamping_is_exact_at_any_site(make_family, site):
    model = make_family("gemma3")
    direction = torch.randn(1, find_site(model, (1, site)).width, generator=torch.Generator().manual_seed(4))
    features = FeatureSet.from_directions(direction, blocks=[1], sites=[site], names=["one"])
    with steer(model, features, strength=-0.7, mode="clamp", positions="all"):
        (value,) = record(model, (1, site))
    pre = features.pre_activations(value)
    torch.testing.assert_close(pre, torch.full_like(pre, -0.7), rtol=1e-3, atol=1e-3)


def test_directions_of_another_width_than_their_site_are_refused(make_family):
    model = make_family("llama")
    narrow = FeatureSet.from_directions(torch.ones(1, 32), blocks=[0], sites=["attn_z"], names=["a"])
    message = "The directions have width 32, attn_z of block 0 has 48; were they found on this model"
    with pytest.raises(ValueError, match=message), steer(model, narrow, strength=1.0, unit="raw"):
        pass
    assert not any(module._forward_pre_hooks for module in model.modules())


# Training ------------------------------------------------------------------------------------------------------------


def gradient(model, place, target: str) -> torch.Tensor:
    recorder = SiteRecorder(model, [place])
    with recorder.armed() as captures:
        loss = model(input_ids=IDS, labels=IDS).loss
    (loss + training_capture(captures, place).square().mean()).backward()
    recorder.remove()
    return model.get_parameter(target).grad


@pytest.mark.parametrize("site", ["resid_pre", "resid_mid", "attn_z", "mlp_out", "mlp.down_proj.input"])
def test_gradient_checkpointing_does_not_change_the_gradient_at_a_site(make_family, site):
    parameter = "model.layers.0.self_attn.v_proj.weight"
    plain = gradient(make_family("llama").train(), (1, site), parameter)
    checkpointed = make_family("llama").train()
    checkpointed.gradient_checkpointing_enable({"use_reentrant": False})
    torch.testing.assert_close(gradient(checkpointed, (1, site), parameter), plain)


@pytest.mark.filterwarnings("ignore:.*requires_grad=True")
def test_site_inside_a_block_needs_checkpointing_that_is_not_reentrant(make_family):
    model = make_family("llama").train()
    model.gradient_checkpointing_enable({"use_reentrant": True})
    with pytest.raises(ValueError, match="attn_z of block 0 does not depend on .*{'use_reentrant': False}"):
        gradient(model, Z, "lm_head.weight")


def test_steering_inside_a_block_that_is_run_again_in_the_backward_pass_is_refused(make_family):
    model = make_family("llama").train()
    model.gradient_checkpointing_enable({"use_reentrant": False})
    inside, outside = (
        FeatureSet.from_directions(torch.ones(1, 32), blocks=[0], sites=[site], names=["a"])
        for site in ("mlp_out", "resid_pre")
    )
    with pytest.raises(
        ValueError, match="runs block 0 again in the backward pass, where it is not steered at mlp_out"
    ):
        with steer(model, inside, strength=1.0, unit="raw"):
            model(input_ids=IDS)
    with steer(model, outside, strength=1.0, unit="raw"):
        model(input_ids=IDS)
    with torch.no_grad(), steer(model, inside, strength=1.0, unit="raw"):
        model(input_ids=IDS)


@pytest.mark.slow
def test_hooks_at_every_site_work_in_a_compiled_model(make_family):
    model = make_family("llama")
    places = [(0, site) for site in ("resid_mid", "attn_z", "mlp.down_proj.input")]
    expected = record(model, *places)
    recorder = SiteRecorder(model, places)
    compiled = torch.compile(model, backend="eager")
    for _ in range(2):
        with torch.no_grad(), recorder.armed() as captures:
            compiled(input_ids=IDS)
        for place, value in zip(places, expected):
            torch.testing.assert_close(captures[place][-1], value)
    assert all(len(values) == 1 for values in captures.values())
