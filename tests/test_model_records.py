from sae_posttrain.model_records import recorded_kwargs, recorded_model, recorded_name, weights_fingerprint


def test_records_name_a_path_by_its_last_part(tmp_path, monkeypatch):
    assert recorded_name("Qwen/Qwen3-1.7B") == "Qwen/Qwen3-1.7B"
    assert recorded_name("/models/ko/") == "ko"  # need not be there any more
    (tmp_path / "runs" / "ko").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "runs")
    assert recorded_name("../runs/ko") == recorded_name(tmp_path / "runs" / "ko") == "ko"
    assert recorded_name(".") == "runs"
    assert recorded_name("") == ""


def test_records_name_a_loaded_model_by_the_last_part_of_its_folder(make_model, tokenizer, tmp_path):
    model = make_model()
    assert recorded_model(model) == "Qwen3ForCausalLM"
    model.save_pretrained(tmp_path / "ko")
    tokenizer.save_pretrained(tmp_path / "ko")
    loaded = type(model).from_pretrained(tmp_path / "ko")
    assert recorded_model(loaded) == recorded_model(tmp_path / "ko") == "ko"


def test_records_hold_no_token_and_no_folder(tmp_path):
    kwargs = {
        "token": "hf_secret",
        "dtype": "bfloat16",
        "revision": "refs/pr/1",
        "config": tmp_path / "config.json",
        "cache_dir": str(tmp_path),
        "adapter_kwargs": {"token": "hf_secret", "revision": "main"},
        "max_memory": {0: "20GB"},
    }
    assert recorded_kwargs(kwargs) == {
        "adapter_kwargs": "{'revision': 'main'}",
        "config": "config.json",
        "dtype": "bfloat16",
        "max_memory": "{0: '20GB'}",
        "revision": "refs/pr/1",
    }


def test_fingerprint_tells_weights_apart(make_model, tmp_path):
    assert (
        weights_fingerprint(make_model())
        == weights_fingerprint(make_model())
        != weights_fingerprint(make_model(seed=1))
    )
    make_model().save_pretrained(tmp_path / "first" / "ko")
    make_model(seed=1).save_pretrained(tmp_path / "second" / "ko")
    assert weights_fingerprint(tmp_path / "first" / "ko") != weights_fingerprint(tmp_path / "second" / "ko")
    assert weights_fingerprint("no-such/model") is None
