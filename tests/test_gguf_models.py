import dataclasses
import json
import sys

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    LlamaConfig,
    LlamaForCausalLM,
)

from sae_posttrain import SASFTConfig, SASFTTrainer, SteeredGRPOConfig, SteeredGRPOTrainer
from sae_posttrain.features.set.model_identity import fingerprint, model_name, require_same_model
from sae_posttrain.gguf_models import DEQUANTISED
from sae_posttrain.model_loading import load_model, load_tokenizer
from sae_posttrain.model_records import recorded_model, recorded_name, weights_fingerprint

from .gguf_writer import tiny_model, write_gguf
from .trained import ON_CPU

PROMPT = "the cat sat on"


@pytest.fixture
def llama(tokenizer):
    return tiny_model(LlamaForCausalLM, LlamaConfig, tokenizer, tie_word_embeddings=False)


@pytest.fixture
def file(llama, tokenizer, tmp_path):
    return write_gguf(tmp_path / "tiny.gguf", llama, tokenizer, "Q8_0")


def logits_of(model, tokenizer) -> torch.Tensor:
    with torch.no_grad():
        return model(**tokenizer(PROMPT, return_tensors="pt")).logits


def greedy(model, tokenizer) -> list[int]:
    ids = tokenizer(PROMPT, return_tensors="pt")
    return model.generate(**ids, max_new_tokens=12, do_sample=False)[0].tolist()


@pytest.mark.parametrize(("stored", "allowed"), [("F32", 1e-5), ("F16", 5e-2), ("Q8_0", 1.0)])
@pytest.mark.parametrize("kind", [LlamaForCausalLM, Gemma3ForCausalLM])
def test_gguf_and_folder_of_a_model_give_the_same_logits(kind, stored, allowed, tokenizer, tmp_path):
    more = {"sliding_window": 16, "query_pre_attn_scalar": 256} if kind is Gemma3ForCausalLM else {}
    config = Gemma3TextConfig if kind is Gemma3ForCausalLM else LlamaConfig
    model = tiny_model(kind, config, tokenizer, **more)
    file = write_gguf(tmp_path / f"tiny.{stored}.gguf", model, tokenizer, stored)
    model.save_pretrained(tmp_path / "folder")
    tokenizer.save_pretrained(tmp_path / "folder")
    read, folder = (load_model(str(each), "cpu", {"dtype": "float32"}) for each in (file, tmp_path / "folder"))
    words = load_tokenizer(None, str(file))[0]
    expected = logits_of(folder, tokenizer)
    spread = expected.std()
    assert (logits_of(read, words) - expected).abs().max() < allowed * spread
    if stored == "F32":
        assert greedy(read, words) == greedy(folder, tokenizer)


def test_tokenizer_is_read_with_its_chat_template_and_special_tokens(file, tokenizer):
    read, name = load_tokenizer(None, str(file))
    assert name == "tiny.gguf"
    assert read.chat_template == tokenizer.chat_template
    assert (read.pad_token_id, read.eos_token_id) == (tokenizer.pad_token_id, tokenizer.eos_token_id)
    messages = [{"role": "user", "content": "안녕"}, {"role": "assistant", "content": "Hi!"}]
    ids = read.apply_chat_template(messages, return_dict=False)
    assert ids == tokenizer.apply_chat_template(messages, return_dict=False)
    assert read.decode(ids) == tokenizer.decode(ids)


def test_only_the_file_is_read_and_not_what_lies_beside_it(file, tokenizer):
    (file.parent / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "no/where"}))
    (file.parent / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "NoTokenizer"}))
    assert load_model(str(file), "cpu").config.model_type == "llama"
    assert load_tokenizer(None, str(file))[0].vocab_size == tokenizer.vocab_size


def test_tokenizer_has_no_token_that_the_file_lacks(file, tokenizer):
    assert len(load_tokenizer(None, str(file))[0]) == len(tokenizer)


def test_scaled_positions_that_are_not_read_are_said(llama, tokenizer, tmp_path, caplog):
    load_model(write_gguf(tmp_path / "short.gguf", llama, tokenizer), "cpu")
    assert "rotary" not in caplog.text
    load_model(write_gguf(tmp_path / "long.gguf", llama, tokenizer, metadata={"llama.rope.scaling.factor": 8}), "cpu")
    assert "long.gguf scales its rotary positions" in caplog.text


def test_dtype_is_as_asked(file):
    assert load_model(str(file), "cpu", {"dtype": "bfloat16"}).dtype == torch.bfloat16
    assert load_model(str(file), "cpu", {"dtype": torch.float32}).dtype == torch.float32


def test_read_model_is_saved_as_a_normal_folder(file, tokenizer, tmp_path):
    model = load_model(str(file), "cpu", {"dtype": "float32"})
    model.save_pretrained(tmp_path / "saved")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "saved")
    assert "quantization_config" not in json.loads((tmp_path / "saved" / "config.json").read_text())
    assert torch.equal(logits_of(again, tokenizer), logits_of(model, tokenizer))


def test_records_name_file_and_quantisation(file, llama, tokenizer, tmp_path):
    model = load_model(str(file), "cpu")
    assert recorded_name(file) == recorded_name(str(file)) == "tiny.gguf"
    assert recorded_model(str(file)) == recorded_model(model) == "tiny.gguf (Q8_0)"
    clear = file.rename(tmp_path / "tiny.q8_0.gguf")
    assert recorded_model(clear) == "tiny.q8_0.gguf"  # the name says it
    assert recorded_model("owner/repo:tiny.gguf") == "owner/repo:tiny.gguf"
    (tmp_path / "other").mkdir()
    other = write_gguf(tmp_path / "other" / "tiny.q8_0.gguf", llama, tokenizer, "F16")
    assert weights_fingerprint(clear) == weights_fingerprint(str(clear)) != weights_fingerprint(other)
    assert weights_fingerprint("owner/repo:tiny.gguf") is None


def test_features_know_the_file_they_were_found_on(file, llama, tokenizer, tmp_path):
    model = load_model(str(file), "cpu")
    name, found = model_name(model), fingerprint(model)
    assert name == "tiny.gguf"
    assert found["gguf_quantization"] == "Q8_0"
    require_same_model(name, found, model)
    (tmp_path / "other").mkdir()
    other = load_model(write_gguf(tmp_path / "other" / "tiny.gguf", llama, tokenizer, "F16"), "cpu")
    with pytest.raises(ValueError, match="its quantisation in its GGUF file is 'Q8_0', this model's is 'F16'"):
        require_same_model(name, found, other)
    require_same_model("owner/repo:tiny.gguf", found, model)  # a copy of the Hub's file
    model.config._name_or_path = "someone/else:tiny.gguf"
    with pytest.raises(ValueError, match="someone/else:tiny.gguf"):
        require_same_model("owner/repo:tiny.gguf", found, model)


def test_architecture_that_transformers_cannot_read_is_refused(file):
    other = file.with_name("other.gguf")
    other.write_bytes(file.read_bytes().replace(b"llama", b"lmaal"))
    with pytest.raises(ValueError, match=r"transformers .* cannot read .*other.gguf, .*'lmaal'") as found:
        load_model(str(other), "cpu")
    assert "\n" not in str(found.value)


@pytest.mark.parametrize("key", ["block_count", "embedding_length", "feed_forward_length", "vocab_size"])
def test_header_that_claims_a_huge_model_is_refused_before_it_is_built(key, llama, tokenizer, tmp_path):
    file = write_gguf(tmp_path / "huge.gguf", llama, tokenizer, metadata={f"llama.{key}": 2**30})
    with pytest.raises(ValueError, match="huge.gguf"):
        load_model(str(file), "cpu")


def test_file_without_some_weights_is_refused(llama, tokenizer, tmp_path):
    file = write_gguf(tmp_path / "holes.gguf", llama, tokenizer, left_out="blk.1.ffn_down")
    with pytest.raises(ValueError, match="lacks 1 of the model's weights, model.layers.1.mlp.down_proj.weight"):
        load_model(str(file), "cpu")


def test_quantising_anew_is_refused(file):
    with pytest.raises(ValueError, match=r"is quantised already \(Q8_0\): leave `quantization_config` out"):
        load_model(str(file), "cpu", {"quantization_config": {"load_in_4bit": True}})


def rows() -> Dataset:
    return Dataset.from_list([{"text": f"the cat sat on {word}", "lang": "en"} for word in ("a mat", "a hat")])


def trained(model, folder, file, **more):
    args = SASFTConfig(str(folder), penalty_weight=0, max_steps=1, per_device_train_batch_size=2, **{**ON_CPU, **more})
    trainer = SASFTTrainer(str(file), args=args, train_dataset=rows(), **model)
    trainer.train()
    trainer.save_model(str(folder))
    return trainer


def test_training_from_gguf_saves_a_normal_folder_and_says_so_once(file, tokenizer, tmp_path, caplog):
    trained({}, tmp_path / "run", file, save_strategy="steps", save_steps=1)
    said = [record.getMessage() for record in caplog.records if "dequantised" in record.getMessage()]
    assert len(said) == 1
    assert "tiny.gguf holds weights in the format Q8_0" in said[0]
    assert "normal model" in said[0]
    base = tmp_path / "run" / DEQUANTISED / "tiny.gguf"
    start = load_model(str(file), "cpu", {"dtype": "float32"})
    assert torch.equal(logits_of(AutoModelForCausalLM.from_pretrained(base), tokenizer), logits_of(start, tokenizer))
    for folder in (tmp_path / "run", tmp_path / "run" / "checkpoint-1"):
        model, words = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
        assert not torch.equal(logits_of(model, words), logits_of(start, tokenizer))
        assert words.chat_template == tokenizer.chat_template
    caplog.clear()
    trained({}, tmp_path / "run", file)  # the folder is there already
    assert not [record for record in caplog.records if "dequantised" in record.getMessage()]


def test_adapter_trained_from_gguf_is_loaded_again_also_after_a_move(file, tokenizer, tmp_path):
    lora = LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM")
    trainer = trained({"peft_config": lora}, tmp_path / "run", file, learning_rate=1.0)
    expected = logits_of(trainer.model.eval(), tokenizer)
    base = json.loads((tmp_path / "run" / "adapter_config.json").read_text())["base_model_name_or_path"]
    assert AutoModelForCausalLM.from_pretrained(base).config.model_type == "llama"  # by other programs too
    assert torch.allclose(logits_of(load_model(tmp_path / "run", "cpu"), tokenizer), expected, atol=1e-5)
    moved = (tmp_path / "run").rename(tmp_path / "moved")
    (moved / "tokenizer_config.json").unlink()
    assert torch.allclose(logits_of(load_model(moved, "cpu"), tokenizer), expected, atol=1e-5)
    assert load_tokenizer(None, moved)[1] == "tiny.gguf"


def test_adapter_whose_base_is_a_gguf_file_is_loaded(file, tokenizer, tmp_path):
    lora = LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM")
    trainer = trained({"peft_config": lora}, tmp_path / "run", file, learning_rate=1.0)
    config = tmp_path / "run" / "adapter_config.json"
    content = json.loads(config.read_text()) | {"base_model_name_or_path": str(file)}
    config.write_text(json.dumps(content))
    expected = logits_of(trainer.model.eval(), tokenizer)
    assert torch.allclose(logits_of(load_model(tmp_path / "run", "cpu"), tokenizer), expected, atol=1e-5)


def test_features_found_on_the_file_are_accepted_in_training_from_it(file, make_features, tmp_path):
    model = load_model(str(file), "cpu")
    features = dataclasses.replace(
        make_features(groups=("zh", "en")), base_model=model_name(model), fingerprint=fingerprint(model)
    )
    args = SASFTConfig(str(tmp_path / "run"), max_steps=1, per_device_train_batch_size=2, **ON_CPU)
    SASFTTrainer(str(file), args=args, train_dataset=rows(), feature_set=features).train()


def test_grpo_from_gguf_has_a_reference_model(file, tokenizer, tmp_path):
    args = SteeredGRPOConfig(
        str(tmp_path / "run"),
        num_steered=0,
        beta=0.1,
        max_steps=1,
        num_generations=2,
        per_device_train_batch_size=2,
        max_completion_length=4,
        **ON_CPU,
    )
    prompts = Dataset.from_list([{"prompt": "the cat"}, {"prompt": "the dog"}])
    trainer = SteeredGRPOTrainer(
        str(file), lambda completions, **_: [float(len(each)) for each in completions], args, train_dataset=prompts
    )
    trainer.train()
    trainer.save_model()
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "run").config.model_type == "llama"


def test_nothing_is_left_behind_when_the_file_cannot_be_read(file, tmp_path):
    other = file.with_name("other.gguf")
    other.write_bytes(file.read_bytes().replace(b"llama", b"lmaal"))
    with pytest.raises(ValueError, match="cannot read"):
        trained({}, tmp_path / "run", other)
    assert not (tmp_path / "run" / DEQUANTISED).exists()


def test_missing_package_is_named(file, monkeypatch):
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(ImportError, match=r"sae_posttrain\[gguf\]"):
        load_model(str(file), "cpu")


def test_file_of_a_hub_repository_is_fetched_once_and_alone(llama, tokenizer, tmp_path, hub, monkeypatch):
    folder = tmp_path / "repository"
    folder.mkdir()
    file = write_gguf(folder / "tiny.Q8_0.gguf", llama, tokenizer, "Q8_0")
    write_gguf(folder / "tiny.F16.gguf", llama, tokenizer, "F16")
    commit = hub.push("owner/tiny", folder)
    name = "owner/tiny:tiny.Q8_0.gguf"
    words = load_tokenizer(None, name)[0]
    fetched = load_model(name, "cpu", {"dtype": "float32"})
    expected = load_model(str(file), "cpu", {"dtype": "float32"})
    assert torch.equal(logits_of(fetched, words), logits_of(expected, words))
    assert hub.content_bytes() == file.stat().st_size
    assert {request.path.split("/")[-1] for request in hub.content_requests()} == {file.name}
    assert not hub.leaked
    hub.forget()
    load_model(name, "cpu", {"dtype": "float32", "revision": commit})
    assert hub.content_bytes() == 0
    monkeypatch.setattr(hub, "gated", {"owner/tiny"})
    with pytest.raises(FileNotFoundError, match="tiny.F16.gguf of the Hub repository owner/tiny cannot be read"):
        load_model("owner/tiny:tiny.F16.gguf", "cpu", {"dtype": "float32"})
    monkeypatch.setattr(hub, "gated", set())
    with pytest.raises(FileNotFoundError, match="none.gguf of the Hub repository owner/tiny cannot be read"):
        load_model("owner/tiny:none.gguf", "cpu", {"dtype": "float32"})
