"""The thinking that a chat template opens is thinking up to `</think>`, and to the end of an answer that was cut."""

import pytest

from sae_posttrain.measure.faults.segments import (
    opens_thinking,
    prompt_opens_thinking,
    segment_at,
    segments_of,
    template_opens_thinking,
)
from sae_posttrain.measure.faults.switching import find_switches, right_language

OPENS = (
    "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}{% endfor %}<|assistant|>"
    "{% if think is not defined or think %}<think>\n{% else %}<think>\n\n</think>\n\n{% endif %}"
)


class Templated:
    """A tokenizer of characters that knows the template only."""

    chat_template = OPENS

    def apply_chat_template(self, messages, add_generation_prompt, tokenize, **variables):
        import jinja2

        assert add_generation_prompt and not tokenize
        return jinja2.Template(self.chat_template).render(messages=messages, **variables)

    def decode(self, ids, skip_special_tokens):
        assert not skip_special_tokens
        return "".join(map(chr, ids))


def test_prompt_that_ends_in_an_open_tag_is_told_from_one_that_closed_it():
    assert opens_thinking("<|user|>hi<|assistant|><think>\n")
    assert opens_thinking("…<think>")
    assert not opens_thinking("<think>\n\n</think>\n\n")
    assert not opens_thinking("What does <think> mean?")
    assert prompt_opens_thinking(Templated(), [ord(c) for c in "long " * 20 + "<think>\n"])
    assert not prompt_opens_thinking(Templated(), [ord(c) for c in "<think>\n</think>\n"])


def test_template_is_asked_with_its_variables():
    assert template_opens_thinking(Templated())
    assert not template_opens_thinking(Templated(), think=False)
    assert not template_opens_thinking(object())


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("用户想要", [("think", "用户想要")]),
        ("用户</think>답", [("think", "用户</think>"), ("answer", "답")]),
        ("<think>用户</think>답", [("think", "<think>用户</think>"), ("answer", "답")]),
        ("用户<think>想</think>답", [("think", "用户<think>想</think>"), ("answer", "답")]),
        ("", [("think", "")]),
    ],
)
def test_segments_of_an_answer_whose_thinking_was_open(answer, expected):
    segments = segments_of(answer, think_opened=True)
    assert [(name, answer[start:end]) for start, end, name in segments] == expected


def test_cut_thinking_is_no_answer():
    cut = "用户想要保存文件，我应该用韩语回答"
    assert find_switches(cut, lang="ko").unexpected  # without the prompt nothing tells it from an answer
    switches = find_switches(cut, lang="ko", think_opened=True)
    assert switches.any and not switches.unexpected
    assert switches.num_unexpected_in_think == switches.num_any > 0
    assert right_language(cut, lang="ko") is False
    assert right_language(cut, lang="ko", think_opened=True) is None
    assert right_language(cut + "</think>파일을 저장하세요", lang="ko", think_opened=True) is True


def test_every_place_has_its_segment():
    answer = "a<think>b</think>c<think>d"
    assert [segment_at(segments_of(answer), answer.index(letter)) for letter in "abcd"] == [
        "answer",
        "think",
        "answer",
        "think",
    ]
