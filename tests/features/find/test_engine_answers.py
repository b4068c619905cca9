"""Answers by vLLM for the search and the calibration, against a stand-in for it; the real one is in the slow suite."""

import json
import sys

import pytest
import torch

from sae_posttrain import FeatureSet, calibrate
from sae_posttrain.__main__ import main
from sae_posttrain.features.calibrate.temperatures import calibrate_temperatures
from sae_posttrain.features.find.answers import Question, Sampling, answer_all
from sae_posttrain.features.find.engine_answers import EngineAnswers

from ...measure.answers import fake_vllm

PROMPTS = [[10 + i, 11 + i, 12 + i][: 1 + i % 3] for i in range(5)]
QUESTIONS = [Question(tuple(ids), tuple(ids)) for ids in PROMPTS]
GREEDY = {"temperature": 0.0, "max_new_tokens": 70}


@pytest.fixture(autouse=True)
def vllm(monkeypatch):
    monkeypatch.setitem(sys.modules, "vllm", fake_vllm.module())
    return fake_vllm.LLM


@pytest.fixture
def model(make_model):
    return make_model()


@pytest.fixture
def folder(model, tokenizer, tmp_path):
    model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture
def features(model):
    """One feature emits token 50; two share a name, at different blocks."""
    directions = torch.cat([model.lm_head.weight[50:51].detach(), torch.randn(2, 32, generator=torch.manual_seed(0))])
    return FeatureSet.from_directions(
        directions, blocks=[1, 0, 1], names=["loop", "b", "b"], residual_norms=[10.0, 3.0, 3.0], base_model="mine"
    )


def test_answers_are_those_of_transformers_plain_and_pushed(model, folder, tokenizer, features, vllm):
    sampling = Sampling(12, 0.0, batch_size=2)
    strength = torch.tensor([[0.0, 0.0, 0.0], [2.0, 0.0, 0.0], [0.0, -3.0, 0.0], [0.0, 0.0, 3.0], [0.5, 1.0, -1.0]])
    push = {"feature_set": features, "strength": strength}
    expected = [answer_all(model, tokenizer, QUESTIONS, sampling, **each) for each in ({}, push)]
    with EngineAnswers(folder, tokenizer, [features], batch_size=2) as engine:
        got = [answer_all(engine, tokenizer, QUESTIONS, sampling, **each) for each in ({}, push)]
    assert got == expected and expected[0] != expected[1]
    [llm] = vllm.started
    assert not llm.is_running
    assert (llm.options["max_model_len"], llm.options["max_num_seqs"]) == (3 + 12, 2)
    assert llm.options["gpu_memory_utilization"] == 0.6


def test_the_engine_starts_again_for_longer_answers_only(folder, tokenizer, features, vllm):
    with EngineAnswers(folder, tokenizer, engine_kwargs={"gpu_memory_utilization": 0.3}) as engine:
        for length in (8, 4, 16):
            answer_all(engine, tokenizer, QUESTIONS, Sampling(length, 0.0))
        with pytest.raises(ValueError, match="not made to push along loop, b, b: name this set in `feature_sets`"):
            answer_all(engine, tokenizer, QUESTIONS, Sampling(4, 0.0), feature_set=features, strength=torch.ones(5, 3))
    assert [llm.options["max_model_len"] for llm in vllm.started] == [11, 19]
    assert not any(llm.is_running for llm in vllm.started)
    assert vllm.started[0].options["gpu_memory_utilization"] == 0.3 and "worker_cls" not in vllm.started[0].options


def test_calibrate_finds_the_same_strength(model, folder, tokenizer, features, vllm):
    one = features[[0]]
    options = {"strengths": [0.25, 3.0], "allow_base_model": str(folder), **GREEDY}
    plain = calibrate(str(folder), one, PROMPTS, **options)
    ours = calibrate(str(folder), one, PROMPTS, engine="vllm", **options)
    assert (ours.strength, ours.rows) == (plain.strength, plain.rows)
    assert plain.strength == 3.0
    assert (plain.settings["engine"], ours.settings["engine"]) == ("transformers", "vllm")
    assert len(vllm.started) == 1 and not vllm.started[0].is_running


def test_temperatures_share_one_engine(folder, features, vllm):
    options = {"temperatures": [0.0, 0.3], "strengths": [3.0], "max_new_tokens": 64, "allow_base_model": str(folder)}
    found = calibrate_temperatures(str(folder), features[[0]], PROMPTS, engine="vllm", **options)
    assert set(found.sweeps) == {0.0, 0.3} and found.temperature is not None
    assert len(vllm.started) == 1


def test_calibrate_on_the_command_line_with_a_control(folder, features, tmp_path, vllm, capsys):
    file = features[[0]].save(tmp_path / "found.safetensors")
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text("".join(json.dumps({"prompt": text}) + "\n" for text in ("ab", "cd", "ef")), encoding="utf-8")
    out = tmp_path / "calibrated.safetensors"
    words = ["calibrate", "--model", str(folder), "--features", str(file), "--prompts", str(prompts)]
    words += ["--out", str(out), "--engine", "vllm", "--control", "--strengths", "3", "--temperature", "0"]
    words += ["--max-new-tokens", "64", "--allow-base-model", str(folder), "--engine-kwargs", '{"seed": 7}']
    assert main(words) in (0, None)
    assert FeatureSet.load(out).notes["calibration"]["settings"]["engine"] == "vllm"
    assert len(vllm.started) == 1 and vllm.started[0].options["seed"] == 7
    assert len(vllm.started[0].sets) == 2
    assert "Control, a random direction" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"engine": "sglang"}, "`engine` must be one of transformers, vllm, got 'sglang'"),
        ({"engine_kwargs": {"seed": 1}}, "`engine_kwargs` are for `engine='vllm'`"),
    ],
)
def test_engines_that_cannot_be_are_refused(folder, features, settings, message):
    with pytest.raises(ValueError, match=message):
        calibrate(str(folder), features, PROMPTS, **settings)


def test_a_loaded_model_and_other_sites_are_refused(model, folder, tokenizer):
    with pytest.raises(ValueError, match="reads the model from its folder, and this one is loaded"):
        calibrate(model, None, PROMPTS, tokenizer=tokenizer, engine="vllm")
    inner = FeatureSet.from_directions(
        torch.randn(1, 32), blocks=[1], sites=["mlp_out"], names=["f"], residual_norms=[1.0]
    )
    with pytest.raises(ValueError, match="An engine pushes the output of blocks only"):
        calibrate(str(folder), inner, PROMPTS, engine="vllm", allow_base_model=str(folder), **GREEDY)
