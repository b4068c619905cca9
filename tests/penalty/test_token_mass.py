"""Probability of a set of tokens, tile by tile, against the softmax of all logits at once."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from sae_posttrain.penalty.token_mass import tile_size, token_mass

IDS = torch.tensor([1, 4, 5])


def tensors(num=11, width=3, vocab=7, dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    shapes = [(num, width), (vocab, width), (vocab,)]
    return [torch.randn(shape, generator=generator, dtype=dtype).requires_grad_() for shape in shapes]


def mass(hidden, weight, bias, tokens_per_tile=4, ids=IDS):
    def project(tile):
        return 3.0 * torch.tanh(torch.nn.functional.linear(tile, weight, bias) / 3.0)

    return token_mass(hidden, project, ids, tokens_per_tile=tokens_per_tile)


def whole(hidden, weight, bias, ids=IDS):
    logits = 3.0 * torch.tanh((hidden @ weight.T + bias) / 3.0)
    return logits.softmax(dim=-1)[:, ids].sum(dim=-1)


@pytest.mark.parametrize("tokens_per_tile", [1, 4, 11, 100])
def test_mass_and_all_its_gradients_are_those_of_the_full_softmax(tokens_per_tile):
    tiled, full = tensors(), tensors()
    upstream = torch.linspace(-1, 1, 11, dtype=torch.float64)
    found, expected = mass(*tiled, tokens_per_tile), whole(*full)
    (found * upstream).sum().backward()
    (expected * upstream).sum().backward()
    assert torch.allclose(found, expected)
    for one, other in zip(tiled, full):
        assert torch.allclose(one.grad, other.grad)


def test_gradients_are_those_of_finite_differences():
    assert torch.autograd.gradcheck(mass, tuple(tensors()))


def test_only_what_is_trained_gets_a_gradient():
    hidden, weight, bias = tensors()
    frozen = weight.detach()
    mass(hidden, frozen, bias.detach()).sum().backward()
    assert hidden.grad is not None and frozen.grad is None
    mass(hidden.detach(), weight, bias).sum().backward()  # a head that is trained alone
    assert weight.grad is not None and bias.grad is not None


def test_weight_that_is_shared_with_the_embeddings_gets_both_gradients():
    _, weight, bias = tensors()
    tied, apart = weight.detach().clone().requires_grad_(), [weight.detach().clone().requires_grad_() for _ in "ab"]
    tokens = torch.arange(7)
    mass(tied[tokens], tied, bias).sum().backward()
    mass(apart[0][tokens], apart[1], bias).sum().backward()
    assert torch.allclose(tied.grad, apart[0].grad + apart[1].grad)


def test_no_positions_have_no_mass():
    hidden, weight, bias = tensors(num=0)
    found = mass(hidden, weight, bias)
    assert found.shape == (0,)
    found.sum().backward()
    assert not weight.grad.any()


def test_autocast_does_not_round_the_arithmetic():
    some = tensors(dtype=torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rounded = mass(*some)
    assert rounded.dtype == torch.float32
    assert torch.equal(rounded, mass(*some))


def test_small_probabilities_keep_their_gradient():
    """As a ratio of rounded sums a probability of 1e-30 would be 0, and could not be pushed down."""
    hidden = torch.tensor([[1.0]], requires_grad=True)
    weight = torch.tensor([[0.0], [-70.0]])
    found = token_mass(hidden, lambda tile: tile @ weight.T, torch.tensor([1]), tokens_per_tile=1)
    assert found.item() == pytest.approx(3.98e-31, rel=1e-2)  # exp(-70)
    found.sum().backward()
    assert hidden.grad.item() == pytest.approx(-70 * found.item(), rel=1e-3)


class Largest(TorchDispatchMode):
    """Elements of the largest tensor that any operation makes."""

    numel = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for each in result if isinstance(result, (tuple, list)) else [result]:
            if isinstance(each, torch.Tensor):
                self.numel = max(self.numel, each.numel())
        return result


def test_no_tensor_of_all_logits_is_made_in_forward_or_backward():
    num, width, vocab = 256, 4, 100
    with Largest() as tiled:
        mass(*tensors(num, width, vocab), tokens_per_tile=8).sum().backward()
    with Largest() as full:
        whole(*tensors(num, width, vocab)).sum().backward()
    assert full.numel >= num * vocab
    assert tiled.numel == max(8 * vocab, num * width)


def test_a_tile_holds_fewer_positions_the_larger_the_vocabulary():
    assert tile_size(2**16) == 1024
    assert tile_size(2**30) == 1
