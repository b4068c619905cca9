import pytest
import torch

from sae_posttrain.measure.faults.fault import is_endless
from sae_posttrain.rl.rollouts import (
    cut_loops,
    rows_in_step,
    show_fault,
    steered_positions,
    steered_slots,
    without_end,
)

END = 1


def test_last_rollouts_of_each_group_are_steered():
    assert steered_slots(8, 0, 4, 1).tolist() == [False, False, False, True] * 2
    assert steered_slots(4, 0, 4, 3).tolist() == [False, True, True, True]
    assert not steered_slots(8, 0, 4, 0).any()


def test_a_group_may_lie_across_processes():
    # Groups of 4 over processes of 6 rows: process 0 holds slots 0123 01, process 1 holds 23 0123.
    assert steered_slots(6, 0, 4, 1).tolist() == [False, False, False, True, False, False]
    assert steered_slots(6, 1, 4, 1).tolist() == [False, True, False, False, False, True]


def test_the_end_token_is_taken_off():
    assert without_end([5, 6, END], {END, 2}) == ([5, 6], True)
    assert without_end([5, 6], {END}) == ([5, 6], False)
    assert without_end([END], {END}) == ([], True)


def test_the_default_fault_is_an_endless_loop():
    loop = [5, 6] * 40
    assert show_fault(is_endless, [loop, [*loop, END], list(range(80))], {END}).tolist() == [
        True,
        False,
        False,
    ]


def test_a_loop_is_cut_after_its_first_periods():
    # Three tokens, then [5, 6] 40 times: the loop begins at 3, two periods end at 3 + 2·2 = 7.
    looping = [7, 8, 9] + [5, 6] * 40
    ids = torch.tensor([looping, looping, [*looping[:-1], END], list(range(10, 93))])
    mask = torch.ones_like(ids)
    rows = torch.tensor([True, False, True, True])
    cut = cut_loops(ids, mask, rows, 2, {END})
    assert cut.sum(dim=1).tolist() == [7, 83, 83, 83]  # not asked for, ended, and no loop: whole
    assert cut[0, :7].all()
    assert mask.all()


def test_cutting_does_not_count_the_padding():
    ids = torch.tensor([[5] * 70 + [0] * 10])
    mask = torch.tensor([[1] * 70 + [0] * 10])
    assert cut_loops(ids, mask, torch.tensor([True]), 4, {END}).tolist() == [[1] * 4 + [0] * 76]


@pytest.mark.parametrize(("positions", "first"), [("generated", 2), ("all", 0)])
def test_pushed_positions_begin_where_the_first_generated_token_is_predicted(positions, first):
    mask = steered_positions(positions, 3, torch.ones(2, 7))
    assert mask.shape == (2, 7) and mask[:, first:].all() and not mask[:, :first].any()


def test_processes_make_equally_large_steered_passes():
    # Groups of 4 over two processes of 2 rows: only the second holds a steered one.
    none, one = torch.tensor([False, False]), torch.tensor([False, True])
    assert rows_in_step(none, 0, 2, 4, 1).tolist() == [0]
    assert rows_in_step(one, 1, 2, 4, 1).tolist() == [1]
    assert rows_in_step(torch.tensor([False, False, False, True]), 0, 1, 4, 1).tolist() == [3]
