"""Settings of the feature penalty and of the token penalty, to be added to those of any trainer."""

import json
from dataclasses import dataclass, field
from typing import Any

from ..renamed_settings import use_new_names

OF_FEATURES: tuple[str, ...] = (
    *("allow_base_model", "penalty_weight", "penalty_target", "penalty_max_loss_increase", "penalty_unit"),
    *("margin", "penalty", "penalty_positions", "hold", "unknown_group"),
)
"""Settings that apply to features only."""

OF_TOKENS: tuple[str, ...] = ("penalised_tokens", "token_penalty_weight")
"""Settings that apply to penalised tokens only."""


@dataclass
class FeaturePenaltyArguments:
    """
    Settings of the feature penalty and of the token penalty, for the config of any trainer. Either works alone.

    ```python
    @dataclass
    class HeldDPOConfig(FeaturePenaltyArguments, DPOConfig):
        pass


    class HeldDPOTrainer(FeaturePenaltyMixin, DPOTrainer):
        pass
    ```

    Parameters:
        > Parameters that control the features

        features (`str`, *optional*):
            Feature set to hold down: a file, a folder or a Hub repository, as `find_features` saves it. A
            [`FeatureSet`] object is passed to the trainer instead.
        allow_base_model (`str`, *optional*):
            Name of a model, other than the one the features were found on, that may be trained with them.

        > Parameters that control the penalty

        penalty_weight (`float`, *optional*, defaults to `1.0`):
            Weight of the penalty, a mean over tokens, beside the trainer's loss. With 0 the trainer trains exactly as
            without the penalty, bit for bit, and still logs the features. The weight in the published code for SFT is
            this one divided by its gradient accumulation steps.
        penalty_target (`float`, *optional*):
            Excess rate to hold, in place of a fixed weight: the allowed share of penalised tokens and features above
            level and margin, between 0 and 1. The weight starts at `penalty_weight` and is adapted
            ([`AdaptiveWeight`]).
        penalty_max_loss_increase (`float`, *optional*):
            Share by which the loss may rise for the target (0.02 for 2 %). It needs `penalty_target`, and has priority
            over it.
        penalty_unit (`str`, *optional*, defaults to `"std"`):
            `"std"` measures a feature in its standard deviations on the token's group, so that a weight carries over
            between features, blocks and models; `"raw"` in units of the residual stream, as published.
        margin (`float`, *optional*, defaults to `0.0`):
            Height above the level that costs nothing, in that unit.
        penalty (`str`, *optional*, defaults to `"sasft"`):
            Level that a feature may reach for free: `"sasft"` the mean of the token's group, `"zero"` the published
            variant without statistics.
        penalty_positions (`str`, *optional*, defaults to `"response"`):
            `"response"` penalises the residuals at the tokens of the answer, as published. `"predicting"` penalises
            those one to the left, which predict the tokens. They include the end of the prompt, where the answer's
            language is chosen. A document's first position is never penalised: its residual is an outlier in most
            models.
        penalty_rows (`str`, *optional*, defaults to `"chosen"`):
            For preference data. `"chosen"` penalises and counts the chosen (desirable) answers only, `"both"` the
            rejected ones too. Other data has no rejected answers, and `"both"` is refused there.
        hold (`str` or `dict[str, str]`, *optional*, defaults to `"down"`):
            `"down"` or `"up"`, for all features or by feature name.

        > Parameters that control penalised tokens

        penalised_tokens (`str`, *optional*):
            Tokens whose probability is penalised in the answers, with or without features: a language, which stands
            for the tokens of its script (`"zh"`), or the path of a `.json` file with a list of token ids. Data in
            another language of that script are refused unless `target_group` names it: `["zh", "ja"]`.
        token_penalty_weight (`float`, *optional*, defaults to `10.0`):
            Weight of this probability, a mean over the answers' tokens, beside the trainer's loss. 0 adds nothing to
            the loss and still logs the probability.

        > Parameters that control the groups

        target_group (`str` or `list[str]`, *optional*):
            Group (or groups) whose answers are not penalised. Defaults to the groups the features were found for, or
            without features to the language in `penalised_tokens`, if the data have a group of that name.
        group_column (`str`, *optional*, defaults to `"lang"`):
            Column with the group of each example. A language may be called by any of its names (`zh`, `zh-CN`,
            `zho_Hans`, `Chinese`). With a script that is unusual for the language it is another group (`uz-Cyrl`). If
            the dataset has no column `lang`, the script of the answer tells the group. This does not work where the
            model writes the answers itself, as in GRPO. An answer without letters then has no group: it is counted and
            never penalised.
        unknown_group (`str`, *optional*, defaults to `"error"`):
            `"error"` refuses a group that has no statistics, `"mean"` uses the mean of the others. Where the feature
            set has no statistics at all and none are needed, every group except the target is penalised.
    """

    features: str | None = field(
        default=None, metadata={"help": "Feature set to hold down: a file, a folder or a Hub repository."}
    )
    allow_base_model: str | None = field(
        default=None,
        metadata={"help": "Name of another model than the features' own that may be trained with them."},
    )
    penalty_weight: float = field(
        default=1.0,
        metadata={"help": "Weight of the penalty beside the loss. 0 trains plainly and still logs the features."},
    )
    penalty_target: float | None = field(
        default=None,
        metadata={
            "help": "Excess rate to hold (between 0 and 1) in place of a fixed weight: the weight starts at "
            "`penalty_weight` and is adapted."
        },
    )
    penalty_max_loss_increase: float | None = field(
        default=None,
        metadata={"help": "With `penalty_target`: share by which the loss may rise for it (0.02 for 2 %%)."},
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
    penalty_rows: str = field(
        default="chosen",
        metadata={
            "help": "In preference data, answers that pay: the chosen ones, or the rejected ones too ('both').",
            "choices": ["chosen", "both"],
        },
    )
    hold: dict | str | None = field(
        default="down",
        metadata={"help": "'down' or 'up' for all features, or a JSON object of them by feature name."},
    )
    penalised_tokens: str | None = field(
        default=None,
        metadata={
            "help": "Tokens whose probability is penalised: a language, for the tokens of its script, or a .json file "
            "with a list of token ids."
        },
    )
    token_penalty_weight: float = field(
        default=10.0,
        metadata={"help": "Weight of the penalised tokens' probability beside the loss. 0 only logs it."},
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
        use_new_names(self)
        getattr(super(), "__post_init__", lambda: None)()  # of the trainer's own config
        _require_number("penalty_weight", self.penalty_weight)
        _require_number("margin", self.margin)
        _require_number("token_penalty_weight", self.token_penalty_weight)
        if self.penalised_tokens is None and self.token_penalty_weight != type(self).token_penalty_weight:
            raise ValueError(
                f"`token_penalty_weight` is {self.token_penalty_weight}, but no tokens are named. Set "
                "`penalised_tokens` to a language or a .json file of token ids, or leave the weight out."
            )
        self._check_target()
        _require_choice("penalty_unit", self.penalty_unit, ("std", "raw"))
        _require_choice("penalty", self.penalty, ("sasft", "zero"))
        _require_choice("penalty_positions", self.penalty_positions, ("response", "predicting"))
        _require_choice("penalty_rows", self.penalty_rows, ("chosen", "both"))
        _require_choice("unknown_group", self.unknown_group, ("error", "mean"))
        if isinstance(self.hold, str) and self.hold.startswith("{"):
            self.hold = json.loads(self.hold)
        if isinstance(self.target_group, str):
            self.target_group = [self.target_group]
        for value in self.hold.values() if isinstance(self.hold, dict) else [self.hold]:
            _require_choice("hold", value, ("down", "up"))

    def _check_target(self) -> None:
        if self.penalty_target is None:
            if self.penalty_max_loss_increase is not None:
                raise ValueError(
                    "`penalty_max_loss_increase` bounds a weight that is adapted, and a fixed one is set. Set "
                    "`penalty_target`, or leave it out."
                )
            return
        _require_number("penalty_target", self.penalty_target)
        if not 0 < self.penalty_target < 1:
            raise ValueError(
                f"`penalty_target` is an excess rate between 0 and 1, both excluded, got {self.penalty_target!r}."
            )
        if self.penalty_weight == 0:
            raise ValueError(
                "With `penalty_target` the weight starts at `penalty_weight`, which must be above 0, got 0. Set "
                "`penalty_weight=1.0`."
            )
        if self.penalty_max_loss_increase is not None:
            _require_number("penalty_max_loss_increase", self.penalty_max_loss_increase)
            if self.penalty_max_loss_increase == 0:
                raise ValueError("`penalty_max_loss_increase` is a share above 0 (0.02 for 2 %), got 0.")


def _require_number(name: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < float("inf"):
        raise ValueError(f"`{name}` must be a number, 0 or more, got {value!r}.")


def _require_choice(name: str, value: Any, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(f"`{name}` must be one of {', '.join(map(repr, choices))}, got {value!r}.")
