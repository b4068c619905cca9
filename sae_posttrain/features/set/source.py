"""Where a feature comes from, and how something that was read from a file is shown."""

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


def shown(content: object) -> str:
    """The beginning of something read from a file, for messages, with what cannot be printed escaped."""
    return "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in str(content)[:1000])
