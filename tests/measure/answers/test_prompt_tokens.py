"""One rule for prompts, that of TRL's GRPO, and what is recorded of them."""

import json

import pytest
from trl import GRPOConfig, GRPOTrainer

from sae_posttrain.measure.answers import prompt_tokens
from sae_posttrain.measure.answers.prompt_tokens import (
    describe_prompting,
    prompt_form,
    say_what_goes_raw,
    template_hash,
    tokenize_prompts,
    tokenizer_hash,
)
from sae_posttrain.measure.answers.prompts import read_prompts

HI = [{"role": "user", "content": "hi"}]
GEMMA_LIKE = (
    "{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "{% for m in messages %}<|user|>{{ m['content'] | trim }}<|end|>{% endfor %}"
)


def prompts_of(*rows):
    return read_prompts([{"lang": "ko", **row} for row in rows], group_column="lang", target_lang="zh")


@pytest.mark.parametrize(
    ("row", "sent"),
    [
        ({"prompt": "hi"}, "hi"),
        ({"prompt": HI}, "<|user|>hi<|end|><|assistant|>"),
        ({"messages": [*HI, {"role": "assistant", "content": "the answer"}]}, "<|user|>hi<|end|><|assistant|>"),
        (
            {"prompt": [{"role": "system", "content": "be"}, *HI]},
            "<|user|>be<|end|><|user|>hi<|end|><|assistant|>",
        ),
    ],
)
def test_text_goes_raw_and_messages_through_the_template(row, sent, tokenizer):
    [ids] = tokenize_prompts(tokenizer, prompts_of(row))
    assert tokenizer.decode(ids) == sent


@pytest.mark.parametrize("prompt", ["파일 열기", HI])
def test_prompts_are_the_ones_that_grpo_would_send(prompt, tokenizer, monkeypatch):
    template = tokenizer.chat_template + "{% if brief is defined and add_generation_prompt %}!{% endif %}"
    monkeypatch.setattr(tokenizer, "chat_template", template)
    kwargs = {"brief": True} if prompt is HI else {}
    grpo = GRPOTrainer.__new__(GRPOTrainer)
    grpo.processing_class, grpo.chat_template_kwargs, grpo.chat_template = tokenizer, kwargs, None
    grpo.tools, grpo.environment_factories, grpo._is_vlm = None, None, False
    assert tokenize_prompts(tokenizer, prompts_of({"prompt": prompt}), kwargs) == grpo._tokenize_prompts([prompt])[0]
    assert "chat_template_kwargs" in GRPOConfig.__dataclass_fields__


def test_variables_of_the_template_that_would_do_nothing_are_refused(tokenizer):
    with pytest.raises(ValueError, match=r"enable_thinking.* would have no effect: all prompts are texts.*\"role\""):
        tokenize_prompts(tokenizer, prompts_of({"prompt": "hi"}), {"enable_thinking": False})


def test_messages_without_a_template_are_refused(tokenizer, monkeypatch):
    monkeypatch.setattr(tokenizer, "chat_template", None)
    with pytest.raises(ValueError, match="Row 2 of the prompts is made of messages, and the tokenizer has no chat"):
        tokenize_prompts(tokenizer, prompts_of({"prompt": "hi"}, {"prompt": HI}))


def test_template_without_a_system_turn_names_the_row(tokenizer, monkeypatch):
    monkeypatch.setattr(tokenizer, "chat_template", GEMMA_LIKE)
    rows = [{"prompt": HI}, {"prompt": [{"role": "system", "content": "be"}, *HI]}]
    with pytest.raises(
        ValueError, match=r"Row 2 .*\(turns: system, user\) is refused .*System role not supported.*head"
    ):
        tokenize_prompts(tokenizer, prompts_of(*rows))


@pytest.mark.parametrize(
    "row", [{"prompt": "a \ud83d"}, {"prompt": HI, "reference": "\ude00"}, {"prompt": "a", "id": "\ud83d"}]
)
def test_half_of_a_character_names_the_row_and_the_place(row):
    with pytest.raises(ValueError, match=r"Row 2 of the data.*half of a character \(U\+D"):
        prompts_of({"prompt": "fine"}, row)


def test_raw_texts_are_told_once_where_there_is_a_template(tokenizer, caplog, monkeypatch):
    prompt_tokens._say_once.cache_clear()
    for _ in range(2):
        say_what_goes_raw(tokenizer, prompt_form(prompts_of({"prompt": "hi"})))
    assert len(caplog.records) == 1
    assert "without its chat template, as in TRL's GRPO" in caplog.text
    say_what_goes_raw(tokenizer, "messages")
    monkeypatch.setattr(tokenizer, "chat_template", None)
    prompt_tokens._say_once.cache_clear()
    say_what_goes_raw(tokenizer, "text")
    assert len(caplog.records) == 1


def test_record_says_form_template_and_variables(tokenizer):
    assert describe_prompting(tokenizer, "text", {}) == {
        "prompt_form": "text",
        "chat_template": None,
        "chat_template_kwargs": None,
    }
    record = describe_prompting(tokenizer, "messages", {"enable_thinking": False})
    assert record["chat_template"] == template_hash(tokenizer)
    assert record["chat_template_kwargs"] == {"enable_thinking": False}
    assert prompt_form(prompts_of({"prompt": "hi"}, {"prompt": HI})) == "mixed"


def test_marks_of_generation_do_not_change_a_template(tokenizer, monkeypatch):
    marked = template_hash(tokenizer)
    bare = tokenizer.chat_template.replace("{% generation %}", "").replace("{% endgeneration %}", "")
    monkeypatch.setattr(tokenizer, "chat_template", bare)
    assert template_hash(tokenizer) == marked
    monkeypatch.setattr(tokenizer, "chat_template", bare + "!")
    assert template_hash(tokenizer) != marked


def test_tokenizers_are_told_apart_by_what_they_do_not_by_where_they_lie(tokenizer, tmp_path):
    from transformers import AutoTokenizer

    tokenizer.save_pretrained(tmp_path / "before")
    moved = AutoTokenizer.from_pretrained(tmp_path / "before")
    moved.save_pretrained(tmp_path / "after")
    again = AutoTokenizer.from_pretrained(tmp_path / "after")
    again.pad_token, again.padding_side = "<|user|>", "left"
    assert tokenizer_hash(tokenizer) == tokenizer_hash(moved) == tokenizer_hash(again)
    again.add_tokens(["<|new|>"])
    assert tokenizer_hash(again) != tokenizer_hash(moved)
    state = json.loads(moved.backend_tokenizer.to_str())
    state["pre_tokenizer"]["add_prefix_space"] = True
    (tmp_path / "after" / "tokenizer.json").write_text(json.dumps(state))
    assert tokenizer_hash(AutoTokenizer.from_pretrained(tmp_path / "after")) != tokenizer_hash(moved)
