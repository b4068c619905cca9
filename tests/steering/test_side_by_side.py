"""Answers without and with steering, from the same random numbers."""

import io
import json

import pytest
import torch
from rich.console import Console

from sae_posttrain import steer
from sae_posttrain.measure.answers.generate import batch_seed, generate_answers
from sae_posttrain.measure.report.examples import Piece, ShownAnswer
from sae_posttrain.steering.side_by_side import answer_side_by_side
from sae_posttrain.steering.terminal import answer_text, print_side_by_side, shaded, visible


def test_steered_answers_loop_and_plain_ones_do_not(model, tokenizer, features, questions, sampling):
    found = answer_side_by_side(model, tokenizer, features, {"loop": 20.0}, questions, sampling)
    assert [answer["answer"] for answer in found.steered] == ["a" * 72] * 2
    assert [answer["loop"]["endless"] for answer in found.steered] == [True, True]
    assert not any(answer["loop"]["endless"] for answer in found.plain)
    record = json.loads(json.dumps(found.as_dict()))
    assert record["strength"] == {"loop": 20.0}
    assert [pair["steered"]["faulty"] for pair in record["answers"]] == [True, True]
    assert record["rates"]["steered"]["endless"]["count"] == 2


def test_a_strength_of_zero_gives_the_plain_answers(model, tokenizer, features, questions, sampling):
    found = answer_side_by_side(model, tokenizer, features, {"loop": 0.0}, questions, sampling)
    assert [a["answer"] for a in found.plain] == [a["answer"] for a in found.steered]


@pytest.mark.parametrize(("unit", "positions"), [("raw", "generated"), ("norm", "all")])
def test_unit_and_positions_are_those_of_steer(model, tokenizer, features, questions, sampling, unit, positions):
    strengths = {"loop": 2.0, "other": -1.0}
    found = answer_side_by_side(
        model, tokenizer, features, strengths, questions, sampling, unit=unit, positions=positions
    )
    with steer(model, features, strengths, unit=unit, positions=positions):
        ids, _ = generate_answers(
            model,
            tokenizer,
            [question.prompt for question in questions],
            max_new_tokens=72,
            temperature=0.3,
            top_p=1.0,
            seed=batch_seed(0, 0),
        )
    assert [a["answer"] for a in found.steered] == [tokenizer.decode(each, skip_special_tokens=True) for each in ids]


def test_features_of_another_model_are_refused(model, tokenizer, make_features, questions, sampling):
    features = make_features(blocks=(1,), base_model="owner/Other")
    model.config._name_or_path = "owner/This"
    with pytest.raises(ValueError, match="found on 'owner/Other', this model is 'owner/This'"):
        answer_side_by_side(model, tokenizer, features, {"1.3": 1.0}, questions, sampling)


def screen(found, **options):
    file = io.StringIO()
    print_side_by_side(found, Console(file=file, width=160, **options))
    return file.getvalue()


def test_the_terminal_shows_both_columns_and_marks_the_loop(model, tokenizer, features, questions, sampling):
    found = answer_side_by_side(model, tokenizer, features, {"loop": 20.0}, questions, sampling)
    printed = screen(found)
    assert "English: How do I save a page?" in printed
    assert "plain" in printed and "loop=20" in printed
    assert "faulty; cut off at 72 tokens, 72 tokens in a loop of 1" in printed.replace("\n", " ")
    assert "loop=20 2 of 2" in printed
    assert "\x1b[30;43m" in screen(found, force_terminal=True, color_system="standard")  # black on yellow


def test_an_answer_cannot_control_the_terminal():
    assert visible("a\x1b[2Jb\x07\r\n\tc\u202e") == "a\ufffd[2Jb\ufffd\n    c\ufffd"
    assert shaded(["\x1b]0;x", "y"], [1.0, 0.0]).plain == "\ufffd]0;xy"


def test_many_empty_lines_are_counted():
    piece = Piece("end" + "\n" * 90 + "again", ("loop",))
    shown = answer_text(ShownAnswer("", True, "", (piece,), 0, 0))
    assert shown.plain == "end\n[90 empty lines]\nagain"


def test_the_sampling_leaves_no_hook_behind(model, tokenizer, features, questions, sampling):
    answer_side_by_side(model, tokenizer, features, {"loop": 1.0}, questions, sampling)
    assert not any(module._forward_hooks for module in model.modules())
    assert torch.is_grad_enabled()
