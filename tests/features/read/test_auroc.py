import pytest
import torch
from scipy.stats import mannwhitneyu

from sae_posttrain.features.read.auroc import auroc


def test_auroc_is_that_of_mann_and_whitney_also_with_ties():
    random = torch.Generator().manual_seed(0)
    scores = torch.randint(0, 5, (30, 6), generator=random).float()  # five values: many ties
    positive = torch.rand(30, generator=random) < 0.4
    num_pairs = int(positive.sum()) * int((~positive).sum())
    expected = [mannwhitneyu(s[positive], s[~positive]).statistic / num_pairs for s in scores.T.double().numpy()]
    assert auroc(scores, positive).tolist() == pytest.approx(expected, abs=1e-6)


def test_auroc_of_a_perfect_a_reversed_and_a_blind_score():
    scores = torch.tensor([[3.0, 0.0, 1.0], [2.0, 1.0, 1.0], [1.0, 2.0, 1.0], [0.0, 3.0, 1.0]])
    assert auroc(scores, torch.tensor([True, True, False, False])).tolist() == [1.0, 0.0, 0.5]


@pytest.mark.parametrize("positive", [True, False])
def test_auroc_of_one_class_is_an_error(positive):
    with pytest.raises(ValueError, match="needs positives and negatives, got"):
        auroc(torch.zeros(3, 2), torch.full((3,), positive))
