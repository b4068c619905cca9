"""What the datasets of a trainer must hold for the penalty: rows that tell their group, and a token to penalise."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from typing import Any

from .arguments import FeaturePenaltyArguments
from .batches import answer_ids, group_ids_of_row, holds_pairs, holds_preferences
from .groups import GroupTable, RowGroups, find_group_column, require_penalised


def prepare_row_groups(
    datasets: Mapping[str, Any],
    table: GroupTable,
    settings: FeaturePenaltyArguments,
    *,
    decode: Callable[..., str] | None,
    generates: bool,
) -> tuple[RowGroups, bool]:
    """
    Look at the datasets of a trainer, and refuse what the penalty could not use.

    Args:
        datasets (`Mapping[str, Any]`):
            Prepared datasets by name, the one to train on as `"train"`; `None` where there is none.
        table ([`GroupTable`]):
            The groups.
        settings ([`FeaturePenaltyArguments`]):
            The trainer's settings.
        decode (`Callable`, *optional*):
            From token ids their text, to tell a group from its script; `None` without a tokenizer.
        generates (`bool`):
            Whether the rows are prompts that the model answers in training.

    Returns:
        [`RowGroups`], and whether the rows are pairs of a chosen and a rejected answer.

    Raises:
        ValueError: If a row does not tell its group or its group has no statistics, no row has a token to penalise,
            the data is not text, or `penalty_rows` asks for rejected answers that it does not have.
    """
    answer = partial(_answer_text, decode) if decode is not None and not generates else None
    firsts = {name: next(_rows(dataset), {}) for name, dataset in datasets.items() if dataset is not None}
    columns = {}
    for name, first in firsts.items():
        if "image" in first or "images" in first:
            raise ValueError("The penalty works on text; vision datasets are not supported yet.")
        columns[name] = find_group_column(first, settings.group_column, table, name, by_script=answer is not None)
    first = next(iter(firsts.values()), {})
    if settings.penalty_rows == "both" and not holds_preferences(first):
        raise ValueError(
            "`penalty_rows='both'` penalises rejected answers too, and this trainer's data holds none. Leave it out."
        )
    if settings.penalty_rows == "both" and not holds_pairs(first) and None in columns.values():
        raise ValueError(
            "With `penalty_rows='both'` the group of a rejected answer cannot be told from its script, which may be "
            f"the fault. Add the column {settings.group_column!r}."
        )
    groups = RowGroups(table, settings.group_column, answer)
    dataset = datasets.get("train")
    if dataset is not None and settings.penalty_weight > 0:
        if columns["train"] is not None and hasattr(dataset, "column_names") and hasattr(dataset, "__len__"):
            for name in dict.fromkeys(dataset[settings.group_column]):
                table.number(name)
        has_token = _has_penalised_token(_rows(dataset), groups, settings.penalty_rows, generates)
        require_penalised(has_token, table, streamed=not hasattr(dataset, "__len__"))
    return groups, holds_pairs(first)


def _rows(dataset: Any) -> Iterator[Mapping[str, Any]]:
    """The rows of a dataset of `datasets`, a list, a stream, or a map-style dataset of PyTorch."""
    if hasattr(dataset, "__len__"):
        return (dataset[i] for i in range(len(dataset)))
    return iter(dataset)


def _answer_text(decode: Callable[..., str], row: Mapping[str, Any]) -> str:
    ids = answer_ids(row)
    if ids is None:
        raise ValueError(
            f"It is not known which column of the dataset holds the answer; there are {', '.join(sorted(row))}. Add "
            "a column with the group of each example and name it in `group_column`."
        )
    return decode(ids, skip_special_tokens=True)


def _has_penalised_token(
    rows: Iterable[Mapping[str, Any]], groups: RowGroups, penalty_rows: str, generates: bool
) -> Iterator[bool]:
    penalised = set(groups.table.penalised_ids)
    for row in rows:
        in_group = any(number in penalised for number in group_ids_of_row(row, groups, penalty_rows))
        ids = None if generates else answer_ids(row)
        yield in_group and (ids is None or len(ids) > 0)
