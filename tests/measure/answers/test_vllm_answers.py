"""Evaluations by vLLM, against a stand-in for it. The real one is in the slow vLLM suite."""

import importlib.util
import json
import sys

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model

from sae_posttrain.measure.answers.summary import format_evaluation

from . import fake_vllm


@pytest.fixture(autouse=True)
def vllm(monkeypatch):
    monkeypatch.setitem(sys.modules, "vllm", fake_vllm.module())
    return fake_vllm.LLM


@pytest.fixture
def folder(make_model, tmp_path):
    make_model().save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def test_greedy_answers_are_those_of_transformers(run, folder, read_answers, vllm):
    runs = {}
    for engine in ("transformers", "vllm"):
        result = run(engine, model=folder, temperature=0, max_new_tokens=48, engine=engine)
        runs[engine] = result["overall"], result["end_tokens"], read_answers(engine)
    assert runs["vllm"] == runs["transformers"]
    answers = runs["vllm"][2]
    assert len({answer["finished"] for answer in answers}) == 2  # both ends occur
    [llm] = vllm.started
    assert not llm.is_running
    assert [len(prompts) for prompts, _ in llm.asked] == [2, 2, 1]


def test_the_engine_is_started_with_the_width_and_the_room_that_are_needed(run, folder, vllm, tokenizer):
    run(model=folder, engine="vllm", top_p=0.7, temperature=0.5)
    [llm] = vllm.started
    longest = max(len(ids) for prompts, _ in llm.asked for ids in prompts)
    assert llm.options == {
        "dtype": "float32",
        "max_model_len": longest + 8,
        "max_num_seqs": 2,
        "skip_tokenizer_init": True,
        "generation_config": "vllm",
        "worker_extension_cls": "sae_posttrain.measure.answers.vllm_reseeding.Reseeded",
        "enforce_eager": not torch.accelerator.is_available(),
    }
    sampling = llm.asked[0][1]
    assert (sampling.temperature, sampling.top_p, sampling.top_k, sampling.max_tokens) == (0.5, 0.7, 0, 8)
    assert sampling.stop_token_ids == [tokenizer.eos_token_id]
    assert len(set(llm.seeds)) == 3


def test_what_is_said_of_the_engine_goes_to_vllm(run, folder, vllm):
    kwargs = {"dtype": torch.bfloat16, "tensor_parallel_size": 2, "max_num_seqs": 7}
    result = run(model=folder, engine="vllm", model_kwargs=kwargs)
    options = vllm.started[0].options
    assert (options["dtype"], options["tensor_parallel_size"], options["max_num_seqs"]) == ("bfloat16", 2, 7)
    assert result["settings"]["model_kwargs"]["tensor_parallel_size"] == "2"


def test_a_model_that_does_not_say_its_width_is_asked_for_it(run, folder, vllm):
    config = json.loads((folder / "config.json").read_text())
    del config["dtype"]
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"does not say the data type .*`--dtype bfloat16`"):
        run(model=folder, engine="vllm")
    assert not vllm.started
    run(model=folder, engine="vllm", model_kwargs={"dtype": "float32"})
    assert vllm.started[0].options["dtype"] == "float32"


def test_an_interrupted_run_goes_on_with_the_same_answers(run, folder, read_answers, tmp_path, vllm):
    run("whole", model=folder, engine="vllm")
    run("cut", model=folder, engine="vllm")
    (tmp_path / "cut" / "evaluation.json").unlink()
    file = tmp_path / "cut" / "answers.jsonl"
    file.write_text("".join(file.read_text(encoding="utf-8").splitlines(keepends=True)[:3]), encoding="utf-8")
    before = torch.get_rng_state()
    run("cut", model=folder, engine="vllm")
    assert torch.equal(torch.get_rng_state(), before)
    assert read_answers("cut") == read_answers("whole")
    assert len(vllm.started[-1].asked) == 2  # one batch of three was there
    run("cut", model=folder, engine="vllm")
    assert len(vllm.started) == 3  # a finished evaluation starts no engine


def test_an_adapter_is_merged_first(run, folder, read_answers, tmp_path, make_model, vllm):
    torch.manual_seed(1)
    config = LoraConfig(target_modules="all-linear", init_lora_weights=False, r=8, lora_alpha=64)
    model = get_peft_model(make_model(), config)
    model.peft_config["default"].base_model_name_or_path = str(folder)
    model.save_pretrained(tmp_path / "adapter")
    for engine in ("transformers", "vllm"):
        run(engine, model=tmp_path / "adapter", temperature=0, engine=engine)
    assert read_answers("vllm") == read_answers("transformers")
    run("base", model=folder, temperature=0, engine="vllm")
    assert read_answers("base") != read_answers("vllm")
    assert not isinstance(vllm.started[0].model, PeftModel)


def test_a_comparison_says_that_the_engines_differ(run, folder, tmp_path):
    run("transformers", model=folder)
    settings = tmp_path / "transformers" / "evaluation.json"
    older = json.loads(settings.read_text(encoding="utf-8"))
    assert older["settings"].pop("engine") == "transformers"
    compared = run("vllm", model=folder, engine="vllm", compare=tmp_path / "transformers")
    assert compared["settings"]["engine"] == "vllm"
    assert compared["comparison"]["different_settings"] == ["engine"]
    assert "Not the same in both: engine." in format_evaluation(compared)
    settings.write_text(json.dumps(older), encoding="utf-8")  # as versions without a choice wrote it
    again = run("vllm", model=folder, engine="vllm", compare=tmp_path / "transformers")
    assert again["comparison"]["different_settings"] == ["engine"]


def test_a_folder_is_not_continued_with_another_engine(run, folder, tmp_path):
    run(model=folder)
    with pytest.raises(ValueError, match="engine was 'transformers', is 'vllm'"):
        run(model=folder, engine="vllm")
    settings = tmp_path / "run" / "settings.json"
    older = json.loads(settings.read_text(encoding="utf-8"))
    del older["engine"]
    settings.write_text(json.dumps(older), encoding="utf-8")
    run(model=folder)
    with pytest.raises(ValueError, match="engine was 'transformers', is 'vllm'"):
        run(model=folder, engine="vllm")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"engine": "sglang"}, "`engine` must be one of transformers, vllm, got 'sglang'"),
        ({}, r"this one is loaded. Save it with `save_pretrained"),
        ({"model": "model.gguf"}, "does not take GGUF files. Use `engine='transformers'`"),
        ({"model": "owner/model", "device": "cuda:1"}, "leave out `device` .*CUDA_VISIBLE_DEVICES"),
    ],
)
def test_what_vllm_cannot_do_is_refused_before_anything_is_written(settings, message, run, tmp_path):
    with pytest.raises(ValueError, match=message):
        run(**{"engine": "vllm", **settings})
    assert not (tmp_path / "run").exists()


def test_vllm_that_is_missing_is_named(run, folder, tmp_path, monkeypatch):
    monkeypatch.delitem(sys.modules, "vllm")
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(
        "sae_posttrain.measure.answers.vllm_answers.find_spec",
        lambda name: None if name == "vllm" else find_spec(name),
    )
    with pytest.raises(ImportError, match=r"pip install 'sae_posttrain\[vllm\]'"):
        run(model=folder, engine="vllm")
    assert not (tmp_path / "run").exists()


def test_answers_that_do_not_fit_start_no_engine(run, folder, vllm):
    with pytest.raises(ValueError, match="do not fit the 256 positions"):
        run(model=folder, engine="vllm", max_new_tokens=250)
    assert not vllm.started


def test_the_command_line_names_the_engine(monkeypatch, folder, tmp_path):
    called = {}
    monkeypatch.setattr("sae_posttrain.measure.answers.summary.format_evaluation", lambda _result: "")
    name = "sae_posttrain.measure.answers.evaluation.evaluate"
    monkeypatch.setattr(name, lambda *_, **options: called.update(options))
    monkeypatch.delenv("VLLM_LOGGING_STREAM", raising=False)
    from sae_posttrain.cli import main

    words = ["evaluate", "--model", str(folder), "--prompts", "p.jsonl", "--out", str(tmp_path), "--engine", "vllm"]
    assert main(words) == 0
    assert called["engine"] == "vllm"
