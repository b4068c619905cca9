"""Where a feature comes from."""

from collections.abc import Callable
from dataclasses import dataclass, field


@dataclass(frozen=True)
class FeatureSource:
    """Where a feature was read from. `sha256` is filled in when the set is saved."""

    repository: str
    file: str
    format: str
    revision: str | None = None
    sha256: str | None = None
    compute_sha256: Callable[[], str] | None = field(default=None, repr=False, compare=False)
