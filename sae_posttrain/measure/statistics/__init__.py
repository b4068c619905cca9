"""Intervals and sample sizes for claims about rates. The names load on first use."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .power import sample_size as sample_size
    from .resampling import bootstrap_difference as bootstrap_difference
    from .resampling import bootstrap_mean as bootstrap_mean
    from .resampling import bootstrap_ratio as bootstrap_ratio

_MODULES = {
    "bootstrap_difference": "resampling",
    "bootstrap_mean": "resampling",
    "bootstrap_ratio": "resampling",
    "sample_size": "power",
}

__all__ = sorted(_MODULES)


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
