import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from sae_posttrain.measure.faults.script_tokens import script_tokens

BYTES = pre_tokenizers.ByteLevel.alphabet()


def byte_level(*pieces: bytes) -> PreTrainedTokenizerFast:
    """A byte-level vocabulary of the 256 bytes and these pieces, whose ids follow."""
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    alphabet = bytes_to_unicode()
    vocab = {char: byte for byte, char in alphabet.items()}
    vocab |= {"".join(alphabet[byte] for byte in piece): 256 + i for i, piece in enumerate(pieces)}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


def test_tokens_with_a_letter_of_the_script_are_whole():
    tokenizer = byte_level("设置".encode(), " 文".encode(), "가".encode(), b"Save", "かな".encode(), "、。".encode())
    assert script_tokens(tokenizer, "zh").whole == (256, 257)
    assert script_tokens(tokenizer, "ko").whole == (258,)
    assert script_tokens(tokenizer, "ja").whole == (260,)


def test_bytes_that_begin_a_character_of_the_script_are_partial():
    tokenizer = byte_level(b"\xe4\xb8", b" \xe6", b"\xe3\x81", b"\xb8\x80", b"\xf0\xa0", b"\xf0\x9f")
    # Han begins with E4 to E9 (E3 begins kana too, F0 emoji); B8 80 only continues a character
    lead = tuple(range(0xE4, 0xEA))
    assert script_tokens(tokenizer, "zh").partial == (*lead, 256, 257, 260)
    # hiragana and katakana: E3 81 to E3 83, of which E3 81 is here
    assert script_tokens(tokenizer, "ja").partial == (258,)


def test_a_whole_character_with_the_beginning_of_another_counts_once():
    tokens = script_tokens(byte_level("文".encode() + b"\xe4"), "zh")
    assert tokens.whole == (256,) and 256 not in tokens.partial
    assert tokens.ids == (*range(0xE4, 0xEA), 256)


def test_a_vocabulary_with_byte_fallback_is_read_too():
    vocab = {"<unk>": 0, "<0xE4>": 1, "<0x41>": 2, "▁文": 3, "▁a": 4}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[], unk_token="<unk>", byte_fallback=True))
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    tokens = script_tokens(PreTrainedTokenizerFast(tokenizer_object=tokenizer), "zh")
    assert tokens.whole == (3,) and tokens.partial == (1,)


def test_a_language_without_a_script_of_its_own_is_refused():
    with pytest.raises(ValueError, match="Latin, which answers in every language use"):
        script_tokens(byte_level(), "es")
    with pytest.raises(ValueError, match="Unknown language 'xx'"):
        script_tokens(byte_level(), "xx")


def test_a_vocabulary_without_the_script_is_refused():
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel({"a": 0, "b": 1}, unk_token="a")))
    with pytest.raises(ValueError, match="no token of Han"):
        script_tokens(tokenizer, "zh")
