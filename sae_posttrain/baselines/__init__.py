"""Methods without a sparse autoencoder: what features have to beat. The names load on first use."""

from typing import TYPE_CHECKING

from ..lazy import lazy_names

if TYPE_CHECKING:
    from .ablation import ablate as ablate
    from .data_filter import drop_switched as drop_switched
    from .lm_head_scaling import scale_lm_head as scale_lm_head
    from .unlikelihood.config import UnlikelihoodConfig as UnlikelihoodConfig
    from .unlikelihood.rows import sample_unlikely_rows as sample_unlikely_rows
    from .unlikelihood.trainer import UnlikelihoodTrainer as UnlikelihoodTrainer

_MODULES = {
    "UnlikelihoodConfig": "unlikelihood.config",
    "UnlikelihoodTrainer": "unlikelihood.trainer",
    "ablate": "ablation",
    "drop_switched": "data_filter",
    "sample_unlikely_rows": "unlikelihood.rows",
    "scale_lm_head": "lm_head_scaling",
}

__all__ = sorted(_MODULES)

__getattr__ = lazy_names(__name__, _MODULES)
