"""Settings of SASFT: TRL's, plus which features to hold down and how hard."""

import json
from dataclasses import dataclass, field
from typing import Any

from trl import SFTConfig


@dataclass
class SASFTConfig(SFTConfig):
    """
    [`~trl.SFTConfig`] plus the feature penalty of SASFT (https://huggingface.co/papers/2507.14894).

    Parameters:
        > Parameters that control the features

        features (`str`, *optional*):
            Feature set to hold down: a file, a folder or a Hub repository, as `find_features` saves it. A
            [`FeatureSet`] object is passed to the trainer instead.
        allow_base_model (`str`, *optional*):
            Name of a model, other than the one the features were found on, that may be trained with them.

        > Parameters that control the penalty

        penalty_weight (`float`, *optional*, defaults to `1.0`):
            Weight of the penalty beside the mean token loss. 0 trains as plain SFT, bit for bit, and still logs the
            features. The published code's weight is this one divided by its gradient accumulation steps.
        penalty_unit (`str`, *optional*, defaults to `"std"`):
            `"std"` measures a feature in its standard deviations on the token's group, so that a weight carries over
            between features, blocks and models; `"raw"` in units of the residual stream, as published.
        margin (`float`, *optional*, defaults to `0.0`):
            Height above the level that costs nothing, in that unit.
        penalty (`str`, *optional*, defaults to `"sasft"`):
            Level that a feature may reach for free: `"sasft"` the mean of the token's group, `"zero"` the published
            variant without statistics.
        penalty_positions (`str`, *optional*, defaults to `"response"`):
            `"response"`: the residuals at the tokens of the answer, as published. `"predicting"`: those one to the
            left, which predict the tokens; it holds the end of the prompt too, where the answer's language is chosen.
        hold (`str` or `dict[str, str]`, *optional*, defaults to `"down"`):
            `"down"` or `"up"`, for all features or by feature name.

        > Parameters that control the groups

        target_group (`str` or `list[str]`, *optional*):
            Group (or groups) whose answers are not penalised. Defaults to the ones the features were found for.
        group_column (`str`, *optional*, defaults to `"lang"`):
            Column with the group of each example. If the dataset has no column `lang`, the group is told from the
            script of the answer.
        unknown_group (`str`, *optional*, defaults to `"error"`):
            What to do with a group that has no statistics: `"error"`, or `"mean"` to use the mean of the others.
    """

    _VALID_DICT_FIELDS = [*SFTConfig._VALID_DICT_FIELDS, "hold"]

    features: str | None = field(
        default=None, metadata={"help": "Feature set to hold down: a file, a folder or a Hub repository."}
    )
    allow_base_model: str | None = field(
        default=None,
        metadata={"help": "Name of another model than the features' own that may be trained with them."},
    )
    penalty_weight: float = field(
        default=1.0, metadata={"help": "Weight of the penalty beside the mean token loss. 0 gives plain SFT."}
    )
    penalty_unit: str = field(
        default="std",
        metadata={
            "help": "Unit of the penalty: standard deviations of the feature on the token's group, or raw residual "
            "units as published.",
            "choices": ["std", "raw"],
        },
    )
    margin: float = field(
        default=0.0, metadata={"help": "Height above the level that costs nothing, in the same unit."}
    )
    penalty: str = field(
        default="sasft",
        metadata={
            "help": "Level that a feature may reach for free: the mean of the token's group ('sasft') or 0 ('zero').",
            "choices": ["sasft", "zero"],
        },
    )
    penalty_positions: str = field(
        default="response",
        metadata={
            "help": "Residuals that pay: at the answer's tokens ('response', as published), or one to the left, where "
            "they are predicted ('predicting').",
            "choices": ["response", "predicting"],
        },
    )
    hold: dict | str | None = field(
        default="down",
        metadata={"help": "'down' or 'up' for all features, or a JSON object of them by feature name."},
    )
    target_group: list[str] | None = field(
        default=None,
        metadata={"help": "Groups whose answers are not penalised. Default: the ones the features stand for."},
    )
    group_column: str = field(
        default="lang",
        metadata={
            "help": "Column with the group of each example. Without a column 'lang' the group is told from the script "
            "of the answer."
        },
    )
    unknown_group: str = field(
        default="error",
        metadata={
            "help": "What to do with a group that has no statistics: refuse it, or use the mean of the others.",
            "choices": ["error", "mean"],
        },
    )

    def __post_init__(self):
        super().__post_init__()
        _require_number("penalty_weight", self.penalty_weight)
        _require_number("margin", self.margin)
        _require_choice("penalty_unit", self.penalty_unit, ("std", "raw"))
        _require_choice("penalty", self.penalty, ("sasft", "zero"))
        _require_choice("penalty_positions", self.penalty_positions, ("response", "predicting"))
        _require_choice("unknown_group", self.unknown_group, ("error", "mean"))
        if isinstance(self.hold, str) and self.hold.startswith("{"):
            self.hold = json.loads(self.hold)
        if isinstance(self.target_group, str):
            self.target_group = [self.target_group]
        for value in self.hold.values() if isinstance(self.hold, dict) else [self.hold]:
            _require_choice("hold", value, ("down", "up"))


def _require_number(name: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < float("inf"):
        raise ValueError(f"`{name}` must be a number, 0 or more, got {value!r}.")


def _require_choice(name: str, value: Any, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(f"`{name}` must be one of {', '.join(map(repr, choices))}, got {value!r}.")
