"""The k largest of each row against `topk`."""

import pytest
import torch

from sae_posttrain.saes.largest import largest


@pytest.mark.parametrize("shape", [(5, 64), (3, 2, 256), (4, 61), (0, 128)])
@pytest.mark.parametrize("k", [1, 2, 8, 60])
def test_it_finds_what_topk_finds(shape, k):
    values = torch.randn(shape, generator=torch.Generator().manual_seed(k))
    found, places = largest(values, k)
    expected = values.topk(k)
    assert torch.equal(found, expected.values) and torch.equal(places, expected.indices)
    found, places = largest(values, k, sort=False)
    assert torch.equal(found.sort(descending=True).values, expected.values)
    assert torch.equal(values.gather(-1, places), found)


def test_columns_that_hold_several_of_the_largest_and_equal_values():
    values = torch.zeros(1, 64)
    values[0, [3, 11, 19, 60]] = torch.tensor([4.0, 5.0, 6.0, torch.inf])  # 3, 11 and 19 share a column
    found, places = largest(values, 2)
    assert found.tolist() == [[torch.inf, 6.0]] and places.tolist() == [[60, 19]]
    found, places = largest(torch.zeros(2, 64), 2)
    assert (found == 0).all() and (places[:, 0] != places[:, 1]).all()


def test_gradients_reach_the_largest():
    values = torch.arange(64.0, requires_grad=True)
    largest(values, 2)[0].sum().backward()
    assert values.grad.nonzero().flatten().tolist() == [62, 63]
