"""Settings of SASFT: TRL's, plus which features to hold down and how hard."""

from dataclasses import dataclass

from trl import SFTConfig

from ..penalty.arguments import FeaturePenaltyArguments


@dataclass
class SASFTConfig(FeaturePenaltyArguments, SFTConfig):
    """
    [`~trl.SFTConfig`] plus the feature penalty of SASFT (https://huggingface.co/papers/2507.14894).

    The added parameters are those of [`FeaturePenaltyArguments`].
    """
