import pytest
import torch
from trl.rewards import get_repetition_penalty_reward, get_soft_overlong_punishment, think_format_reward

from sae_posttrain.rl.blind_reward import BlindRewardCheck, sees_repetition

STEERED = torch.tensor([False, False, True])


def update(check, rewards, faulty=(False, False, True)):
    check.update(torch.tensor(rewards), STEERED, torch.tensor(faulty), 3)


def test_groups_in_a_row_without_a_lower_reward_stop_training():
    check = BlindRewardCheck(3, ["length", "style"])
    update(check, [0.0, 1.0, 0.5])
    update(check, [0.0, 1.0, 0.9])
    with pytest.raises(ValueError, match="last 3 prompts .* rewards \\(length, style\\) do not see the fault"):
        update(check, [0.0, 0.0, 0.0])


def test_one_lower_reward_clears_the_count():
    check = BlindRewardCheck(2, ["r"])
    for _ in range(3):
        update(check, [0.0, 1.0, 1.0])
        update(check, [0.0, 1.0, 0.4])
    assert check.num_blind == 0


def test_groups_that_say_nothing_do_not_count():
    check = BlindRewardCheck(1, ["r"])
    update(check, [0.0, 1.0, 1.0], faulty=(False, False, False))  # the steered rollout missed
    update(check, [-1.0, -1.0, -1.0], faulty=(True, True, True))  # the plain ones are as bad
    update(check, [0.0, 1.0, float("nan")])
    update(check, [float("nan"), float("nan"), 1.0])
    assert check.num_blind == 0


def test_patience_of_zero_never_stops():
    check = BlindRewardCheck(0, ["r"])
    for _ in range(100):
        update(check, [0.0, 0.0, 0.0])


def test_known_rewards_and_those_that_say_so_see_repetition():
    def mine(**kwargs): ...

    assert sees_repetition(get_repetition_penalty_reward())
    assert sees_repetition(get_soft_overlong_punishment(100, 20))
    assert not sees_repetition(think_format_reward)
    assert not sees_repetition(mine)
    mine.sees_repetition = True
    assert sees_repetition(mine)
