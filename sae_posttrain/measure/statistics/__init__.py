"""Intervals, tests and sample sizes for claims about rates. The names load on first use."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .claims import benjamini_hochberg, holm, non_inferiority
    from .power import sample_size
    from .resampling import bootstrap_difference, bootstrap_mean, bootstrap_ratio

__all__ = [
    "benjamini_hochberg",
    "bootstrap_difference",
    "bootstrap_mean",
    "bootstrap_ratio",
    "holm",
    "non_inferiority",
    "sample_size",
]

_MODULES = {
    "benjamini_hochberg": "claims",
    "bootstrap_difference": "resampling",
    "bootstrap_mean": "resampling",
    "bootstrap_ratio": "resampling",
    "holm": "claims",
    "non_inferiority": "claims",
    "sample_size": "power",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
