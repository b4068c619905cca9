"""A strength is used on prompts that are put as those were on which it was calibrated."""

from dataclasses import replace

import pytest
from datasets import Dataset

from sae_posttrain.measure.answers.prompt_tokens import template_hash

MESSAGES = [{"prompt": [{"role": "user", "content": text}]} for text in ("a", "one file", "xyz", "keys and more")]


@pytest.fixture
def calibrated(make_model, make_loop_feature, tokenizer):
    def make(**settings):
        record = {"prompt_form": "messages", "chat_template": template_hash(tokenizer), "chat_template_kwargs": {}}
        calibration = {"strength": 10.0, "settings": {"temperature": 0.5, **record, **settings}}
        return replace(make_loop_feature(make_model()), notes={"calibration": calibration})

    return make


@pytest.fixture
def start(train, make_model):
    def run(feature_set, data=MESSAGES, **settings):
        settings = {"steer_strength": None, **settings}
        dataset = Dataset.from_list(data)
        return train(model=make_model(), feature_set=feature_set, fit=False, dataset=dataset, **settings)

    return run


def test_same_prompts_start(start, calibrated):
    assert start(calibrated()).steer_strength == 10.0
    texts = [{"prompt": "a"}] * 4
    assert start(calibrated(prompt_form="text", chat_template=None), texts).steer_strength == 10.0


@pytest.mark.parametrize("form", ["tokens", "mixed", None])
def test_what_was_not_recorded_is_not_compared(start, calibrated, form):
    assert start(calibrated(prompt_form=form)).steer_strength == 10.0


@pytest.mark.parametrize(
    ("settings", "data", "message"),
    [
        ({}, [{"prompt": "a"}] * 4, "calibrated on prompts that are messages, .* training prompts are texts"),
        ({"prompt_form": "text"}, MESSAGES, "calibrated on prompts that are texts, .* training prompts are messages"),
        ({"chat_template": "0" * 16}, MESSAGES, "calibrated with another chat template than the tokenizer"),
    ],
)
def test_other_prompts_are_refused_unless_the_strength_is_given(start, calibrated, settings, data, message):
    with pytest.raises(ValueError, match=f"(?s){message}.*set `steer_strength` to a number"):
        start(calibrated(**settings), data)
    assert start(calibrated(**settings), data, steer_strength=2.0).steer_strength == 2.0


def test_variables_that_change_the_prompts_are_refused(start, calibrated, tokenizer, monkeypatch):
    monkeypatch.setattr(
        tokenizer, "chat_template", tokenizer.chat_template + "{% if enable_thinking is false %}!{% endif %}"
    )
    with pytest.raises(
        ValueError, match=r"calibrated with `chat_template_kwargs` \{\}, this training has .*--chat-temp"
    ):
        start(calibrated(), chat_template_kwargs={"enable_thinking": False})
    assert start(calibrated(), chat_template_kwargs={"enable_thinking": True}).steer_strength == 10.0
    without = calibrated(chat_template_kwargs={"enable_thinking": False})
    assert start(without, chat_template_kwargs={"enable_thinking": False}).steer_strength == 10.0


def test_rollouts_that_do_not_stop_where_the_template_ends_a_turn_are_told(
    start, calibrated, tokenizer, monkeypatch, caplog
):
    monkeypatch.setattr(tokenizer, "chat_template", tokenizer.chat_template.replace("<|end|>", "<|assistant|>"))
    start(calibrated(chat_template=template_hash(tokenizer)))
    assert "ends a turn with '<|assistant|>' (3), and rollouts stop only at '<|end|>' (1)" in caplog.text
