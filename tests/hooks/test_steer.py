import pytest
import torch
from peft import LoraConfig, get_peft_model

from sae_posttrain import FeatureSet, steer
from sae_posttrain.hooks.record import record_blocks
from sae_posttrain.hooks.steer import Steerer

PROMPTS = [[7, 8, 9, 10, 11], [40, 41], [90, 91, 92]]


def left_padded(prompts, pad_id):
    longest = max(map(len, prompts))
    input_ids = torch.tensor([[pad_id] * (longest - len(ids)) + ids for ids in prompts])
    attention_mask = torch.tensor([[0] * (longest - len(ids)) + [1] * len(ids) for ids in prompts])
    return {"input_ids": input_ids, "attention_mask": attention_mask}


def generate(model, inputs, **kwargs):
    model.eval()
    options = {"do_sample": False, "max_new_tokens": 12, "eos_token_id": None, "pad_token_id": 0, **kwargs}
    return model.generate(**inputs, **options)[:, inputs["input_ids"].shape[1] :]


def teacher_forced(model, inputs, answers, positions=None, features=None, **options):
    """Greedy token that the model predicts for each token of the answers."""
    ids = torch.cat([inputs["input_ids"], answers], dim=1)
    mask = torch.cat([inputs["attention_mask"], torch.ones_like(answers)], dim=1)
    model.eval()
    position_ids = (mask.cumsum(dim=1) - 1).clamp(min=0)

    def forward():
        with torch.inference_mode():
            return model(input_ids=ids, attention_mask=mask, position_ids=position_ids, use_cache=False).logits

    if features is None:
        logits = forward()
    else:
        with steer(model, features, positions=positions, **options):
            logits = forward()
    return logits[:, inputs["input_ids"].shape[1] - 1 : -1].argmax(dim=-1)


def generated_mask(inputs, answers):
    """From the last position of the prompt to the last but one of the answer."""
    num_prompt, num_answer = inputs["input_ids"].shape[1], answers.shape[1]
    mask = torch.zeros(len(answers), num_prompt + num_answer, dtype=torch.bool)
    mask[:, num_prompt - 1 : -1] = True
    return mask


@pytest.fixture
def inputs(tokenizer):
    return left_padded(PROMPTS, tokenizer.pad_token_id)


@pytest.mark.parametrize("use_cache", [True, False], ids=["cache", "no cache"])
@pytest.mark.parametrize("mode", ["add", "clamp"])
def test_a_steered_decode_replayed_with_the_same_mask_gives_the_same_tokens(
    make_model, make_features, inputs, use_cache, mode
):
    model, features = make_model(), make_features()
    with steer(model, features, strength=1.5, mode=mode):
        steered = generate(model, inputs, use_cache=use_cache)
    assert (steered != generate(model, inputs)).any(dim=1).all()
    mask = generated_mask(inputs, steered)
    replayed = teacher_forced(model, inputs, steered, mask, features, strength=1.5, mode=mode)
    assert torch.equal(replayed, steered)
    assert not torch.equal(teacher_forced(model, inputs, steered), steered)


def test_only_the_rows_asked_for_change(make_model, make_features, inputs):
    model, features = make_model(), make_features()
    plain = generate(model, inputs)
    with steer(model, features, strength=2.0, rows=[False, True, False]):
        mixed = generate(model, inputs)
    assert torch.equal(mixed[[0, 2]], plain[[0, 2]])
    assert not torch.equal(mixed[1], plain[1])
    with steer(model, features, strength=2.0):
        everywhere = generate(model, inputs)
    assert torch.equal(mixed[1], everywhere[1])


def test_a_row_is_steered_alike_alone_and_in_a_padded_batch(make_model, make_features, inputs, tokenizer):
    model, features = make_model(), make_features()
    with steer(model, features, strength=1.0):
        together = generate(model, inputs)
    for row, prompt in enumerate(PROMPTS):
        with steer(model, features, strength=1.0):
            alone = generate(model, left_padded([prompt], tokenizer.pad_token_id))
        assert torch.equal(together[row], alone[0])


def test_the_first_generated_token_is_steered_and_the_prompt_is_not(make_model, make_features, inputs):
    model, features = make_model(), make_features(blocks=(1,))
    with record_blocks(model, [1]) as plain, torch.inference_mode():
        model.eval()(**inputs)
    with steer(model, features, strength=2.0), record_blocks(model, [1]) as steered, torch.inference_mode():
        model(**inputs)
    moved = (plain[1][0] - steered[1][0]).norm(dim=-1) > 1e-6
    assert moved[:, -1].all() and not moved[:, :-1].any()
    with steer(model, features, strength=2.0, positions="all"), record_blocks(model, [1]) as everywhere:
        with torch.inference_mode():
            model(**inputs)
    assert ((plain[1][0] - everywhere[1][0]).norm(dim=-1) > 1e-6).all()


def test_a_push_has_the_length_asked_for(make_model, make_features, inputs):
    model, features = make_model(), make_features(blocks=(1,), per_block=1)  # residual norm 5
    for unit, strength, length in (("norm", 1.5, 7.5), ("raw", 3.0, 3.0)):
        with record_blocks(model, [1]) as plain, torch.inference_mode():
            model.eval()(**inputs)
        with steer(model, features, strength=strength, unit=unit, positions="all"):
            with record_blocks(model, [1]) as steered, torch.inference_mode():
                model(**inputs)
        push = steered[1][0] - plain[1][0]
        torch.testing.assert_close(push.norm(dim=-1), torch.full(push.shape[:2], length), rtol=1e-4, atol=1e-4)
        cosine = torch.nn.functional.cosine_similarity(push, features.directions[0][None, None], dim=-1)
        torch.testing.assert_close(cosine, torch.ones_like(cosine))


def test_opposite_pushes_at_one_site_sum_to_nothing(make_model, inputs):
    model = make_model()
    direction = torch.randn(1, 32, generator=torch.Generator().manual_seed(3))
    both = FeatureSet.from_directions(
        torch.cat([direction, -2 * direction]), blocks=[1, 1], names=["up", "down"], residual_norms=[5.0, 5.0]
    )
    plain = generate(model, inputs)
    with steer(model, both, strength=3.0):
        assert torch.equal(generate(model, inputs), plain)
    with steer(model, both, strength={"up": 3.0, "down": 0.0}):
        assert not torch.equal(generate(model, inputs), plain)


def test_clamping_moves_the_pre_activation_to_the_value(make_model, inputs):
    model = make_model()
    direction = torch.randn(1, 32, generator=torch.Generator().manual_seed(4))
    features = FeatureSet.from_directions(direction, blocks=[0], names=["one"])
    with steer(model, features, strength=-0.7, mode="clamp", positions="all"):
        with record_blocks(model, [0]) as outputs, torch.inference_mode():
            model.eval()(**inputs)
    pre = features.pre_activations(outputs[0][0])
    torch.testing.assert_close(pre, torch.full_like(pre, -0.7), rtol=1e-4, atol=1e-4)


def test_strength_per_row_and_per_feature(make_model, make_features, inputs):
    model, features = make_model(), make_features(blocks=(1,))
    plain = generate(model, inputs)
    with steer(model, features, strength=[0.0, 2.0, 0.0]):
        by_row = generate(model, inputs)
    assert torch.equal(by_row[[0, 2]], plain[[0, 2]]) and not torch.equal(by_row[1], plain[1])
    with steer(model, features[0], strength=2.0, rows=[False, True, False]):
        one = generate(model, inputs)
    grid = torch.tensor([[0.0, 0.0], [2.0, 0.0], [0.0, 0.0]])
    with steer(model, features, strength=grid):
        assert torch.equal(generate(model, inputs), one)


def test_a_lora_model_is_steered(make_model, make_features, inputs):
    model = get_peft_model(make_model(), LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM"))
    features = make_features()
    plain = generate(model, inputs)
    with steer(model, features, strength=2.0, rows=[True, False, False]):
        steered = generate(model, inputs)
    assert not torch.equal(steered[0], plain[0]) and torch.equal(steered[1:], plain[1:])


def test_hooks_are_gone_after_the_context_and_after_an_error(make_model, make_features, inputs):
    model, features = make_model(), make_features()
    plain = generate(model, inputs)
    with pytest.raises(RuntimeError, match="in the middle"), steer(model, features, strength=2.0):
        raise RuntimeError("in the middle")
    assert torch.equal(generate(model, inputs), plain)
    for module in model.modules():
        assert not module._forward_hooks and not module._forward_pre_hooks


def test_a_disarmed_steerer_changes_nothing(make_model, make_features, inputs):
    model, features = make_model(), make_features()
    plain = generate(model, inputs)
    steerer = Steerer(model, features)
    assert torch.equal(generate(model, inputs), plain)
    with steerer.armed(2.0, rows=[False, False, False]):  # a rank without steered rows
        assert torch.equal(generate(model, inputs), plain)
    with steerer.armed(2.0):
        steered = generate(model, inputs)
        with pytest.raises(ValueError, match="armed already"), steerer.armed(1.0):
            pass
    with steerer.armed(2.0):
        assert torch.equal(generate(model, inputs), steered)
    steerer.remove()


def test_a_second_generate_in_one_context_starts_at_its_own_prompt(make_model, make_features, inputs, tokenizer):
    model, features = make_model(), make_features()
    other = left_padded([[30, 31, 32, 33, 34, 35, 36]], tokenizer.pad_token_id)
    with steer(model, features, strength=1.5):
        expected = generate(model, other)
    with steer(model, features, strength=1.5):
        generate(model, inputs)
        assert torch.equal(generate(model, other), expected)


def test_nothing_steered_is_an_error(make_model, make_features, inputs):
    model, features = make_model(), make_features()
    with pytest.raises(ValueError, match="No forward pass of this model reached block 0: nothing was steered"):
        with steer(model, features, strength=1.0):
            make_model(1)(**inputs)
    mask = torch.zeros(3, 5, dtype=torch.bool)
    mask[0] = True
    with pytest.raises(ValueError, match="Row 1 should be steered, but no position of it was touched"):
        with steer(model, features, strength=1.0, positions=mask):
            model(**inputs)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rows": [True, False]}, "`rows` names 2 rows, the batch has 3"),
        ({"strength": [1.0, 1.0]}, "`strength` is given for 2 rows, the batch has 3"),
        ({"strength": torch.ones(3, 7)}, "one per row and feature"),
        ({"strength": float("nan")}, "`strength` must be finite"),
        ({"strength": {}}, "is an empty mapping: nothing would be steered. Name one or more of 0.3, 0.13"),
        ({"strength": {"0.3": [1.0, 2.0]}}, "The strength of '0.3' is not a number. Give one"),
        ({"strength": {"nobody": 1.0}}, "names 'nobody', which is not in the feature set. Known: 0.3, 0.13, 1.23"),
        ({"strength": {"0.31": 1.0}}, "Did you mean '0.3'"),
        ({"strength": "strong"}, "`strength` is 'strong', a str. Give a number"),
        ({"positions": "prompt"}, "`positions` must be one of 'generated', 'all', got 'prompt'"),
        ({"positions": [1, 2]}, "or a mask of rows and positions, got list"),
        ({"positions": torch.ones(3, 9)}, r"`positions` has shape \(3, 9\), the batch \(3, 5\)"),
        ({"mode": "replace"}, "`mode` must be one of 'add', 'clamp'"),
        ({"unit": "metres"}, "`unit` must be one of 'norm', 'raw'"),
    ],
)
def test_bad_arguments_are_refused(make_model, make_features, inputs, options, message):
    model = make_model()
    with pytest.raises(ValueError, match=message):
        with steer(model, make_features(), **{"strength": 1.0, **options}):
            model(**inputs)


def test_features_that_do_not_fit_are_refused(make_model, make_features):
    model, features = make_model(), make_features()
    narrow = FeatureSet.from_directions(torch.ones(1, 16), blocks=[0], names=["a"], residual_norms=[1.0])
    for bad, message in (
        (narrow, "The directions have width 16, block 0 writes 32"),
        (make_features(blocks=(5,)), "Unknown block 5"),
        (FeatureSet.from_directions(torch.ones(1, 32), blocks=[0], names=["a"]), "residual norm at the site of 'a'"),
    ):
        with pytest.raises(ValueError, match=message), steer(model, bad, strength=1.0):
            pass
    zero = make_features()
    zero.directions[1] = 0
    with pytest.raises(ValueError, match="is zero: nothing can be pushed"), steer(model, zero, strength=1.0):
        pass
    with pytest.raises(ValueError, match="A direction is zero"):
        FeatureSet.from_directions(torch.zeros(1, 32), blocks=[0], names=["a"])
    assert not any(module._forward_hooks for module in model.modules())
    with steer(model, features, strength=1.0, rows=[False, False, False]):
        pass


def test_a_prompt_read_in_chunks_and_a_static_cache_are_refused(make_model, make_features, inputs):
    model, features = make_model(), make_features()
    with pytest.raises(ValueError, match="read in chunks"), steer(model, features, strength=1.0):
        generate(model, inputs, prefill_chunk_size=2)
    with pytest.raises(ValueError, match="needs a dynamic cache"), steer(model, features, strength=1.0):
        generate(model, inputs, cache_implementation="static")


def test_repeated_prompts_and_beams_are_refused_where_rows_are_named(make_model, make_features, inputs):
    model, features = make_model(), make_features()
    with pytest.raises(ValueError, match="the batch has 6"):
        with steer(model, features, strength=1.0, rows=[True, False, False]):
            generate(model, inputs, do_sample=True, num_return_sequences=2)
