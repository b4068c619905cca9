"""[`filter_dataset`]: keep the rows of a data set that a classifier does not object to."""

import logging
from collections.abc import Mapping
from typing import Any

import numpy as np

from .classifier import FeatureClassifier

logger = logging.getLogger(__name__)


def filter_dataset(
    dataset: Any, classifier: FeatureClassifier, *, column: str | None = None, drop: Any = None, keep: Any = None
) -> Any:
    """
    The rows of a data set without those that have a label, or those that have it.

    ```python
    clean = filter_dataset(train_dataset, FeatureClassifier.load("toxic.safetensors", model=model, saes=sae))
    SASFTTrainer(model, args, train_dataset=clean)
    ```

    Args:
        dataset (`datasets.Dataset` or list of rows):
            The rows.
        classifier ([`FeatureClassifier`]):
            A fitted classifier with a model, and SAEs where it needs them.
        column (`str`, *optional*):
            Column with the text to judge. By default a row is read as in training: its text, its last answer in
            `messages`, or its `completion`.
        drop (*optional*):
            Label whose rows are left out; the classifier's `pos_label` by default.
        keep (*optional*):
            Label whose rows are kept, instead of `drop`.

    Returns:
        A `datasets.Dataset` for a `datasets.Dataset`, else a list; rows in their order and unchanged.

    Raises:
        ValueError: If the data set is empty, the column is missing or holds no text, the label is unknown, or both
            labels are given.
    """
    if drop is not None and keep is not None:
        raise ValueError("Give `drop` or `keep`, not both.")
    rows = list(dataset)
    if not rows:
        raise ValueError("The data set has no rows, so that there is nothing to filter.")
    label = keep if keep is not None else classifier.pos_label_ if drop is None else drop
    if label not in classifier.classes_.tolist():
        known = " and ".join(map(repr, classifier.classes_.tolist()))
        raise ValueError(f"The classifier has no label {label!r}; its labels are {known}.")
    if column is not None:
        rows = [{classifier.options.text_column: _text(row, column, i)} for i, row in enumerate(rows, start=1)]
    has_label = classifier.predict(rows) == label
    kept = np.flatnonzero(has_label if keep is not None else ~has_label)
    logger.info("%d of %d rows are kept.", len(kept), len(rows))
    if hasattr(dataset, "select"):
        return dataset.select(kept.tolist())
    held = dataset if isinstance(dataset, list) else list(dataset)
    return [held[i] for i in kept]


def _text(row: Mapping[str, Any], column: str, number: int) -> str:
    if column not in row:
        raise ValueError(f"Row {number} has no column {column!r}; it has {', '.join(map(str, row))}.")
    if not isinstance(row[column], str) or not row[column].strip():
        raise ValueError(f"Row {number}: `{column}` must be a text that is not empty, got {row[column]!r}.")
    return row[column]
