import pytest
import torch

from sae_posttrain.penalty.loss import excess, excess_sum, pre_activations

DOWN = torch.ones(2)


def test_penalty_counts_only_the_height_above_the_level():
    pre_acts = torch.tensor([[[3.0, -1.0], [0.5, 9.0]]])  # B=1, T=2, F=2
    mask = torch.tensor([[True, False]])  # the second token is prompt
    ones = torch.ones_like(pre_acts)
    # first token: relu(3 - 1) = 2 and relu(-1 - 1) = 0, mean 1
    assert excess_sum(excess(pre_acts, ones, ones, DOWN, 0.0), mask).item() == 1.0


def test_level_below_zero_leaves_less_room_than_zero():
    pre_acts = torch.tensor([[[-1.0, -1.0]]])
    level = torch.full_like(pre_acts, -3.0)
    ones = torch.ones_like(pre_acts)
    # -1 is 2 above the mean -3, although a ReLU at zero would see nothing
    assert excess(pre_acts, level, ones, DOWN, 0.0).tolist() == [[[2.0, 2.0]]]


def test_margin_and_scale_share_a_unit():
    pre_acts = torch.tensor([[[7.0, 3.0]]])
    level = torch.tensor([[[1.0, 1.0]]])
    scale = torch.tensor([[[2.0, 2.0]]])
    # (7 - 1) / 2 - 1.5 = 1.5 standard deviations; (3 - 1) / 2 - 1.5 < 0
    assert excess(pre_acts, level, scale, DOWN, 1.5).tolist() == [[[1.5, 0.0]]]


def test_feature_held_up_pays_for_being_low():
    pre_acts = torch.tensor([[[0.0, 0.0]]])
    level = torch.tensor([[[2.0, -2.0]]])
    up = torch.tensor([-1.0, -1.0])
    # 2 below its level, and 2 above its level (free)
    assert excess(pre_acts, level, torch.ones_like(level), up, 0.0).tolist() == [[[2.0, 0.0]]]


def test_no_counted_token_gives_zero_with_a_gradient_of_zero():
    residual = torch.randn(1, 3, 8, requires_grad=True)
    pre = pre_activations(residual, torch.randn(2, 8), torch.randn(2))
    ones = torch.ones_like(pre)
    total = excess_sum(excess(pre, 0 * ones, ones, DOWN, 0.0), torch.zeros(1, 3, dtype=torch.bool))
    total.backward()
    assert total.item() == 0.0
    assert not residual.grad.any()


def test_pre_activations_are_float32_whatever_the_residual_is():
    residual = torch.randn(2, 5, 64).bfloat16()
    rows, bias = torch.randn(3, 64), torch.randn(3)
    expected = residual.double() @ rows.double().T + bias
    with torch.autocast("cpu", torch.bfloat16):
        actual = pre_activations(residual, rows, bias)
    assert actual.dtype == torch.float32
    assert torch.allclose(actual.double(), expected, atol=1e-4)


def test_tiles_do_not_change_the_result(monkeypatch):
    residual, rows, bias = torch.randn(3, 7, 16), torch.randn(2, 16), torch.randn(2)
    whole = pre_activations(residual, rows, bias)
    monkeypatch.setattr("sae_posttrain.penalty.loss._TOKENS_PER_TILE", 4)
    assert torch.allclose(whole, pre_activations(residual, rows, bias), atol=1e-6)


def test_shapes_that_do_not_fit_are_errors():
    pre = torch.zeros(1, 2, 3)
    with pytest.raises(ValueError, match=r"`level` has shape \(1, 2, 1\)"):
        excess(pre, torch.zeros(1, 2, 1), pre, torch.ones(3), 0.0)
    with pytest.raises(ValueError, match=r"`mask` has shape \(1, 3\)"):
        excess_sum(pre, torch.zeros(1, 3))
