import pytest
import torch

from sae_posttrain.rl.advantages import floor_weights, group_advantages, total_reward, truncated_weights

ALL = torch.ones(4, dtype=torch.bool)
STEERED = torch.tensor([False, False, False, True])


def advantages(rewards, in_baseline=ALL, in_group=ALL, **settings):
    found = group_advantages(torch.tensor(rewards), 4, in_baseline=in_baseline, in_group=in_group, **settings)
    return found.tolist()


def test_over_the_whole_group_it_is_grpos_advantage():
    # mean 0, deviations 1 1 1 -3, variance (1 + 1 + 1 + 9) / 3 = 4, standard deviation 2
    assert advantages([1.0, 1.0, 1.0, -3.0]) == pytest.approx([0.5, 0.5, 0.5, -1.5], abs=1e-3)


def test_a_plain_baseline_leaves_plain_rollouts_alone_and_keeps_the_groups_scale():
    # plain mean 1, standard deviation of the group 2 as above
    assert advantages([1.0, 1.0, 1.0, -3.0], in_baseline=~STEERED) == pytest.approx([0, 0, 0, -2.0], abs=1e-3)


def test_dropped_rollouts_count_neither_in_the_mean_nor_in_the_scale():
    # mean of 0 0 3 is 1, deviations -1 -1 2, variance 6 / 2 = 3
    found = advantages([0.0, 0.0, 3.0, -100.0], in_group=~STEERED)
    assert found == pytest.approx([-(3**-0.5), -(3**-0.5), 2 * 3**-0.5, 0.0], abs=1e-3)


def test_rollouts_without_a_reward_have_no_advantage():
    found = advantages([1.0, float("nan"), 3.0, float("nan")], scale_rewards="none")
    assert found == [-1.0, 0.0, 1.0, 0.0]


def test_a_rollout_alone_has_no_advantage():
    alone = torch.tensor([True, False, False, False])
    assert advantages([1.0, 2.0, 3.0, 4.0], in_group=alone) == [0.0] * 4


def test_scale_over_the_batch_and_none():
    rewards, whole = torch.tensor([0.0, 2.0, 4.0, 6.0]), torch.ones(4, dtype=torch.bool)

    def of_pairs(scale):
        return group_advantages(rewards, 2, scale_rewards=scale, in_baseline=whole, in_group=whole).tolist()

    assert of_pairs("none") == [-1.0, 1.0, -1.0, 1.0]
    std = (20 / 3) ** 0.5  # deviations from 3: 9 + 1 + 1 + 9
    assert of_pairs("batch") == pytest.approx([-1 / std, 1 / std, -1 / std, 1 / std], abs=1e-3)
    with pytest.raises(ValueError, match="must be 'group', 'batch' or 'none', got 'row'"):
        of_pairs("row")


def test_total_reward_leaves_out_what_has_nothing_to_say():
    rewards = torch.tensor([[1.0, 2.0], [float("nan"), 2.0], [float("nan"), float("nan")]])
    total = total_reward(rewards, torch.tensor([1.0, 0.5]))
    assert total[:2].tolist() == [2.0, 1.0] and total[2].isnan()


def test_off_policy_weights():
    policy, steered = torch.tensor([[0.1, 0.5, 0.00001]]).log(), torch.tensor([[0.4, 0.25, 0.9]]).log()
    # 0.1 / 0.4 = 0.25; 0.5 / 0.25 = 2, cut at 1; 1e-5 / 0.9
    assert truncated_weights(policy, steered, 1.0)[0].tolist() == pytest.approx([0.25, 1.0, 1.1111e-5], rel=1e-3)
    assert truncated_weights(policy, steered, 3.0)[0].tolist() == pytest.approx([0.25, 2.0, 1.1111e-5], rel=1e-3)
    assert floor_weights(policy, 1e-4).tolist() == [[1.0, 1.0, 0.0]]
