import math

import pytest
import torch

from sae_posttrain.baselines.unlikelihood.loss import log_one_minus, loop_mask, repeated_ngram_mask


def marked(token_ids, n=4) -> str:
    return "".join("x" if bit else "." for bit in repeated_ngram_mask(token_ids, n))


def test_tokens_of_an_ngram_that_was_there_before_are_marked():
    assert marked("abcdefabcdgh") == "......xxxx.."
    assert marked("abcabc", n=3) == "...xxx"  # the last n-gram counts too
    assert marked("abcabd", n=3) == "......"
    assert marked("aaaaaa") == ".xxxxx"  # an n-gram may overlap itself
    assert marked("abc") == "..."
    assert marked("") == ""


def test_ngram_of_no_tokens_is_refused():
    with pytest.raises(ValueError, match="1 token or more, got `n=0`"):
        repeated_ngram_mask([1, 2], 0)


def test_loop_is_marked_from_its_second_cycle_on_and_nothing_else_is():
    text, loop = list(range(100, 120)), [1, 2, 3, 4] * 20
    assert loop_mask(text + loop, finished=False) == [False] * 24 + [True] * 76
    assert loop_mask(text + [1, 2, 3, 4] * 3, finished=False) == [False] * 32  # said thrice is no loop
    assert loop_mask([], finished=True) == []


def test_unlikelihood_is_log_of_one_minus_p_with_its_gradient():
    log_probs = torch.tensor([-3.0, -0.7, -1e-3], requires_grad=True)
    values = log_one_minus(log_probs)
    assert values.tolist() == pytest.approx([math.log(1 - math.exp(x)) for x in (-3.0, -0.7, -1e-3)], rel=1e-4)
    values.sum().backward()
    # d log(1 - p) / d log p = -p / (1 - p)
    expected = [-math.exp(x) / (1 - math.exp(x)) for x in (-3.0, -0.7, -1e-3)]
    assert log_probs.grad.tolist() == pytest.approx(expected, rel=1e-4)


def test_token_as_good_as_certain_still_has_a_gradient_and_a_finite_loss():
    log_probs = torch.tensor([0.0, -1e-9], requires_grad=True)
    values = log_one_minus(log_probs)
    assert values.tolist() == pytest.approx([math.log(1e-6)] * 2, rel=1e-3)
    values.sum().backward()
    assert log_probs.grad.tolist() == pytest.approx([-1e6, -1e6], rel=1e-2)
