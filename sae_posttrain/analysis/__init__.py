"""What people use who analyse data and answers by features. The names load on first use."""

from typing import TYPE_CHECKING

from ..lazy import lazy_names

if TYPE_CHECKING:
    from .browse.browse import browse_features as browse_features
    from .classifier import FeatureClassifier as FeatureClassifier
    from .classifier_judge import ClassifierJudge as ClassifierJudge
    from .classifier_reward import ClassifierReward as ClassifierReward
    from .covered import coverage as coverage
    from .covered import redundancy as redundancy
    from .diagnosing import diagnose as diagnose
    from .filtered import filter_dataset as filter_dataset
    from .overlapping import overlap as overlap
    from .reading import read_activations as read_activations
    from .selection import select as select
    from .show import show_features as show_features
    from .synthesis.endpoint_generator import EndpointGenerator as EndpointGenerator
    from .synthesis.local_generator import LocalGenerator as LocalGenerator
    from .synthesis.synthesise import synthesise as synthesise
    from .text_activations import TextActivations as TextActivations
    from .untouched import find_untouched as find_untouched

_MODULES = {
    "ClassifierJudge": "classifier_judge",
    "ClassifierReward": "classifier_reward",
    "EndpointGenerator": "synthesis.endpoint_generator",
    "FeatureClassifier": "classifier",
    "LocalGenerator": "synthesis.local_generator",
    "TextActivations": "text_activations",
    "browse_features": "browse.browse",
    "coverage": "covered",
    "diagnose": "diagnosing",
    "filter_dataset": "filtered",
    "find_untouched": "untouched",
    "overlap": "overlapping",
    "read_activations": "reading",
    "redundancy": "covered",
    "select": "selection",
    "show_features": "show",
    "synthesise": "synthesis.synthesise",
}

__all__ = sorted(_MODULES)

__getattr__ = lazy_names(__name__, _MODULES)
