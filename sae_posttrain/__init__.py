"""
Post-training with sparse-autoencoder features, on TRL.

The public names load on first use: `import sae_posttrain` by itself imports neither torch nor TRL.
"""

import warnings
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .features.calibrate.calibrate import calibrate as calibrate
    from .features.controls.matched_random import matched_random_features as matched_random_features
    from .features.controls.random_directions import random_directions as random_directions
    from .features.find.by_direction import find_directions as find_directions
    from .features.find.by_group import find_features as find_features
    from .features.find.by_repetition import find_repetition_features as find_repetition_features
    from .features.fit.fit import measure_fit as measure_fit
    from .features.read.group_statistics import measure_groups as measure_groups
    from .features.read.text_options import TextOptions as TextOptions
    from .features.set.feature_set import FeatureSet as FeatureSet
    from .features.set.imported import import_directions as import_directions
    from .features.set.steering import steer as steer
    from .measure.answers.evaluation import evaluate as evaluate
    from .measure.capability.tasks import evaluate_tasks as evaluate_tasks
    from .measure.faults.loops import find_loop as find_loop
    from .measure.faults.switching import find_switches as find_switches
    from .model_card import add_measured_rates as add_measured_rates
    from .penalty.arguments import FeaturePenaltyArguments as FeaturePenaltyArguments
    from .penalty.drift import FeatureDriftCallback as FeatureDriftCallback
    from .penalty.mixin import FeaturePenaltyMixin as FeaturePenaltyMixin
    from .rl.config import SteeredGRPOConfig as SteeredGRPOConfig
    from .rl.rewards import EndlessRepetitionReward as EndlessRepetitionReward
    from .rl.rewards import LanguageConsistencyReward as LanguageConsistencyReward
    from .rl.trainer import SteeredGRPOTrainer as SteeredGRPOTrainer
    from .sae_training.trainer import train_sae as train_sae
    from .saes.frozen import FrozenSAE as FrozenSAE
    from .saes.loading import load_sae as load_sae
    from .sft.config import SASFTConfig as SASFTConfig
    from .sft.trainer import SASFTTrainer as SASFTTrainer
    from .training.watch.callback import FaultWatchCallback as FaultWatchCallback

__version__ = "0.1.0"

_MODULES = {
    "EndlessRepetitionReward": "rl.rewards",
    "FaultWatchCallback": "training.watch.callback",
    "FeatureDriftCallback": "penalty.drift",
    "FeaturePenaltyArguments": "penalty.arguments",
    "FeaturePenaltyMixin": "penalty.mixin",
    "FeatureSet": "features.set.feature_set",
    "FrozenSAE": "saes.frozen",
    "LanguageConsistencyReward": "rl.rewards",
    "SASFTConfig": "sft.config",
    "SASFTTrainer": "sft.trainer",
    "SteeredGRPOConfig": "rl.config",
    "SteeredGRPOTrainer": "rl.trainer",
    "TextOptions": "features.read.text_options",
    "add_measured_rates": "model_card",
    "calibrate": "features.calibrate.calibrate",
    "evaluate": "measure.answers.evaluation",
    "evaluate_tasks": "measure.capability.tasks",
    "find_directions": "features.find.by_direction",
    "find_features": "features.find.by_group",
    "find_loop": "measure.faults.loops",
    "find_repetition_features": "features.find.by_repetition",
    "find_switches": "measure.faults.switching",
    "import_directions": "features.set.imported",
    "load_sae": "saes.loading",
    "matched_random_features": "features.controls.matched_random",
    "measure_fit": "features.fit.fit",
    "measure_groups": "features.read.group_statistics",
    "random_directions": "features.controls.random_directions",
    "steer": "features.set.steering",
    "train_sae": "sae_training.trainer",
}

__all__ = sorted(_MODULES)

_MOVED = {
    "LineLanguage": "measure.faults.line_language",
    "UnlikelihoodConfig": "baselines",
    "UnlikelihoodTrainer": "baselines",
    "ablate": "baselines",
    "bootstrap_difference": "measure.statistics",
    "bootstrap_mean": "measure.statistics",
    "bootstrap_ratio": "measure.statistics",
    "compare_features": "features.find.compare",
    "convert_sae": "saes.convert",
    "describe_sae": "saes.describe",
    "drop_switched": "baselines",
    "format_tasks": "measure.capability.task_summary",
    "last_complete_checkpoint": "checkpoints",
    "line_languages": "measure.faults.line_language",
    "line_pass": "measure.faults.line_language",
    "record_blocks": "hooks.record",
    "record_sites": "hooks.record",
    "sample_size": "measure.statistics",
    "sample_unlikely_rows": "baselines",
    "scale_lm_head": "baselines",
    "script_tokens": "measure.faults.script_tokens",
}
"""Names that version 0.1.0 had here, and where they are now."""


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
    if name not in _MOVED:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    place = f"{__name__}.{_MOVED[name]}"
    warnings.warn(f"`{name}` moved: `from {place} import {name}`.", DeprecationWarning, stacklevel=2)
    return getattr(import_module(place), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
