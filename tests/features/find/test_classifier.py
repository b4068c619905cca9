import logging
import math

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from scipy.special import expit
from torch.nn.functional import cosine_similarity

from sae_posttrain.features.find.classifier import balanced_weights, fit_probe, fit_probes


@pytest.fixture
def classes():
    """Overlapping classes of 100 and 60 tokens in 6 coordinates of unlike scales and offsets."""
    normal = torch.Generator().manual_seed(0)
    positive = torch.arange(160) < 60
    x = torch.randn(160, 6, generator=normal)
    x[positive] += torch.tensor([1.0, -1.0, 0.5, 0.0, 0.0, 0.0])
    x = x * torch.tensor([1.0, 10.0, 0.1, 3.0, 1.0, 50.0]) + torch.tensor([0.0, 100.0, 0.0, -7.0, 2.0, 0.0])
    return x, positive, balanced_weights((~positive).long(), 0)


def test_probe_is_the_minimum_that_scipy_finds(classes):
    x, positive, weight = classes
    l2 = 0.01
    row, bias = fit_probe(x, positive, weight, l2=l2)
    data, weights, label = x.double().numpy(), weight.numpy(), positive.numpy().astype(float)
    mean = weights @ data
    scale = np.sqrt(weights @ (data - mean) ** 2)
    z = (data - mean) / scale

    def loss(parameters):
        logit = z @ parameters[:-1] + parameters[-1]
        likelihood = label * np.log(expit(logit)) + (1 - label) * np.log(expit(-logit))
        return -(weights * likelihood).sum() + l2 / 2 * (parameters[:-1] ** 2).sum()

    best = minimize(loss, np.zeros(7), tol=1e-10).x
    expected = data @ (best[:-1] / scale) + best[-1] - mean @ (best[:-1] / scale)
    logits = (x.double() @ row + bias).numpy()
    assert logits == pytest.approx(expected, abs=2e-3)
    assert np.abs(expected).max() > 3


def test_probe_recovers_the_direction_of_two_clouds():
    normal = torch.Generator().manual_seed(1)
    planted = torch.sign(torch.randn(32, generator=normal))
    positive = torch.arange(400) % 2 == 0
    x = 5 + torch.randn(400, 32, generator=normal) + 0.5 * positive[:, None] * planted
    row, bias = fit_probe(x, positive, torch.full((400,), 1 / 400), l2=0.1)
    assert cosine_similarity(row, planted.double(), dim=0) > 0.9
    logits = x.double() @ row + bias
    assert logits[positive].mean() > 1 > -1 > logits[~positive].mean()


def test_coordinate_that_does_not_vary_is_left_alone(classes):
    x, positive, weight = classes
    x = torch.cat([x, torch.full((160, 1), 1e4)], dim=1)
    row, _ = fit_probe(x, positive, weight, l2=0.01)
    assert row[-1] == 0 and row.isfinite().all()


def test_further_probes_stand_at_right_angles_and_are_fitted_on_what_is_left(classes):
    x, positive, weight = classes
    rows, biases = fit_probes(x, positive, weight, 3, l2=0.01)
    first, bias = fit_probe(x, positive, weight, l2=0.01)
    assert rows[0].equal(first) and biases[0] == bias
    unit = torch.nn.functional.normalize(rows, dim=1)
    torch.testing.assert_close(unit @ unit.T, torch.eye(3, dtype=torch.float64), rtol=0, atol=1e-9)
    left = x.double() - (x.double() @ unit[0])[:, None] * unit[0]
    second, bias = fit_probe(left, positive, weight, l2=0.01)
    torch.testing.assert_close(left @ second + bias, x.double() @ rows[1] + biases[1])


def test_groups_weigh_the_same_however_many_tokens_they_have():
    groups = torch.tensor([0, 0, 0, 2, 1, 1, 1, 1, 2])
    weight = balanced_weights(groups, target=2)
    assert weight.sum() == pytest.approx(1)
    assert [float(weight[groups == group].sum()) for group in (0, 1, 2)] == pytest.approx([0.25, 0.25, 0.5])
    assert len(weight[groups == 1].unique()) == 1


def test_probe_that_cannot_be_fitted_is_refused(classes, caplog, monkeypatch):
    x, positive, weight = classes
    with pytest.raises(ValueError, match="`l2` must be above 0, got 0"):
        fit_probe(x, positive, weight, l2=0)
    with pytest.raises(ValueError, match="tokens of both classes; all 160 are of one"):
        fit_probe(x, torch.ones(160, dtype=torch.bool), weight, l2=1)
    with pytest.raises(ValueError, match="tokens of the target group and of another"):
        balanced_weights(torch.zeros(4, dtype=torch.long), target=0)
    with pytest.raises(ValueError, match="A place of width 6 has 1 to 6 probes at right angles: 7"):
        fit_probes(x, positive, weight, 7, l2=1)
    with pytest.raises(ValueError, match="After 1 probes nothing is left"):
        fit_probes(torch.cat([x[:, :1], torch.ones(160, 1)], dim=1), positive, weight, 2, l2=1)
    assert not caplog.records
    monkeypatch.setattr("sae_posttrain.features.find.classifier._MAX_ITERATIONS", 1)
    with caplog.at_level(logging.WARNING, "sae_posttrain"):
        row, _ = fit_probe(x, positive, weight, l2=1e-6)
    assert "not fitted to the end" in caplog.text and math.isfinite(row.norm())
