import pytest
import torch
from peft import LoraConfig, get_peft_model

from sae_posttrain.cpu_logits import contiguous_states
from sae_posttrain.measure.answers.generate import generate_answers

IDS = torch.arange(24).reshape(2, 12)


@pytest.fixture
def read_head():
    """Of a model, a list that gets for each pass whether the states at the output embedding lie together."""

    def read(model) -> list[bool]:
        seen, head = [], model.get_output_embeddings()
        forward = head.forward
        head.forward = lambda states: seen.append(states.stride(0) == states[0].numel()) or forward(states)
        return seen

    return read


@pytest.mark.parametrize("num_rows", [1, 2])
def test_a_frozen_output_embedding_gets_contiguous_states_and_the_logits_stay(make_model, read_head, num_rows):
    model = get_peft_model(make_model().bfloat16(), LoraConfig(target_modules=["q_proj"]))
    seen = read_head(model)
    with torch.inference_mode():
        before = model(IDS[:num_rows], logits_to_keep=1).logits
        with contiguous_states(model):
            inside = model(IDS[:num_rows], logits_to_keep=1).logits
        model(IDS[:num_rows], logits_to_keep=1)
    assert seen == [False, True, False]
    assert torch.equal(inside, before)


def test_trained_weights_and_other_dtypes_are_left_alone(make_model):
    for model in (make_model().bfloat16(), make_model().requires_grad_(False)):
        with contiguous_states(model):
            assert not model.get_output_embeddings()._forward_pre_hooks


def raise_inside(model):
    with contiguous_states(model):
        assert model.get_output_embeddings()._forward_pre_hooks
        raise RuntimeError("stop")


def test_the_hook_goes_when_generation_fails(make_model):
    model = make_model().bfloat16().requires_grad_(False)
    with pytest.raises(RuntimeError, match="stop"):
        raise_inside(model)
    assert not model.get_output_embeddings()._forward_pre_hooks


def test_answers_of_a_frozen_model_use_it(make_model, tokenizer, read_head):
    model = make_model().bfloat16().requires_grad_(False)
    seen = read_head(model)
    generate_answers(model, tokenizer, [[5, 6, 7], [6, 7, 8]], max_new_tokens=3, temperature=0)
    assert seen
    assert all(seen)
