"""Check the datasets of a trainer for the penalty: each row must tell its group, and some token must be penalised."""

import logging
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from functools import partial
from itertools import islice
from typing import Any

from ..languages import language_key
from .arguments import FeaturePenaltyArguments
from .batches import answer_ids, group_ids_of_row, holds_pairs, holds_preferences
from .groups import (
    DEFAULT_GROUP_COLUMN,
    ROWS_READ_FROM_A_STREAM,
    GroupTable,
    RowGroups,
    find_group_column,
    require_penalised,
)

logger = logging.getLogger(__name__)


def prepare_row_groups(
    datasets: Mapping[str, Any],
    table: GroupTable,
    settings: FeaturePenaltyArguments,
    *,
    decode: Callable[..., str] | None,
    generates: bool,
    charges: bool,
    penalised_tokens: Collection[int] = (),
) -> tuple[RowGroups, bool]:
    """
    Check the datasets of a trainer by name (the one to train on is `"train"`), and refuse what the penalty could not
    use.

    `decode` gives the text of token ids, to tell a group from its script; `generates`: the rows are prompts that the
    model answers in training; `charges`: a weight is above 0, so some row must have a token to penalise. Returns the
    groups, and whether the rows are pairs of a chosen and a rejected answer.
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
    groups = RowGroups(table, settings.group_column, answer, by_script=None in columns.values())
    for name, column in columns.items():
        if column is None and hasattr(datasets[name], "__len__"):
            counts = table.count(map(groups, _rows(datasets[name])))
            logger.warning("Groups of the %s dataset, told from the script: %s.", name, counts)
    dataset = datasets.get("train")
    if dataset is not None and charges:
        if columns["train"] is not None and hasattr(dataset, "column_names") and hasattr(dataset, "__len__"):
            names = dict.fromkeys(dataset[settings.group_column])
            for name in names:
                table.number(name)
            table.log_unknown(names, "train")
        has_token = _has_penalised_token(_rows(dataset), groups, settings.penalty_rows, generates, penalised_tokens)
        require_penalised(has_token, table, streamed=not hasattr(dataset, "__len__"), of_tokens=bool(penalised_tokens))
    return groups, holds_pairs(first)


def groups_without_features(settings: FeaturePenaltyArguments, dataset: Any) -> GroupTable:
    """
    The groups where no features are penalised: the target groups, and the rest. Of a stream, the first thousand rows
    are read.
    """
    if settings.target_group:
        return GroupTable.for_tokens(settings.target_group, charged_language(settings))
    if settings.penalised_tokens is None:
        raise ValueError("Set `target_group`, the group (or groups) whose answers are not penalised.")
    language, column = str(settings.penalised_tokens), settings.group_column
    first = next(_rows(dataset), {}) if dataset is not None else {}
    if column not in first:
        is_group = dataset is not None and column == DEFAULT_GROUP_COLUMN and not language.endswith(".json")
    elif hasattr(dataset, "__len__"):
        is_group = any(_is_of(row[column], language) for row in _rows(dataset))
    else:
        is_group = any(_is_of(row[column], language) for row in islice(_rows(dataset), ROWS_READ_FROM_A_STREAM))
    if not is_group:
        raise ValueError(
            f"Set `target_group`, the group (or groups) whose answers may hold the tokens of "
            f"`penalised_tokens={language!r}`: the data tell of no group of that name. No row has to belong to it."
        )
    return GroupTable.for_tokens([language], charged_language(settings))


def charged_language(settings: FeaturePenaltyArguments) -> str | None:
    """The language whose tokens are penalised; `None` if none are, or if a file names them."""
    tokens = settings.penalised_tokens
    return None if tokens is None or tokens.endswith(".json") or settings.token_penalty_weight == 0 else tokens


def _is_of(group: object, language: str) -> bool:
    return isinstance(group, str) and language_key(group) == language_key(language)


def _rows(dataset: Any) -> Iterator[Mapping[str, Any]]:
    """Rows of a dataset of `datasets`, a list, a stream, or a map-style dataset of PyTorch."""
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
    rows: Iterable[Mapping[str, Any]],
    groups: RowGroups,
    penalty_rows: str,
    generates: bool,
    penalised_tokens: Collection[int],
) -> Iterator[bool]:
    penalised = set(groups.table.penalised_ids)
    for row in rows:
        in_group = any(number in penalised for number in group_ids_of_row(row, groups, penalty_rows))
        ids = None if generates else answer_ids(row)
        yield in_group and (ids is None or any(token not in penalised_tokens for token in ids))
