import re
from dataclasses import fields
from pathlib import Path

import pytest
from trl import GRPOConfig, TrlParser

from sae_posttrain import SteeredGRPOConfig, SteeredGRPOTrainer
from sae_posttrain.model_card import METHODS


def make(tmp_path, **settings):
    return SteeredGRPOConfig(str(tmp_path), use_cpu=True, bf16=False, report_to="none", **settings)


def test_defaults_are_dapo_and_the_reports_choices(tmp_path):
    args = make(tmp_path)
    assert (args.loss_type, args.beta, args.epsilon, args.epsilon_high) == ("dapo", 0.0, 0.2, 0.28)
    assert (args.num_steered, args.steer_positions, args.steered_baseline) == (1, "generated", "all")
    assert (args.off_policy_weight, args.cap_steered_advantage, args.on_miss) == ("none", False, "keep")
    assert (args.steered_weight, args.loop_cut, args.target_hit_rate) == (1.0, None, None)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_steered": -1}, "`num_steered` must be a whole number, 0 or more, got -1"),
        ({"num_steered": 1.0}, "`num_steered` must be a whole number"),
        ({"num_steered": 8}, "no plain rollout is left to compare with. Set `num_steered` lower"),
        ({"max_resamples": 0}, "`max_resamples` must be a whole number, 1 or more"),
        ({"loop_cut": 0}, "`loop_cut` must be a whole number, 1 or more"),
        ({"blind_reward_patience": -1}, "`blind_reward_patience` must be a whole number, 0 or more"),
        ({"steer_strength": 0.0}, "`steer_strength` must be a number above 0, got 0.0"),
        ({"steer_strength": float("nan")}, "`steer_strength` must be a number above 0, got nan"),
        ({"strength_gain": 0}, "`strength_gain` must be a number above 0"),
        ({"max_steer_strength": -1.0}, "`max_steer_strength` must be a number above 0"),
        ({"steered_weight": 0.0}, "`steered_weight` must be a number above 0"),
        ({"off_policy_clip": float("inf")}, "`off_policy_clip` must be a number above 0"),
        ({"off_policy_floor": 1.5}, "`off_policy_floor` must lie between 0 and 1, got 1.5"),
        ({"target_hit_rate": 80}, "`target_hit_rate` must lie between 0 and 1, got 80"),
        ({"steer_positions": "prompt"}, "`steer_positions` must be one of 'generated', 'all', got 'prompt'"),
        ({"on_miss": "skip"}, "`on_miss` must be one of 'keep', 'drop', 'resample'"),
        ({"steered_baseline": "mean"}, "`steered_baseline` must be one of 'all', 'plain'"),
        ({"off_policy_weight": True}, "`off_policy_weight` must be one of 'none', 'truncated', 'floor'"),
        (
            {"steered_baseline": "plain", "multi_objective_aggregation": "normalize_then_sum"},
            "need `multi_objective_aggregation='sum_then_normalize'`, got 'normalize_then_sum'",
        ),
        (
            {"on_miss": "drop", "multi_objective_aggregation": "normalize_then_sum"},
            "need `multi_objective_aggregation='sum_then_normalize'`",
        ),
    ],
    ids=str,
)
def test_settings_out_of_range_are_refused(tmp_path, settings, message):
    with pytest.raises(ValueError, match=message):
        make(tmp_path, **settings)


def test_settings_parse_from_the_command_line(tmp_path):
    given = "--steer_strength 1.5 --num_steered 2 --off_policy_weight floor --loop_cut 3 --target_hit_rate 0.8"
    fixed = f"--output_dir {tmp_path} --use_cpu true --bf16 false --report_to none"
    (args,) = TrlParser((SteeredGRPOConfig,)).parse_args_and_config((given + " " + fixed).split())
    assert (args.steer_strength, args.num_steered, args.loop_cut, args.target_hit_rate) == (1.5, 2, 3, 0.8)
    assert (args.off_policy_weight, args.epsilon_high) == ("floor", 0.28)


def test_a_group_is_never_the_rollouts_of_a_prompt():
    """The word is that of texts, a language say; TRL's own names, such as `scale_rewards="group"`, stay."""
    inherited = {each.name for each in fields(GRPOConfig)}
    texts = [each.metadata["help"] for each in fields(SteeredGRPOConfig) if each.name not in inherited]
    texts += [SteeredGRPOConfig.__doc__, SteeredGRPOTrainer.__doc__, METHODS["steered-grpo"].description]
    root = Path(__file__).parents[2]
    pages = ("docs/dynamic-sampling.md", "recipes/dapo_repetition/README.md")
    texts += [(root / name).read_text(encoding="utf-8") for name in pages]
    for text in texts:
        assert not re.search(r"\bgroups?\b", text, re.IGNORECASE), text
