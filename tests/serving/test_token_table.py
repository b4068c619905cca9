import numpy as np
import pytest

from sae_posttrain.serving.token_table import SteeredRequest, TokenTable


def push(*strengths, start):
    return SteeredRequest(np.array(strengths, dtype=np.float32), start)


def coefficients(table, batch):
    """Of a batch of `(id, computed before, tokens in this step)`; one push."""
    counts = [count for _, _, count in batch]
    starts = np.concatenate([[0], np.cumsum(counts)])
    found = table.coefficients([name for name, _, _ in batch], starts, np.array([c for _, c, _ in batch]), sum(counts))
    return None if found is None else found[:, 0].tolist()


def test_a_prompt_is_pushed_from_its_last_token_on():
    table = TokenTable(1)
    table.add("a", push(2.0, start=2))  # a prompt of three tokens
    assert coefficients(table, [("a", 0, 3)]) == [0.0, 0.0, 2.0]
    assert coefficients(table, [("a", 3, 1)]) == [2.0]


def test_a_prompt_read_in_chunks_is_pushed_in_the_last_one_only():
    table = TokenTable(1)
    table.add("a", push(1.0, start=4))
    assert coefficients(table, [("a", 0, 2)]) is None
    assert coefficients(table, [("a", 2, 2)]) is None
    assert coefficients(table, [("a", 4, 1)]) == [1.0]


def test_a_preempted_request_is_pushed_again_where_it_was_pushed_before():
    table = TokenTable(1)
    table.add("a", push(1.0, start=1))
    # a prompt of two tokens and three answered ones, computed again in one step
    assert coefficients(table, [("a", 0, 5)]) == [0.0, 1.0, 1.0, 1.0, 1.0]
    # and again from the cache's block boundary in the middle of the answer
    assert coefficients(table, [("a", 3, 2)]) == [1.0, 1.0]


def test_each_request_has_its_own_strength_in_any_order_of_the_batch():
    table = TokenTable(1)
    table.add("a", push(1.0, start=0))
    table.add("c", push(-3.0, start=1))
    batch = [("c", 0, 2), ("b", 7, 1), ("a", 5, 1)]
    assert coefficients(table, batch) == [0.0, -3.0, 0.0, 1.0]
    assert coefficients(table, batch[::-1]) == [1.0, 0.0, 0.0, -3.0]


def test_several_pushes_have_a_column_each():
    table = TokenTable(2)
    table.add("a", push(1.0, 0.0, start=0))
    table.add("b", push(0.5, -2.0, start=0))
    found = table.coefficients(["b", "a"], np.array([0, 1, 2]), np.array([4, 4]), 2)
    assert found.tolist() == [[0.5, -2.0], [1.0, 0.0]]
    assert found.dtype == np.float32


def test_a_finished_or_replaced_request_is_not_pushed_any_more():
    table = TokenTable(1)
    table.add("a", push(1.0, start=0))
    table.add("a", push(2.0, start=0))
    assert coefficients(table, [("a", 0, 1)]) == [2.0]
    table.remove("a")
    table.remove("never seen")
    assert coefficients(table, [("a", 0, 1)]) is None
    assert len(table) == 0


def test_every_split_of_a_request_into_steps_pushes_the_same_positions():
    table = TokenTable(1)
    table.add("a", push(1.0, start=3))
    for cut in range(1, 9):
        first = coefficients(table, [("x", 0, 2), ("a", 0, cut)]) or [0.0] * (2 + cut)
        second = coefficients(table, [("a", cut, 9 - cut)]) or [0.0] * (9 - cut)
        assert first[2:] + second == [0.0] * 3 + [1.0] * 6


def test_strengths_that_do_not_fit_and_negative_starts_are_refused():
    with pytest.raises(ValueError, match="for 2 pushes"):
        TokenTable(2).add("a", push(1.0, start=0))
    with pytest.raises(ValueError, match="counted from 0"):
        TokenTable(1).add("a", push(1.0, start=-1))
