"""
Post-training with sparse-autoencoder features, on TRL.

The public names load on first use: `import sae_posttrain` by itself imports neither torch nor TRL.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .features.feature_set import FeatureSet
    from .features.language import find_features
    from .hooks.record import record_blocks
    from .hooks.steer import steer
    from .measure.code_switching import find_switches
    from .measure.evaluation import evaluate
    from .saes.frozen import FrozenSAE
    from .saes.loading import load_sae
    from .sft.config import SASFTConfig
    from .sft.trainer import SASFTTrainer

__version__ = "0.1.0"

__all__ = [
    "FeatureSet",
    "FrozenSAE",
    "SASFTConfig",
    "SASFTTrainer",
    "evaluate",
    "find_features",
    "find_switches",
    "load_sae",
    "record_blocks",
    "steer",
]

_MODULES = {
    "FeatureSet": "features.feature_set",
    "FrozenSAE": "saes.frozen",
    "SASFTConfig": "sft.config",
    "SASFTTrainer": "sft.trainer",
    "evaluate": "measure.evaluation",
    "find_features": "features.language",
    "find_switches": "measure.code_switching",
    "load_sae": "saes.loading",
    "record_blocks": "hooks.record",
    "steer": "hooks.steer",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
