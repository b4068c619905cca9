"""Refuse settings and trainers that the penalties cannot work with, or that would leave them without an effect."""

import inspect
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from torch import nn
from transformers import Trainer, TrainingArguments

from ..features.set.feature_set import FeatureSet
from .arguments import FeaturePenaltyArguments
from .term import PenaltyTerm

logger = logging.getLogger(__name__)


def load_features(
    settings: FeaturePenaltyArguments, feature_set: FeatureSet | None, terms: Sequence[PenaltyTerm] = ()
) -> FeatureSet | None:
    """
    Find the features that are to be held: those that were passed come before `settings.features`. `None` where there
    are none; the user's own `terms` need no features.
    """
    if feature_set is None and settings.features is not None:
        return FeatureSet.from_pretrained(settings.features)
    if feature_set is None and (settings.penalised_tokens is not None or terms):
        _require_no_feature_settings(settings)
    elif feature_set is None and settings.penalty_weight > 0:
        raise ValueError(
            f"`penalty_weight` is {settings.penalty_weight}, but there are no features to penalise. Set `features` to "
            "a feature set (`sae-posttrain find-features` writes one), `penalised_tokens` to a language, or "
            "`penalty_weight=0` for plain training."
        )
    return feature_set


def _require_no_feature_settings(settings: FeaturePenaltyArguments) -> None:
    """Refuse settings of features where something else is penalised: they would do nothing."""
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


def refuse_old_method(trainer: type) -> None:
    """Refuse a subclass that overrides `penalised_tokens`, the earlier name of `penalised_positions`."""
    if hasattr(trainer, "penalised_tokens"):
        raise TypeError(
            f"{trainer.__name__} overrides `penalised_tokens`. The method is called `penalised_positions` now, and "
            "nothing calls the old one: rename it."
        )


def refuse_wrong_model(
    features: FeatureSet | None, settings: FeaturePenaltyArguments, model: Any, tokenizer: Any = None
) -> None:
    """
    Refuse features of another model or tokenizer. A model that is given by its name is checked once it is loaded.
    """
    if features is not None and isinstance(model, nn.Module):
        features.check_model(model, allow_base_model=settings.allow_base_model, tokenizer=tokenizer)


def warn_of_plain_training(
    trainer: type,
    mixin: type,
    given: Iterable[Any],
    feature_set: FeatureSet | None,
    terms: Sequence[PenaltyTerm] = (),
) -> None:
    """Warn that a trainer with a plain config, which is among the `given` arguments, trains plainly."""
    config = next((type(value).__name__ for value in given if isinstance(value, TrainingArguments)), None)
    plain = f"a plain `{config}`" if config else "no config"
    if feature_set is not None or terms:
        passed = "A `feature_set` was" if feature_set is not None else "`terms` were"
        raise ValueError(
            f"{passed} passed with {plain}, which has no penalty. Use a config that derives from "
            "`FeaturePenaltyArguments` (for SFT `SASFTConfig`)."
        )
    behind = trainer.__mro__[trainer.__mro__.index(mixin) + 1 :]
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
    """Refuse an environment that brings prompts of its own: those tell no group."""
    if kwargs.get("environment_factory") is None:
        return
    named = dict(inspect.signature(trainer).bind_partial(*args, **kwargs).arguments)
    given = {**named, **named.get("kwargs", {})}
    if given.get("train_dataset") is None:
        raise ValueError(
            "With `environment_factory` and no `train_dataset` the environment writes the prompts, and nothing tells "
            "the group of an answer, so the penalty cannot tell which answers it applies to. Pass a `train_dataset` "
            "with a column `prompt` and the group of each prompt's answer in the column of `group_column` ('lang'); "
            "the environment then adds to these prompts."
        )


def refuse_what_cannot_work(trainer: Any, settings: FeaturePenaltyArguments) -> None:
    """Refuse settings of a trainer that the penalties do not support."""
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
            "With FSDP or ZeRO-3 the LM head is split over several processes, and the probability of "
            "`penalised_tokens` cannot be read from it. Use DDP or ZeRO-1 or 2, or hold features down instead."
        )
    if settings.penalty_max_loss_increase is not None and hasattr(trainer, "reward_funcs"):
        raise ValueError(
            "The loss of reinforcement learning does not tell what the penalty costs, so it cannot bound the "
            "weight. Leave `penalty_max_loss_increase` out."
        )
