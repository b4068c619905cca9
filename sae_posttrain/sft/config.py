"""Settings of SASFT: those of TRL, and which features or tokens to hold down and how hard."""

from dataclasses import dataclass

from trl import SFTConfig

from ..penalty.arguments import FeaturePenaltyArguments


@dataclass
class SASFTConfig(FeaturePenaltyArguments, SFTConfig):
    """
    [`~trl.SFTConfig`] plus the feature penalty of SASFT (https://huggingface.co/papers/2507.14894), the penalty on the
    probability of tokens, or both.

    ```python
    SASFTConfig(features="zh.features.safetensors")
    SASFTConfig(penalised_tokens="zh", token_penalty_weight=10.0)
    ```

    The added parameters are those of [`FeaturePenaltyArguments`].
    """
