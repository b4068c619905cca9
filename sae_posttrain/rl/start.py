"""What a steered run starts with: its features, its first strength, and warnings about settings that do nothing."""

import logging
from typing import Any

from ..features.set.feature_set import FeatureSet
from ..measure.answers.end_of_turn import why_rollouts_run_on
from .blind_reward import warn_of_blind_rewards
from .config import SteeredGRPOConfig
from .controller import StrengthController
from .prompting import require_calibrated_prompts
from .refusals import refuse_settings, refuse_sharded_resampling

logger = logging.getLogger(__name__)


def load_features(args: SteeredGRPOConfig, feature_set: FeatureSet | None) -> FeatureSet:
    """The feature set that was passed, or the one that `args.features` names; a `ValueError` if there is neither."""
    if feature_set is not None:
        return feature_set
    if args.features is None:
        raise ValueError(
            f"`num_steered` is {args.num_steered}, but there are no features to steer along. Set `features` to a "
            "feature set (`sae-posttrain find-features --kind repetition` writes one), or `num_steered=0` for plain "
            "GRPO."
        )
    return FeatureSet.from_pretrained(args.features)


def first_strength(args: SteeredGRPOConfig, feature_set: FeatureSet) -> float:
    """
    The strength that a run starts with, in residual norms: `steer_strength`, or else the calibrated one.

    Warns if the strength was calibrated at another sampling temperature.
    """
    strength: float | None = args.steer_strength
    if strength is None:
        calibration = feature_set.calibration
        strength = calibration.get("strength")
        if not strength:
            found = "its calibration found none" if calibration else "it was not calibrated"
            raise ValueError(
                f"There is no `steer_strength`, and none is stored in the feature set: {found}. Run `calibrate` on "
                "it, or set `steer_strength` (in residual norms)."
            )
        overrides: Any = args.generation_kwargs or {}
        sampled_at = overrides.get("temperature", args.temperature)
        temperature = calibration.get("settings", {}).get("temperature", sampled_at)
        if temperature != sampled_at:
            logger.warning(
                "The strength was calibrated at temperature %g, the rollouts are sampled at %g: the hit rate may be "
                "different. Calibrate at that temperature, or set `target_hit_rate`.",
                temperature,
                sampled_at,
            )
    if args.target_hit_rate is not None and strength > args.max_steer_strength:
        raise ValueError(
            f"The strength starts at {strength}, above `max_steer_strength={args.max_steer_strength}`. Raise that, or "
            "set a lower `steer_strength`."
        )
    return float(strength)


def check_steering(trainer: Any, args: SteeredGRPOConfig, feature_set: FeatureSet, *, detects_loops: bool) -> None:
    """Check what can only be checked on a trainer whose model and data are loaded, before it is given any hook."""
    processing = trainer.processing_class
    feature_set.check_model(trainer.model, allow_base_model=args.allow_base_model, tokenizer=processing)
    refuse_settings(args, trainer.model.generation_config, detects_loops=detects_loops)
    if args.steer_strength is None and trainer.train_dataset is not None:
        require_calibrated_prompts(
            feature_set.notes.get("calibration") or {},
            trainer.train_dataset,
            getattr(processing, "tokenizer", processing),
            trainer.chat_template_kwargs,
        )
    deepspeed = getattr(trainer.accelerator.state, "deepspeed_plugin", None)
    is_sharded = trainer.is_fsdp_enabled or (deepspeed is not None and deepspeed.zero_stage == 3)
    refuse_sharded_resampling(args, is_sharded=is_sharded)
    if trainer._is_vlm:
        raise ValueError("Steering works on text; vision-language models are not supported yet.")
    if detects_loops:
        warn_of_blind_rewards(trainer.reward_funcs, trainer.reward_func_names)


def controller_of(args: SteeredGRPOConfig, strength: float) -> StrengthController:
    """The controller that the settings ask for."""
    assert args.target_hit_rate is not None
    return StrengthController(
        strength, target=args.target_hit_rate, gain=args.strength_gain, largest=args.max_steer_strength
    )


def warn_of_plain_config(args: Any, feature_set: FeatureSet | None) -> None:
    """Warn that a run with a plain `GRPOConfig` steers nothing."""
    if feature_set is not None:
        raise ValueError(
            f"A `feature_set` was passed with a plain `{type(args).__name__}`, which steers nothing. Use "
            "`SteeredGRPOConfig`."
        )
    logger.warning(
        "SteeredGRPOTrainer got a plain `%s`: it trains like `GRPOTrainer`, and no rollout is steered. Use "
        "`SteeredGRPOConfig(features=…)`.",
        type(args).__name__ if args is not None else "GRPOConfig",
    )


def warn_of_rollouts_that_run_on(dataset: Any, tokenizer: Any, end_ids: Any) -> None:
    """Warn if the prompts are messages and the token that ends a turn does not end a rollout."""
    first = next(iter(dataset), None) if dataset is not None else None
    if first is not None and not isinstance(first.get("prompt"), str):
        message = why_rollouts_run_on(tokenizer, end_ids)
        if message is not None:
            logger.warning(message)
