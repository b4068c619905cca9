"""Intervals and sample sizes for claims about rates. The names load on first use."""

from typing import TYPE_CHECKING

from ...lazy import lazy_names

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

__getattr__ = lazy_names(__name__, _MODULES)
