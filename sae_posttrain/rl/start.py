"""What a steered run starts with: its features, its first strength, and warnings about settings that do nothing."""

import logging
from typing import Any

from ..features.set.feature_set import FeatureSet
from ..hooks.row_sampling import SAME_AS_CALL, RowSampling
from ..measure.answers.end_of_turn import why_rollouts_run_on
from .blind_reward import warn_of_blind_rewards
from .config import SteeredGRPOConfig, refuse_resampling_greedy, require_one_greedy_steered
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


def steered_sampling(args: SteeredGRPOConfig, feature_set: FeatureSet) -> RowSampling:
    """
    How steered rollouts are sampled: `steer_temperature`, or else the temperature that `calibrate` chose together with
    the strength, which is said in the log; `steer_top_p` and `steer_top_k`. What none of these says is the policy's.

    Raises:
        ValueError: If the stored temperature is damaged, or is 0 and the rollouts would be the same greedy answer.
    """
    temperature = args.steer_temperature
    if temperature is None:
        temperature = _stored_temperature(feature_set, strength_is_set=args.steer_strength is not None)
        if temperature is not None:
            logger.info("Steered rollouts are sampled at temperature %g, as the feature set has it.", temperature)
            if temperature == 0:
                require_one_greedy_steered(args.num_steered)
                refuse_resampling_greedy(args.on_miss, "steer_temperature")
    return RowSampling(temperature, args.steer_top_p, args.steer_top_k)


def cold_sampling(args: SteeredGRPOConfig) -> RowSampling:
    """How cold rollouts are sampled."""
    return RowSampling(float(args.cold_temperature)) if args.num_cold else SAME_AS_CALL


def _stored_temperature(feature_set: FeatureSet, *, strength_is_set: bool) -> float | None:
    """The temperature that `calibrate` searched together with the strength; `None` if it did not search one."""
    if not feature_set.notes.get("calibration"):
        return None
    try:
        temperature = feature_set.calibration.get("temperature")
    except ValueError:
        if not strength_is_set:
            raise
        return None  # measured for other features, and nothing else of it is used
    if temperature is None:
        return None
    if (
        isinstance(temperature, bool)
        or not isinstance(temperature, int | float)
        or not 0 <= temperature < float("inf")
    ):
        raise ValueError(
            f"The calibration in the feature set holds the temperature {str(temperature)[:50]!r}: it is damaged. Run "
            "`calibrate` again, or set `steer_temperature`."
        )
    return float(temperature)


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
        sampled_at = steered_sampling(args, feature_set).temperature
        if sampled_at is None:
            sampled_at = overrides.get("temperature", args.temperature)
        temperature = calibration.get("settings", {}).get("temperature", sampled_at)
        if temperature != sampled_at:
            logger.warning(
                "The strength was calibrated at temperature %g, the steered rollouts are sampled at %g: the hit rate "
                "may be different. Set `steer_temperature`, calibrate at that temperature, or set `target_hit_rate`.",
                temperature,
                sampled_at,
            )
    if args.target_hit_rate is not None and strength > args.max_steer_strength:
        raise ValueError(
            f"The strength starts at {strength}, above `max_steer_strength={args.max_steer_strength}`. Raise that, or "
            "set a lower `steer_strength`."
        )
    return float(strength)


def check_rollouts(trainer: Any, args: SteeredGRPOConfig, *, detects_loops: bool) -> None:
    """
    Check what can only be checked on a trainer whose model and data are loaded, for steered and for cold rollouts.

    Args:
        trainer ([`SteeredGRPOTrainer`]):
            The trainer, before it is given any hook.
        args ([`SteeredGRPOConfig`]):
            Settings.
        detects_loops (`bool`):
            Whether the fault is the default one.

    Raises:
        ValueError: If something would undo the steering, or the rollouts cannot be made.
    """
    refuse_settings(args, trainer.model.generation_config, detects_loops=detects_loops)
    deepspeed = getattr(trainer.accelerator.state, "deepspeed_plugin", None)
    is_sharded = trainer.is_fsdp_enabled or (deepspeed is not None and deepspeed.zero_stage == 3)
    refuse_sharded_resampling(args, is_sharded=is_sharded)
    if trainer._is_vlm:
        raise ValueError("Steering works on text; vision-language models are not supported yet.")
    if detects_loops:
        warn_of_blind_rewards(trainer.reward_funcs, trainer.reward_func_names)


def check_steering(trainer: Any, args: SteeredGRPOConfig, feature_set: FeatureSet) -> None:
    """
    Check that the features and their strength fit the loaded model and data; further arguments as [`check_rollouts`].

    Raises:
        ValueError: If they do not.
    """
    processing = trainer.processing_class
    feature_set.check_model(trainer.model, allow_base_model=args.allow_base_model, tokenizer=processing)
    if args.steer_strength is None and trainer.train_dataset is not None:
        require_calibrated_prompts(
            feature_set.notes.get("calibration") or {},
            trainer.train_dataset,
            getattr(processing, "tokenizer", processing),
            trainer.chat_template_kwargs,
        )


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
