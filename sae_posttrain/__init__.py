"""
Post-training with sparse-autoencoder features, on TRL.

The public names load on first use: `import sae_posttrain` by itself imports neither torch nor TRL.
"""

import warnings
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .analysis.classifier import FeatureClassifier
    from .analysis.classifier_reward import ClassifierReward
    from .analysis.coverage import coverage, redundancy
    from .analysis.filter_dataset import filter_dataset
    from .analysis.overlap import overlap
    from .analysis.read_activations import read_activations
    from .analysis.select import select
    from .analysis.text_activations import TextActivations
    from .features.calibrate.calibrate import calibrate
    from .features.controls.matched_random import matched_random_features
    from .features.controls.random_directions import random_directions
    from .features.find.by_direction import find_directions
    from .features.find.by_group import find_features
    from .features.find.by_repetition import find_repetition_features
    from .features.find.compare import compare_features
    from .features.fit.fit import measure_fit
    from .features.read.group_statistics import measure_groups
    from .features.read.text_options import TextOptions
    from .features.set.feature_set import FeatureSet
    from .features.set.imported import import_directions
    from .features.set.steering import steer
    from .hooks.record import record_blocks, record_sites
    from .measure.answers.evaluation import evaluate
    from .measure.capability.tasks import evaluate_tasks
    from .measure.faults.loops import find_loop
    from .measure.faults.switching import find_switches
    from .model_card import add_measured_rates
    from .penalty.arguments import FeaturePenaltyArguments
    from .penalty.drift import FeatureDriftCallback
    from .penalty.mixin import FeaturePenaltyMixin
    from .rl.config import SteeredGRPOConfig
    from .rl.rewards import EndlessRepetitionReward, LanguageConsistencyReward
    from .rl.trainer import SteeredGRPOTrainer
    from .sae_training.trainer import train_sae
    from .saes.convert import convert_sae
    from .saes.describe import describe_sae
    from .saes.frozen import FrozenSAE
    from .saes.loading import load_sae
    from .sft.config import SASFTConfig
    from .sft.trainer import SASFTTrainer

__version__ = "0.1.0"

__all__ = [
    "ClassifierReward",
    "EndlessRepetitionReward",
    "FeatureClassifier",
    "FeatureDriftCallback",
    "FeaturePenaltyArguments",
    "FeaturePenaltyMixin",
    "FeatureSet",
    "FrozenSAE",
    "LanguageConsistencyReward",
    "SASFTConfig",
    "SASFTTrainer",
    "SteeredGRPOConfig",
    "SteeredGRPOTrainer",
    "TextActivations",
    "TextOptions",
    "add_measured_rates",
    "calibrate",
    "compare_features",
    "convert_sae",
    "coverage",
    "describe_sae",
    "evaluate",
    "evaluate_tasks",
    "filter_dataset",
    "find_directions",
    "find_features",
    "find_loop",
    "find_repetition_features",
    "find_switches",
    "import_directions",
    "load_sae",
    "matched_random_features",
    "measure_fit",
    "measure_groups",
    "overlap",
    "random_directions",
    "read_activations",
    "record_blocks",
    "record_sites",
    "redundancy",
    "select",
    "steer",
    "train_sae",
]

_MODULES = {
    "ClassifierReward": "analysis.classifier_reward",
    "EndlessRepetitionReward": "rl.rewards",
    "FeatureClassifier": "analysis.classifier",
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
    "TextActivations": "analysis.text_activations",
    "TextOptions": "features.read.text_options",
    "add_measured_rates": "model_card",
    "calibrate": "features.calibrate.calibrate",
    "compare_features": "features.find.compare",
    "convert_sae": "saes.convert",
    "coverage": "analysis.coverage",
    "describe_sae": "saes.describe",
    "evaluate": "measure.answers.evaluation",
    "evaluate_tasks": "measure.capability.tasks",
    "filter_dataset": "analysis.filter_dataset",
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
    "overlap": "analysis.overlap",
    "random_directions": "features.controls.random_directions",
    "read_activations": "analysis.read_activations",
    "record_blocks": "hooks.record",
    "record_sites": "hooks.record",
    "redundancy": "analysis.coverage",
    "select": "analysis.select",
    "steer": "features.set.steering",
    "train_sae": "sae_training.trainer",
}

_MOVED = {
    "LineLanguage": "measure.faults.line_language",
    "UnlikelihoodConfig": "baselines",
    "UnlikelihoodTrainer": "baselines",
    "ablate": "baselines",
    "bootstrap_difference": "measure.statistics",
    "bootstrap_mean": "measure.statistics",
    "bootstrap_ratio": "measure.statistics",
    "drop_switched": "baselines",
    "format_tasks": "measure.capability.task_summary",
    "holm": "measure.statistics",
    "last_complete_checkpoint": "checkpoints",
    "line_languages": "measure.faults.line_language",
    "line_pass": "measure.faults.line_language",
    "non_inferiority": "measure.statistics",
    "sample_size": "measure.statistics",
    "sample_unlikely_rows": "baselines",
    "scale_lm_head": "baselines",
    "scale_probabilities": "baselines",
    "script_tokens": "measure.faults.script_tokens",
    "smoothie_factors": "baselines",
    "switch_probability": "measure.answers.switch_probability",
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
