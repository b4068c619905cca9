import pytest
from trl import TrlParser

from sae_posttrain import FeaturePenaltyArguments, SASFTConfig

from .conftest import CLASSES

CONFIGS = {kind: held_config for kind, (_, held_config, _, _) in CLASSES.items()} | {"sasft": SASFTConfig}


@pytest.mark.parametrize("kind", list(CONFIGS))
def test_settings_of_any_trainer_are_parsed_with_its_own(kind, tmp_path):
    words = f"--output_dir {tmp_path} --features zh.safetensors --penalty_weight 0.5 --margin 1 --learning_rate 0.1"
    words += " --target_group zh ja --penalty_target 0.05 --use_cpu true --report_to none --bf16 false"
    command = [*words.split(), "--hold", '{"a": "up"}']
    (config,) = TrlParser(CONFIGS[kind]).parse_args_and_config(args=command)
    assert (config.features, config.penalty_weight, config.margin) == ("zh.safetensors", 0.5, 1.0)
    assert (config.target_group, config.hold, config.penalty_target) == (["zh", "ja"], {"a": "up"}, 0.05)
    assert config.learning_rate == 0.1


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"penalty_weight": -1}, "`penalty_weight` must be a number, 0 or more, got -1"),
        ({"margin": True}, "`margin` must be a number"),
        ({"penalty_unit": "std2"}, "`penalty_unit` must be one of 'std', 'raw'"),
        ({"penalty_rows": "rejected"}, "`penalty_rows` must be one of 'chosen', 'both', got 'rejected'"),
        ({"hold": {"a": "sideways"}}, "`hold` must be one of 'down', 'up'"),
        ({"penalty_target": 1.0}, "between 0 and 1, both excluded, got 1.0"),
        ({"penalty_target": 0.1, "penalty_weight": 0}, "must be above 0, got 0"),
        ({"penalty_max_loss_increase": 0.1}, "Set `penalty_target`, or leave it out"),
        ({"penalty_target": 0.1, "penalty_max_loss_increase": 0}, "a share above 0"),
        ({"penalised_tokens": "zh", "token_penalty_weight": -1}, "`token_penalty_weight` must be a number, 0 or more"),
        ({"token_penalty_weight": 5.0}, "but no tokens are named. Set `penalised_tokens`"),
    ],
)
def test_setting_out_of_range_is_refused(setting, message):
    with pytest.raises(ValueError, match=message):
        FeaturePenaltyArguments(**setting)


def test_one_target_group_may_be_given_as_a_text():
    assert FeaturePenaltyArguments(target_group="zh").target_group == ["zh"]
