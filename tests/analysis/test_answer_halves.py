"""Answers to one prompt and copies of a text stay in one half, and both halves hold both kinds."""

import pytest

from sae_posttrain.analysis.answer_halves import divide_in_halves
from sae_posttrain.analysis.answers import read_answers


def answers_to(num_prompts):
    bad = [{"prompt": f"question {i}", "completion": f"bad {i}"} for i in range(num_prompts)]
    good = [{"prompt": f"question {i}", "completion": f"good {i}"} for i in range(num_prompts)]
    return bad, good


def test_halves_hold_both_kinds_and_keep_prompts_and_copies_together():
    bad, good = answers_to(10)
    good[3]["prompt"] = bad[7]["prompt"]
    answers = read_answers(bad, good)
    keys = [str(i) for i in range(20)]
    keys[0] = keys[15]  # a copy
    held = divide_in_halves(answers, keys, seed=0)
    assert held[0] == held[15]
    side = {}
    for answer, is_held in zip(answers, held):
        assert side.setdefault(answer.pair, is_held) == is_held
    for kind in (True, False):
        assert 3 <= sum(h for h, answer in zip(held, answers) if answer.bad == kind) <= 7


def test_answers_to_too_few_prompts_are_refused():
    bad, good = answers_to(2)
    for row in bad + good:
        row["prompt"] = "the same"
    with pytest.raises(ValueError, match="There are 1 such groups; give answers to more prompts"):
        divide_in_halves(read_answers(bad, good), ["a", "b", "c", "d"], seed=0)
