import math
import sys
from pathlib import Path

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from sae_posttrain.baselines import scale_lm_head
from sae_posttrain.measure.faults.script_tokens import script_tokens

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks" / "evidence"))

from smoothie import smoothie_factors


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


def test_settings_of_the_published_factors_are_checked(tokenizer):
    with pytest.raises(ValueError, match="`smoothness` above 1"):
        smoothie_factors(tokenizer, "zh", smoothness=1.0)
