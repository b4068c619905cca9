"""
Post-training with sparse-autoencoder features, on TRL.

The public names load on first use: `import sae_posttrain` by itself imports neither torch nor TRL.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .baselines.ablation import ablate
    from .baselines.data_filter import drop_switched
    from .baselines.lm_head_scaling import scale_lm_head, scale_probabilities, smoothie_factors
    from .baselines.unlikelihood.config import UnlikelihoodConfig
    from .baselines.unlikelihood.rows import sample_unlikely_rows
    from .baselines.unlikelihood.trainer import UnlikelihoodTrainer
    from .checkpoints import last_complete_checkpoint
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
    from .measure.answers.switch_probability import switch_probability
    from .measure.capability.task_summary import format_tasks
    from .measure.capability.tasks import evaluate_tasks
    from .measure.faults.line_language import LineLanguage, line_languages, line_pass
    from .measure.faults.loops import find_loop
    from .measure.faults.script_tokens import script_tokens
    from .measure.faults.switching import find_switches
    from .measure.statistics.claims import holm, non_inferiority
    from .measure.statistics.resampling import bootstrap_difference, bootstrap_mean, bootstrap_ratio
    from .measure.statistics.sample_size import sample_size
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
    "EndlessRepetitionReward",
    "FeatureDriftCallback",
    "FeaturePenaltyArguments",
    "FeaturePenaltyMixin",
    "FeatureSet",
    "FrozenSAE",
    "LanguageConsistencyReward",
    "LineLanguage",
    "SASFTConfig",
    "SASFTTrainer",
    "SteeredGRPOConfig",
    "SteeredGRPOTrainer",
    "TextOptions",
    "UnlikelihoodConfig",
    "UnlikelihoodTrainer",
    "ablate",
    "add_measured_rates",
    "bootstrap_difference",
    "bootstrap_mean",
    "bootstrap_ratio",
    "calibrate",
    "compare_features",
    "convert_sae",
    "describe_sae",
    "drop_switched",
    "evaluate",
    "evaluate_tasks",
    "find_directions",
    "find_features",
    "find_loop",
    "find_repetition_features",
    "find_switches",
    "format_tasks",
    "holm",
    "import_directions",
    "last_complete_checkpoint",
    "line_languages",
    "line_pass",
    "load_sae",
    "matched_random_features",
    "measure_fit",
    "measure_groups",
    "non_inferiority",
    "random_directions",
    "record_blocks",
    "record_sites",
    "sample_size",
    "sample_unlikely_rows",
    "scale_lm_head",
    "scale_probabilities",
    "script_tokens",
    "smoothie_factors",
    "steer",
    "switch_probability",
    "train_sae",
]

_MODULES = {
    "EndlessRepetitionReward": "rl.rewards",
    "FeatureDriftCallback": "penalty.drift",
    "FeaturePenaltyArguments": "penalty.arguments",
    "FeaturePenaltyMixin": "penalty.mixin",
    "FeatureSet": "features.set.feature_set",
    "FrozenSAE": "saes.frozen",
    "LanguageConsistencyReward": "rl.rewards",
    "LineLanguage": "measure.faults.line_language",
    "SASFTConfig": "sft.config",
    "SASFTTrainer": "sft.trainer",
    "SteeredGRPOConfig": "rl.config",
    "SteeredGRPOTrainer": "rl.trainer",
    "TextOptions": "features.read.text_options",
    "UnlikelihoodConfig": "baselines.unlikelihood.config",
    "UnlikelihoodTrainer": "baselines.unlikelihood.trainer",
    "ablate": "baselines.ablation",
    "add_measured_rates": "model_card",
    "bootstrap_difference": "measure.statistics.resampling",
    "bootstrap_mean": "measure.statistics.resampling",
    "bootstrap_ratio": "measure.statistics.resampling",
    "calibrate": "features.calibrate.calibrate",
    "compare_features": "features.find.compare",
    "convert_sae": "saes.convert",
    "describe_sae": "saes.describe",
    "drop_switched": "baselines.data_filter",
    "evaluate": "measure.answers.evaluation",
    "evaluate_tasks": "measure.capability.tasks",
    "find_directions": "features.find.by_direction",
    "find_features": "features.find.by_group",
    "find_loop": "measure.faults.loops",
    "find_repetition_features": "features.find.by_repetition",
    "find_switches": "measure.faults.switching",
    "format_tasks": "measure.capability.task_summary",
    "holm": "measure.statistics.claims",
    "import_directions": "features.set.imported",
    "last_complete_checkpoint": "checkpoints",
    "line_languages": "measure.faults.line_language",
    "line_pass": "measure.faults.line_language",
    "load_sae": "saes.loading",
    "matched_random_features": "features.controls.matched_random",
    "measure_fit": "features.fit.fit",
    "measure_groups": "features.read.group_statistics",
    "non_inferiority": "measure.statistics.claims",
    "random_directions": "features.controls.random_directions",
    "record_blocks": "hooks.record",
    "record_sites": "hooks.record",
    "sample_size": "measure.statistics.sample_size",
    "sample_unlikely_rows": "baselines.unlikelihood.rows",
    "scale_lm_head": "baselines.lm_head_scaling",
    "scale_probabilities": "baselines.lm_head_scaling",
    "script_tokens": "measure.faults.script_tokens",
    "smoothie_factors": "baselines.lm_head_scaling",
    "steer": "features.set.steering",
    "switch_probability": "measure.answers.switch_probability",
    "train_sae": "sae_training.trainer",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
