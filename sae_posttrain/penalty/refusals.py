"""Settings and trainers that the penalties cannot work with, or that would leave them without an effect."""

import inspect
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from transformers import Trainer, TrainingArguments

from ..features.set.feature_set import FeatureSet
from .arguments import FeaturePenaltyArguments

logger = logging.getLogger(__name__)


def load_features(settings: FeaturePenaltyArguments, feature_set: FeatureSet | None) -> FeatureSet | None:
    """
    The features that were passed or that the settings name; `None` where there are none to hold.

    Raises:
        ValueError: If there are none, and a setting asks for some.
    """
    if feature_set is None and settings.features is not None:
        return FeatureSet.from_pretrained(settings.features)
    if feature_set is None and settings.penalised_tokens is not None:
        _require_no_feature_settings(settings)
    elif feature_set is None and settings.penalty_weight > 0:
        raise ValueError(
            f"`penalty_weight` is {settings.penalty_weight}, but there are no features to penalise. Set `features` to "
            "a feature set (`sae-posttrain find-features` writes one), `penalised_tokens` to a language, or "
            "`penalty_weight=0` for plain training."
        )
    return feature_set


def _require_no_feature_settings(settings: FeaturePenaltyArguments) -> None:
    """Where tokens are penalised and no features: what is set for features would do nothing."""
    if settings.penalty_target is not None:
        raise ValueError(
            "`penalty_target` adapts the weight of features, and there are none. Set `features`, or leave it out and "
            "set `token_penalty_weight`."
        )
    if settings.penalty_weight not in (0, type(settings).penalty_weight):
        raise ValueError(
            f"`penalty_weight` is {settings.penalty_weight}, but there are no features to penalise. Set `features`, "
            "or leave it out: the weight of `penalised_tokens` is `token_penalty_weight`."
        )


def require_nothing_to_hold(
    trainer: type, behind: Iterable[type], given: Iterable[Any], feature_set: FeatureSet | None
) -> None:
    """
    Warn that a trainer with a plain config trains plainly.

    Args:
        trainer (`type`), behind (`Iterable[type]`):
            The trainer, and the classes behind the mixin in its bases.
        given (`Iterable[Any]`):
            What the trainer was given, its config among it.
        feature_set ([`FeatureSet`], *optional*):
            Features that were passed too.

    Raises:
        ValueError: If there are features.
    """
    config = next((type(value).__name__ for value in given if isinstance(value, TrainingArguments)), None)
    plain = f"a plain `{config}`" if config else "no config"
    if feature_set is not None:
        raise ValueError(
            f"A `feature_set` was passed with {plain}, which has no penalty. Use a config that derives from "
            "`FeaturePenaltyArguments` (for SFT `SASFTConfig`)."
        )
    parent = next((each.__name__ for each in behind if issubclass(each, Trainer)), "the trainer")
    logger.warning(
        "%s got %s: it trains like `%s`, without a feature penalty. Use a config that derives from "
        "`FeaturePenaltyArguments` (for SFT `SASFTConfig`) and set its `features` to hold features down.",
        trainer.__name__,
        plain,
        parent,
    )


def refuse_environment_without_rows(
    trainer: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]
) -> None:
    """
    An environment may bring the prompts of its own, but those tell no group.

    Args:
        trainer (`Callable`):
            What builds the trainer.
        args (`Sequence`), kwargs (`Mapping`):
            What it is given.

    Raises:
        ValueError: If there is an environment and no dataset to train on.
    """
    if kwargs.get("environment_factory") is None:
        return
    named = dict(inspect.signature(trainer).bind_partial(*args, **kwargs).arguments)
    given = {**named, **named.get("kwargs", {})}
    if given.get("train_dataset") is None:
        raise ValueError(
            "With `environment_factory` and no `train_dataset` the environment writes the prompts, and nothing tells "
            "the group of an answer, so the penalty cannot tell whom it may touch. Pass a `train_dataset` with a "
            "column `prompt` and the group of each prompt's answer in the column of `group_column` ('lang'); the "
            "environment then adds to these prompts."
        )


def refuse_what_cannot_work(trainer: Any, settings: FeaturePenaltyArguments) -> None:
    """
    What a trainer may be set to that the penalties do not support.

    Raises:
        ValueError: If it is.
    """
    parallelism = getattr(trainer.accelerator, "parallelism_config", None)
    if parallelism is not None and (parallelism.cp_enabled or parallelism.sp_enabled):
        raise ValueError(
            "The feature penalty does not support context or sequence parallelism: the groups of the tokens would "
            "not be sharded with them. Set `cp_size=1` and `sp_size=1`."
        )
    if trainer.args.n_gpu > 1:
        raise ValueError(
            "The feature penalty does not support `nn.DataParallel`, whose replicas the hooks do not see. Launch "
            "with `accelerate launch`, or make one GPU visible."
        )
    plugin = getattr(trainer.accelerator.state, "deepspeed_plugin", None)
    sharded = getattr(trainer, "is_fsdp_enabled", False) or (plugin is not None and plugin.zero_stage == 3)
    if settings.penalised_tokens is not None and sharded:
        raise ValueError(
            "With FSDP or ZeRO-3 the LM head lies in parts on several processes, and the probability of "
            "`penalised_tokens` cannot be read from it. Use DDP or ZeRO-1 or 2, or hold features down instead."
        )
    if settings.penalty_max_loss_increase is not None and hasattr(trainer, "reward_funcs"):
        raise ValueError(
            "The loss of reinforcement learning does not tell what the penalty costs, so it cannot bound the "
            "weight. Leave `penalty_max_loss_increase` out."
        )
