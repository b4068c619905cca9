import warnings

import pytest

from sae_posttrain import SASFTConfig, SteeredGRPOConfig
from sae_posttrain.baselines import UnlikelihoodConfig


@pytest.mark.parametrize("config", [SASFTConfig, SteeredGRPOConfig, UnlikelihoodConfig])
@pytest.mark.parametrize("settings", [{}, {"gradient_checkpointing": False}])
def test_a_training_does_not_begin_with_a_warning_of_a_setting_that_got_another_name(config, settings, tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error", FutureWarning)
        args = config(str(tmp_path), use_cpu=True, bf16=False, **settings)
    assert args.gradient_checkpointing is settings.get("gradient_checkpointing", True)  # TRL's default is on
