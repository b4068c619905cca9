"""What an evaluation says of how it asked, and of what two evaluations differ in."""

import json
from collections import Counter

import pytest
from transformers import AutoTokenizer

from sae_posttrain.measure.answers.summary import format_evaluation
from sae_posttrain.measure.report.data import Arm
from sae_posttrain.measure.report.words import compare_arms

GROUPS = ["ko"] * 20 + ["ru"] * 8 + ["en"] * 2


@pytest.fixture
def as_messages(prompt_rows):
    return [{**row, "prompt": [{"role": "user", "content": row["prompt"]}]} for row in prompt_rows]


def test_limit_draws_from_every_language_by_the_seed(run, read_answers):
    rows = [{"id": i, "lang": lang, "prompt": f"{lang} {i}"} for i, lang in enumerate(GROUPS)]
    drawn = {}
    for folder, seed in (("one", 0), ("other", 1), ("same", 0)):
        assert run(folder, rows, limit=9, seed=seed, max_new_tokens=2)["settings"]["num_prompts"] == 9
        answers = read_answers(folder)
        assert Counter(answer["lang"] for answer in answers) == {"ko": 6, "ru": 2, "en": 1}
        drawn[folder] = {answer["id"] for answer in answers}
    assert drawn["one"] == drawn["same"] != drawn["other"]


def test_answers_that_were_almost_all_cut_are_told(run, answer_with, prompt_rows, tmp_path, caplog):
    answers = {row["prompt"]: "x" for row in prompt_rows}
    answer_with(answers, finished=False)
    result = run()
    [remark] = result["remarks"]
    assert "5 of 5 of the answers were cut at the limit" in remark
    assert "An answer ends at <|end|>." in remark
    assert remark in caplog.text
    assert json.loads((tmp_path / "run" / "evaluation.json").read_text())["remarks"] == [remark]
    answer_with(answers)
    assert run("ended")["remarks"] == []


def test_one_language_whose_answers_were_cut_is_told(run, monkeypatch, prompt_rows, tokenizer):
    def cut_in_russian(_model, _tokenizer, prompts, **_settings):
        texts = [tokenizer.decode(ids) for ids in prompts]
        return [[40]] * len(prompts), [text != "Файл" for text in texts]

    monkeypatch.setattr("sae_posttrain.measure.answers.evaluation.generate_answers", cut_in_russian)
    [remark] = run()["remarks"]
    assert "1 of 1 of the ru answers were cut at the limit" in remark


def test_settings_of_the_model_that_were_not_used_are_named(run, make_model, caplog):
    model = make_model()
    model.generation_config.suppress_tokens = [44]
    model.generation_config.top_k = 3
    result = run(model=model)
    assert result["unused_generation_settings"] == {"suppress_tokens": [44], "top_k": 3}
    assert "suppress_tokens=[44]" in caplog.text and "top_k" not in caplog.text


def test_tokenizer_in_another_folder_is_the_same(run, tokenizer, tmp_path):
    for name in ("before", "after"):
        tokenizer.save_pretrained(tmp_path / f"{name}-tokenizer")
    run("before", tokenizer=str(tmp_path / "before-tokenizer"))
    result = run("after", tokenizer=str(tmp_path / "after-tokenizer"), compare=tmp_path / "before")
    assert result["settings"]["tokenizer"] == "after-tokenizer"
    assert result["comparison"]["different_settings"] == []
    assert "Not the same" not in format_evaluation(result)
    before = Arm("before", evaluation=json.loads((tmp_path / "before" / "evaluation.json").read_text()))
    assert compare_arms(Arm("after", evaluation=result), before).other_settings == []

    other = AutoTokenizer.from_pretrained(tmp_path / "after-tokenizer")
    other.add_tokens(["<|new|>"])
    result = run("other", tokenizer=other, compare=tmp_path / "before")
    assert "tokenizer_sha256" in result["comparison"]["different_settings"]
    assert "tokenizer_sha256" in compare_arms(Arm("other", evaluation=result), before).other_settings


def test_prompts_put_in_another_way_are_named(run, prompt_rows, as_messages, tokenizer, monkeypatch, tmp_path):
    run("text")
    result = run("messages", as_messages, compare=tmp_path / "text")
    assert {"prompt_form", "chat_template"} <= set(result["comparison"]["different_settings"])
    thinking = tokenizer.chat_template + "{% if enable_thinking is defined and not enable_thinking %}!{% endif %}"
    monkeypatch.setattr(tokenizer, "chat_template", thinking)
    run("thinking", as_messages)
    kwargs = {"enable_thinking": False}
    result = run("without", as_messages, chat_template_kwargs=kwargs, compare=tmp_path / "thinking")
    assert result["settings"]["chat_template_kwargs"] == kwargs
    assert result["comparison"]["different_settings"] == ["chat_template_kwargs", "prompts_sha256"]


def test_template_that_sends_the_same_tokens_is_the_same(run, as_messages, tokenizer, monkeypatch, tmp_path):
    run("before", as_messages)
    monkeypatch.setattr(tokenizer, "chat_template", "{# of another folder #}" + tokenizer.chat_template)
    result = run("after", as_messages, compare=tmp_path / "before")
    assert result["comparison"]["different_settings"] == []


def test_evaluation_that_recorded_less_is_compared_in_what_it_recorded(run, tmp_path):
    run("before")
    for name in ("settings.json", "evaluation.json"):
        file = tmp_path / "before" / name
        content = json.loads(file.read_text())
        settings = content.get("settings", content)
        for key in ("tokenizer_sha256", "prompt_form", "chat_template_kwargs"):
            del settings[key]
        settings["tokenizer"] = "elsewhere"
        file.write_text(json.dumps(content))
    assert run("after", compare=tmp_path / "before")["comparison"]["different_settings"] == []
