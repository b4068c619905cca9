import pytest

from sae_posttrain.model_loading import load_tokenizer


def test_model_without_tokenizer_is_refused(make_model):
    with pytest.raises(ValueError, match="Pass `tokenizer=`"):
        load_tokenizer(None, make_model())


def test_tokenizer_is_found_by_a_loaded_model_as_by_its_folder(make_model, tokenizer, tmp_path):
    make_model().save_pretrained(tmp_path / "ko")
    tokenizer.save_pretrained(tmp_path / "ko")
    loaded = type(make_model()).from_pretrained(tmp_path / "ko")
    assert load_tokenizer(None, loaded)[1] == load_tokenizer(None, str(tmp_path / "ko"))[1] == "ko"
    assert load_tokenizer(load_tokenizer(None, loaded)[0], loaded)[1] == "ko"
