import torch

from sae_posttrain.features.find import loop_scores
from sae_posttrain.features.read import statistics
from sae_posttrain.features.read.statistics import GroupSums
from sae_posttrain.precision import widest_float, without_autocast
from sae_posttrain.rl import metrics
from sae_posttrain.rl.metrics import loss_sums


def test_sums_are_kept_in_the_most_exact_type_of_a_device():
    assert [widest_float(device) for device in ("cpu", "cuda:1", "meta")] == [torch.float64] * 3
    assert widest_float("mps") == widest_float(torch.device("mps")) == torch.float32


def test_autocast_is_left_alone_where_a_device_has_none():
    with torch.autocast("cpu", torch.bfloat16), without_autocast("cpu"):
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.float32
    with without_autocast("meta"):
        pass


def test_no_sum_asks_for_a_type_that_the_device_lacks(monkeypatch):
    for module in (statistics, loop_scores, metrics):
        monkeypatch.setattr(module, "widest_float", lambda device: torch.float32)
    sums = GroupSums.zeros(2, 3, torch.device("cpu"))
    assert {each.dtype for each in (sums.num_tokens, sums.activation, sums.pre, sums.pre_squared)} == {torch.float32}
    mask, advantages = torch.ones(2, 3, dtype=torch.bool), torch.ones(2)
    assert loss_sums(mask, advantages, torch.tensor([True, False])).dtype == torch.float32
