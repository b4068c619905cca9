"""
Post-training with sparse-autoencoder features, on TRL.

The public names load on first use: `import sae_posttrain` by itself imports neither torch nor TRL.
"""

import warnings
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .analysis.browse.browse import browse_features as browse_features
    from .analysis.classifier import FeatureClassifier as FeatureClassifier
    from .analysis.classifier_judge import ClassifierJudge as ClassifierJudge
    from .analysis.classifier_reward import ClassifierReward as ClassifierReward
    from .analysis.coverage import coverage as coverage
    from .analysis.coverage import redundancy as redundancy
    from .analysis.diagnose import diagnose as diagnose
    from .analysis.filter_dataset import filter_dataset as filter_dataset
    from .analysis.overlap import overlap as overlap
    from .analysis.read_activations import read_activations as read_activations
    from .analysis.select import select as select
    from .analysis.show import show_features as show_features
    from .analysis.synthesis.endpoint_generator import EndpointGenerator as EndpointGenerator
    from .analysis.synthesis.local_generator import LocalGenerator as LocalGenerator
    from .analysis.synthesis.synthesise import synthesise as synthesise
    from .analysis.text_activations import TextActivations as TextActivations
    from .analysis.untouched import find_untouched as find_untouched
    from .features.calibrate.calibrate import calibrate as calibrate
    from .features.controls.matched_random import matched_random_features as matched_random_features
    from .features.controls.random_directions import random_directions as random_directions
    from .features.find.by_direction import find_directions as find_directions
    from .features.find.by_group import find_features as find_features
    from .features.find.by_repetition import find_repetition_features as find_repetition_features
    from .features.find.compare import compare_features as compare_features
    from .features.fit.fit import measure_fit as measure_fit
    from .features.read.group_statistics import measure_groups as measure_groups
    from .features.read.text_options import TextOptions as TextOptions
    from .features.set.feature_set import FeatureSet as FeatureSet
    from .features.set.imported import import_directions as import_directions
    from .features.set.steering import steer as steer
    from .hooks.record import record_blocks as record_blocks
    from .hooks.record import record_sites as record_sites
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
    from .saes.convert import convert_sae as convert_sae
    from .saes.describe import describe_sae as describe_sae
    from .saes.frozen import FrozenSAE as FrozenSAE
    from .saes.loading import load_sae as load_sae
    from .sft.config import SASFTConfig as SASFTConfig
    from .sft.trainer import SASFTTrainer as SASFTTrainer
    from .training.watch.callback import FaultWatchCallback as FaultWatchCallback

__version__ = "0.1.0"

_MODULES = {
    "ClassifierJudge": "analysis.classifier_judge",
    "ClassifierReward": "analysis.classifier_reward",
    "EndpointGenerator": "analysis.synthesis.endpoint_generator",
    "EndlessRepetitionReward": "rl.rewards",
    "FaultWatchCallback": "training.watch.callback",
    "FeatureClassifier": "analysis.classifier",
    "FeatureDriftCallback": "penalty.drift",
    "FeaturePenaltyArguments": "penalty.arguments",
    "FeaturePenaltyMixin": "penalty.mixin",
    "FeatureSet": "features.set.feature_set",
    "FrozenSAE": "saes.frozen",
    "LanguageConsistencyReward": "rl.rewards",
    "LocalGenerator": "analysis.synthesis.local_generator",
    "SASFTConfig": "sft.config",
    "SASFTTrainer": "sft.trainer",
    "SteeredGRPOConfig": "rl.config",
    "SteeredGRPOTrainer": "rl.trainer",
    "TextActivations": "analysis.text_activations",
    "TextOptions": "features.read.text_options",
    "add_measured_rates": "model_card",
    "browse_features": "analysis.browse.browse",
    "calibrate": "features.calibrate.calibrate",
    "compare_features": "features.find.compare",
    "convert_sae": "saes.convert",
    "coverage": "analysis.coverage",
    "describe_sae": "saes.describe",
    "diagnose": "analysis.diagnose",
    "evaluate": "measure.answers.evaluation",
    "evaluate_tasks": "measure.capability.tasks",
    "filter_dataset": "analysis.filter_dataset",
    "find_directions": "features.find.by_direction",
    "find_features": "features.find.by_group",
    "find_loop": "measure.faults.loops",
    "find_repetition_features": "features.find.by_repetition",
    "find_switches": "measure.faults.switching",
    "find_untouched": "analysis.untouched",
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
    "show_features": "analysis.show",
    "steer": "features.set.steering",
    "synthesise": "analysis.synthesis.synthesise",
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
    "drop_switched": "baselines",
    "format_tasks": "measure.capability.task_summary",
    "last_complete_checkpoint": "checkpoints",
    "line_languages": "measure.faults.line_language",
    "line_pass": "measure.faults.line_language",
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
