import pytest
import torch
from peft import LoraConfig, get_peft_model

from sae_posttrain.hooks.blocks import find_blocks, get_width
from sae_posttrain.hooks.edit import edit_sites
from sae_posttrain.hooks.record import SiteRecorder, record_blocks, training_capture

IDS = torch.arange(12).reshape(2, 6)
OUTPUT = (0, "resid_post")


def test_recorded_output_is_the_hidden_state_after_the_block(make_model):
    model = make_model(num_blocks=3)
    with record_blocks(model, [0, 1]) as outputs:
        hidden = model(IDS, output_hidden_states=True).hidden_states
    assert torch.equal(outputs[0][0], hidden[1])  # hidden_states[0] is the embedding
    assert torch.equal(outputs[1][0], hidden[2])


@pytest.mark.parametrize("wrap", ["peft", "compile"])
def test_blocks_are_found_inside_wrappers(make_model, wrap):
    model = make_model()
    blocks = find_blocks(model)
    wrapped = get_peft_model(model, LoraConfig(target_modules=["q_proj"])) if wrap == "peft" else torch.compile(model)
    assert find_blocks(wrapped) is blocks
    assert get_width(wrapped) == 32


def test_unknown_block_is_an_error_that_names_the_known_ones(make_model):
    with pytest.raises(ValueError, match="Unknown block 2: the model has blocks 0 to 1"):
        SiteRecorder(make_model(), [(2, "resid_post")])


def test_model_without_decoder_blocks_is_an_error():
    with pytest.raises(ValueError, match="Linear has no decoder blocks"):
        find_blocks(torch.nn.Linear(2, 2))


def test_hook_is_removed_when_the_forward_raises(make_model):
    model = make_model()
    with pytest.raises(RuntimeError, match="inside"), record_blocks(model, [0]):
        raise RuntimeError("inside")
    assert not find_blocks(model)[0]._forward_hooks


def test_recording_nothing_is_an_error(make_model):
    with (
        pytest.raises(ValueError, match="No forward pass of this model reached block 1"),
        record_blocks(make_model(), [1]),
    ):
        pass


def test_recorder_stores_only_while_armed(make_model):
    model = make_model()
    recorder = SiteRecorder(model, [OUTPUT, OUTPUT])
    model(IDS)
    with recorder.armed() as captures:
        model(IDS)
        model(IDS)
    model(IDS)
    assert len(captures[OUTPUT]) == 2
    recorder.remove()
    assert not find_blocks(model)[0]._forward_hooks


def test_loss_is_put_on_the_first_capture_that_requires_grad(make_model):
    model = make_model()
    recorder = SiteRecorder(model, [OUTPUT])
    with recorder.armed() as captures:
        with torch.no_grad():  # as a reference pass of a preference loss
            model(IDS)
        model(IDS)
        with torch.no_grad():  # as the metrics pass of label smoothing
            model(IDS)
    assert training_capture(captures, OUTPUT) is captures[OUTPUT][1]
    with torch.no_grad():
        assert training_capture(captures, OUTPUT) is captures[OUTPUT][0]


def test_block_without_trainable_parameters_is_an_error(make_model):
    model = make_model().requires_grad_(False)
    recorder = SiteRecorder(model, [OUTPUT])
    with recorder.armed() as captures:
        model(IDS)
    with pytest.raises(ValueError, match="does not depend on a trainable parameter"):
        training_capture(captures, OUTPUT)


def test_edit_changes_what_later_blocks_read_and_ends_with_the_context(make_model):
    model = make_model().eval()
    plain = model(IDS).logits
    with edit_sites(model, {OUTPUT: torch.ones_like}):
        edited = model(IDS).logits
    assert not torch.allclose(plain, edited)
    assert torch.equal(plain, model(IDS).logits)


def test_edit_that_touched_nothing_is_an_error(make_model):
    with pytest.raises(ValueError, match="nothing was edited"), edit_sites(make_model(), {OUTPUT: torch.ones_like}):
        pass
