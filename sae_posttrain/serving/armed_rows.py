"""What an engine in this process and one behind HTTP share: rows that are armed before they are generated."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from ..features.set.feature_set import FeatureSet
from .pushes import fingerprint
from .row_settings import RowSettings


class ArmedRows:
    """An engine or a client, to which everything is passed on, and the settings of the rows that it generates next."""

    def __init__(self, wrapped: Any, feature_set: FeatureSet | None, unit: str):
        self._wrapped = wrapped
        self._names = None if feature_set is None else tuple(dict.fromkeys(feature_set.names))
        self._fingerprint = "" if feature_set is None else fingerprint(feature_set, unit)
        self._rows: tuple[RowSettings, ...] | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._wrapped, name)

    @contextmanager
    def armed(self, rows: Sequence[RowSettings]) -> Iterator[None]:
        """
        Generate each row as its settings say, in every `generate` inside the context.

        Args:
            rows (`Sequence[RowSettings]`):
                As many as `generate` gives answers, in their order.

        Raises:
            ValueError: If it is armed already, a name is not in the feature set, or a row is steered and there is
                no feature set.
        """
        if self._rows is not None:
            raise ValueError("The rows are armed already. Leave the context before you enter it again.")
        self._require_names(rows)
        self._rows = tuple(rows)
        try:
            yield
        finally:
            self._rows = None

    def _require_names(self, rows: Sequence[RowSettings]) -> None:
        names = self._names
        if names is None:
            if any(row.is_steered for row in rows):
                raise ValueError(
                    "A row has a `strength`, but no `feature_set` was given: there is nothing to push along."
                )
            return
        for row in rows:
            if isinstance(row.strength, Mapping):
                unknown = sorted(set(row.strength) - set(names))
                if unknown:
                    raise ValueError(
                        f"`strength` names {unknown[0]!r}, which is not in the feature set. Known: {', '.join(names)}."
                    )
