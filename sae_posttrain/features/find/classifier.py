"""
Logistic probes: the directions along which a linear classifier tells the tokens of one group from the rest.

Shape suffixes: N tokens, D width, P probes.
"""

import logging

import torch
from torch import Tensor
from torch.nn.functional import softplus

logger = logging.getLogger(__name__)

_MAX_ITERATIONS = 1000
_LARGEST_GRADIENT = 1e-4  # of an optimum that counts as found; the loss starts at log 2
_FLAT = 1e-7  # a coordinate whose deviation is this share of the largest does not vary


def fit_probe(x: Tensor, positive: Tensor, weight: Tensor, *, l2: float) -> tuple[Tensor, Tensor]:
    """
    L2-regularised logistic regression of `positive` `(N,)` on standardised coordinates of `x` `(N, D)`, given back in
    its units: `w` `(D,)` and `b` `()`, float64, so that the logit of `x` is `x · w + b`.

    Minimises `Σ weight · log(1 + exp(∓(z · v + c))) + l2 / 2 · ‖v‖²` over `v` and `c` by L-BFGS in float64, where `z =
    (x − mean) / std` under the weights, which sum to 1; the intercept is free. The regression of scikit-learn with its
    strength `C` and N tokens of equal weight has `l2 = 1 / (C · N)`. Without `l2`, classes that can be told apart have
    no optimum.
    """
    if not l2 > 0:
        raise ValueError(f"`l2` must be above 0, got {l2}.")
    if bool(positive.all()) or not bool(positive.any()):
        raise ValueError(f"A probe needs tokens of both classes; all {len(positive)} are of one.")
    x_ND, weight_N = x.double(), weight.double()
    mean_D = weight_N @ x_ND
    z_ND = x_ND - mean_D
    std_D = (weight_N @ z_ND.square()).sqrt()
    scale_D = torch.where(std_D > _FLAT * std_D.max(), std_D, torch.inf)
    z_ND /= scale_D
    sign_N = torch.where(positive, -1.0, 1.0).double()
    v_D = torch.zeros(x.shape[1], dtype=torch.float64, device=x.device, requires_grad=True)
    c = torch.zeros((), dtype=torch.float64, device=x.device, requires_grad=True)
    search = torch.optim.LBFGS(
        [v_D, c],
        max_iter=_MAX_ITERATIONS,
        history_size=20,
        tolerance_grad=1e-6,
        tolerance_change=1e-11,
        line_search_fn="strong_wolfe",
    )

    def loss_and_gradient() -> Tensor:
        search.zero_grad()
        loss = (weight_N * softplus(sign_N * (z_ND @ v_D + c))).sum() + l2 / 2 * v_D.square().sum()
        loss.backward()
        return loss

    with torch.enable_grad():
        search.step(loss_and_gradient)
        loss_and_gradient()
    gradient = max(float(each.grad.abs().max()) for each in (v_D, c) if each.grad is not None)
    if gradient > _LARGEST_GRADIENT:
        logger.warning("The probe is not fitted to the end (gradient %.1e). A larger `l2` is easier to fit.", gradient)
    w_D = v_D.detach() / scale_D
    return w_D, c.detach() - w_D @ mean_D


def fit_probes(x: Tensor, positive: Tensor, weight: Tensor, num_probes: int, *, l2: float) -> tuple[Tensor, Tensor]:
    """
    Several probes at right angles, each fitted as by [`fit_probe`] on what the ones before it cannot read: rows `(P,
    D)` and biases `(P,)`, float64, for the `x` that was given.

    Iterative nullspace projection (https://huggingface.co/papers/2004.07667): after each fit, what lies along its
    direction is projected out of `x`.
    """
    if not 1 <= num_probes <= x.shape[1]:
        raise ValueError(f"A place of width {x.shape[1]} has 1 to {x.shape[1]} probes at right angles: {num_probes}?")
    left_ND = x.double()
    rows, biases, basis = [], [], torch.zeros(x.shape[1], 0, dtype=torch.float64, device=x.device)
    for number in range(num_probes):
        w_D, b = fit_probe(left_ND, positive, weight, l2=l2)
        w_D = w_D - basis @ (basis.T @ w_D)  # the projection of `x` is that of the row
        length = w_D.norm()
        if not bool(length > 0):
            raise ValueError(f"After {number} probes nothing is left that tells the groups apart. Ask for fewer.")
        rows.append(w_D)
        biases.append(b)
        if len(rows) < num_probes:
            unit_D = w_D / length
            basis = torch.cat([basis, unit_D[:, None]], dim=1)
            left_ND = left_ND - (left_ND @ unit_D)[:, None] * unit_D
    return torch.stack(rows), torch.stack(biases)


def balanced_weights(groups: Tensor, target: int) -> Tensor:
    """
    Weight of each token, `(N,)`: the target's together have 1/2, the other groups' the other half in equal parts. So a
    group weighs the same however many tokens it has, as in monolinguality.
    """
    present, number_N, size_G = groups.unique(return_inverse=True, return_counts=True)
    is_target = present == target
    if not bool(is_target.any()) or len(present) < 2:
        raise ValueError("A probe needs tokens of the target group and of another.")
    share_G = torch.where(is_target, 0.5, 0.5 / (len(present) - 1)).double()
    return (share_G / size_G)[number_N]
