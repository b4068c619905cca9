import logging
import math

import pytest
import torch
from peft import LoraConfig, get_peft_model
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    PhiConfig,
    PhiForCausalLM,
    PreTrainedTokenizerFast,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from sae_posttrain.baselines.lm_head_scaling import scale_lm_head, scale_probabilities, smoothie_factors
from sae_posttrain.measure.answers.generate import generate_answers
from sae_posttrain.measure.faults.script_tokens import script_tokens

IDS = [7, 50, 51]
PROMPT = torch.tensor([[10, 20, 30]])


@pytest.fixture
def tied(tokenizer):
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=1,
        num_key_value_heads=1,
        head_dim=16,
        initializer_range=0.2,
        tie_word_embeddings=True,
        eos_token_id=tokenizer.eos_token_id,
    )
    return Qwen3ForCausalLM(config)


@torch.no_grad()
def logits(model) -> torch.Tensor:
    return model(PROMPT).logits


@pytest.mark.parametrize("factor", [0.25, [0.5, 0.25, 1.0]])
def test_logits_of_the_tokens_are_multiplied_and_no_others(make_model, factor):
    model = make_model()
    before = logits(model)
    scale_lm_head(model, IDS, factor)
    expected = before.clone()
    expected[..., IDS] *= torch.tensor(factor)
    assert torch.allclose(logits(model), expected, atol=1e-5)
    assert bool((expected[..., IDS] > before[..., IDS]).any())  # what is below 0 rises: the caveat of the docstring


def test_tied_head_is_untied_and_the_change_survives_saving(tied, tmp_path):
    before, embedded = logits(tied), tied.get_input_embeddings().weight.detach().clone()
    assert tied.lm_head.weight is tied.get_input_embeddings().weight
    scale_lm_head(tied, IDS, 0.5)
    tied.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    expected = before.clone()
    expected[..., IDS] *= 0.5
    for model in (tied, loaded):
        assert torch.equal(model.get_input_embeddings().weight, embedded)
        assert torch.allclose(logits(model), expected, atol=1e-5)
        assert not model.config.tie_word_embeddings
    scale_lm_head(loaded, IDS, 0.5)  # again, on a head of its own
    expected[..., IDS] *= 0.5
    assert torch.allclose(logits(loaded), expected, atol=1e-5)


def test_untied_model_stays_untied_when_weights_are_tied_anew(tied):
    scale_lm_head(tied, IDS, 0.5)
    tied.tie_weights()
    assert tied.lm_head.weight is not tied.get_input_embeddings().weight


def test_half_precision_rows_are_rounded_once(make_model):
    model = make_model().bfloat16()
    row = model.lm_head.weight[7].float()
    scale_lm_head(model, [7], 0.3)
    assert torch.equal(model.lm_head.weight[7], (row * 0.3).bfloat16())


def test_head_with_a_bias_carries_the_shift_in_every_forward_and_in_its_file(tokenizer, tmp_path):
    torch.manual_seed(0)
    config = PhiConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=1,
        eos_token_id=3,
        bos_token_id=None,
    )
    model = PhiForCausalLM(config)
    before = logits(model)
    scale_probabilities(model, IDS, 0.1)
    scale_probabilities(model, IDS[:1], 0.5)
    model.save_pretrained(tmp_path)
    shift = torch.zeros(len(tokenizer))
    shift[IDS] += math.log(0.1)
    shift[IDS[0]] += math.log(0.5)
    for each in (model, AutoModelForCausalLM.from_pretrained(tmp_path)):
        assert torch.allclose(logits(each) - before, shift, atol=1e-5)
    assert model.generation_config.sequence_bias is None


def test_head_without_a_bias_has_the_shift_applied_by_generate_also_after_loading(
    make_model, tokenizer, tmp_path, caplog
):
    model = make_model()
    answer, _ = generate_answers(model, tokenizer, PROMPT.tolist(), max_new_tokens=1, temperature=0.0)
    likeliest = answer[0][0]
    before = logits(model)
    with caplog.at_level(logging.WARNING):
        scale_probabilities(model, [likeliest, 7], 1e-3)
    assert "2 tokens are lowered by `generate` alone" in caplog.text
    assert torch.equal(logits(model), before)  # what the warning says
    model.save_pretrained(tmp_path)
    expected = before[0, -1].clone()
    expected[[likeliest, 7]] += math.log(1e-3)
    for each in (model, AutoModelForCausalLM.from_pretrained(tmp_path)):
        answer, _ = generate_answers(each, tokenizer, PROMPT.tolist(), max_new_tokens=1, temperature=0.0)
        assert answer == [[int(expected.argmax())]]
        assert answer[0][0] != likeliest


def test_earlier_biases_of_generation_are_kept_and_those_of_a_token_multiply(make_model):
    model = make_model()
    model.generation_config.sequence_bias = {(5, 6): 1.0, (7,): -1.0}
    scale_probabilities(model, [7, 8], 0.5)
    kept = {tuple(tokens): bias for tokens, bias in model.generation_config.sequence_bias}
    assert kept == pytest.approx({(5, 6): 1.0, (7,): math.log(0.5) - 1, (8,): math.log(0.5)})


# Smoothie-Qwen's factors ---------------------------------------------------------------------------------------------


def make_tokenizer(pieces: list[bytes]) -> PreTrainedTokenizerFast:
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    alphabet = bytes_to_unicode()
    vocab = {"".join(alphabet[byte] for byte in piece): i for i, piece in enumerate(pieces)}
    backend = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=backend)


def test_factors_are_those_of_the_published_formula():
    # 中 is E4 B8 AD; 0: whole, 1: its two first bytes, 2 and 3: bytes that can follow, 4: a byte that cannot, 5: text
    tokenizer = make_tokenizer(["中".encode(), b"\xe4\xb8", b"\xad", b"\xae", b"\xff", b"a"])
    ids, factors = smoothie_factors(tokenizer, "zh", min_scale=0.2, smoothness=10.0)
    # of the four broken tokens, two complete the second token to a character: p = 2/4
    smoothed = 1 - 0.8 * math.log(1 + 9 * 0.5) / math.log(10)
    assert dict(zip(ids, factors)) == pytest.approx({0: 0.2, 1: smoothed})


def test_factors_go_into_the_head_as_they_come(make_model):
    tokenizer = make_tokenizer(["中".encode(), b"\xe4\xb8", b"\xad", b"a"])
    model = make_model()
    before = model.lm_head.weight.detach().clone()
    scale_lm_head(model, *smoothie_factors(tokenizer, "zh"))
    changed = (model.lm_head.weight != before).any(dim=1).nonzero().flatten().tolist()
    assert changed == [0, 1]


def test_sampled_factors_repeat_with_their_seed():
    tokenizer = make_tokenizer([b"\xe4\xb8", *(bytes([byte]) for byte in range(0x80, 0xFF))])
    drawn = [smoothie_factors(tokenizer, "zh", sample_size=30, seed=seed) for seed in (1, 1, 2)]
    assert drawn[0] == drawn[1] != drawn[2]


def test_single_bytes_never_make_a_character_in_two_tokens_and_the_message_says_what_does(tokenizer):
    assert script_tokens(tokenizer, "zh").partial  # so there is something to scale
    with pytest.raises(ValueError, match="is one or two tokens of this tokenizer.*script_tokens"):
        smoothie_factors(tokenizer, "zh", sample_size=5)


# Refused -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ids", "factor", "message"),
    [
        ([], 0.5, "`token_ids` is empty"),
        ([3, 3], 0.5, "names a token twice"),
        ([3, 4000], 0.5, "tokens 0 to .*names 4000"),
        ([-1], 0.5, "names -1"),
        ([3], 1.0, "below 1 for some token, got 1"),
        ([3, 4], [0.5, 1.5], "got 0.5 to 1.5"),
        ([3, 4], [0.5], "one for each of the 2 tokens"),
        ([3], math.nan, "from 0 to 1"),
    ],
)
def test_what_would_change_nothing_or_the_wrong_rows_is_refused(make_model, ids, factor, message):
    with pytest.raises(ValueError, match=message):
        scale_lm_head(make_model(), ids, factor)


@pytest.mark.parametrize("factor", [0, 1, 2.0, True, "0.5", math.nan])
def test_probabilities_take_a_factor_between_0_and_1(make_model, factor):
    with pytest.raises(ValueError, match="between 0 and 1, both excluded"):
        scale_probabilities(make_model(), [3], factor)


@pytest.mark.parametrize("change", [scale_lm_head, scale_probabilities])
def test_adapters_are_refused_since_they_do_not_save_the_head(make_model, change):
    wrapped = get_peft_model(make_model(), LoraConfig(r=2, target_modules=["q_proj"]))
    with pytest.raises(ValueError, match="would not be saved with it.*merge_and_unload"):
        change(wrapped, [3], 0.5)
    adapted = get_peft_model(make_model(), LoraConfig(r=2, target_modules=["lm_head"])).get_base_model()
    with pytest.raises(ValueError, match="has no LM head with a row"):
        change(adapted, [3], 0.5)


def test_settings_of_the_published_factors_are_checked(tokenizer):
    with pytest.raises(ValueError, match="`smoothness` above 1"):
        smoothie_factors(tokenizer, "zh", smoothness=1.0)
