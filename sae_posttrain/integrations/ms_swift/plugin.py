"""
SASFT in ms-swift: the call that a file given as `--external_plugins` makes.

    from sae_posttrain.integrations.ms_swift.plugin import hold_features

    hold_features(features="zh.safetensors", penalty_weight=1.0)

It is written for ms-swift 4.6.0; `docs/integrations.md` says what it supports.
"""

import sys
from dataclasses import fields
from typing import Any

from ...penalty.arguments import FeaturePenaltyArguments

SETTINGS: dict[str, Any] = {}
"""Arguments of [`hold_features`], which ms-swift's command line does not know."""


def hold_features(**settings: Any) -> None:
    """
    Make `swift sft` hold features down. Settings are fields of [`FeaturePenaltyArguments`], except `group_column`.

    The group of each row is in the column `channel`, which ms-swift keeps. Without this column, the group is derived
    from the script of the answer.
    """
    known = sorted({field.name for field in fields(FeaturePenaltyArguments)} - {"group_column"})
    unknown = [name for name in settings if name not in known]
    if unknown:
        raise ValueError(f"`hold_features` has no setting `{unknown[0]}`. Known: {', '.join(known)}.")
    FeaturePenaltyArguments(**settings)
    if "swift.megatron" in sys.modules:
        raise ValueError(
            "Megatron has a trainer of its own, in which nothing would be held down. Use `swift sft`, or take this "
            "plugin out."
        )
    from swift.trainers import TrainerFactory

    SETTINGS.clear()
    SETTINGS.update(settings)
    for method in TrainerFactory.TRAINING_ARGS_MAPPING:
        TrainerFactory.TRAINING_ARGS_MAPPING[method] = f"{__name__}.OtherMethod"
    trainer = f"{__package__}.trainer"
    TrainerFactory.TRAINING_ARGS_MAPPING["causal_lm"] = f"{trainer}.SwiftSASFTArguments"
    TrainerFactory.TRAINER_MAPPING["causal_lm"] = f"{trainer}.SwiftSASFTTrainer"


class OtherMethod:
    """Arguments of every other method. They cannot be created, because nothing would be held down."""

    def __init__(self) -> None:
        raise ValueError(
            "`hold_features` works in SFT of a language model (`swift sft`). ms-swift's other trainers, GRPO among "
            "them, are not TRL's: use `sae-posttrain grpo` to steer, or take this plugin out."
        )
