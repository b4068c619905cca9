"""The group of each token: numbers for the groups, and the tensor of numbers in a batch."""

import logging
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..features.set.feature_set import FeatureSet
from ..languages import OWN_SCRIPTS, language_key, named_group, nearest_language
from ..measure.faults.scripts import own_scripts, target_scripts_of
from .script_detector import OTHER, script_detector

logger = logging.getLogger(__name__)

GROUP_IDS = "group_ids"
"""Column of the prepared dataset, and key of the batch: the number of each token's or each row's group."""

PADDING = -1
"""Stands for a group's number on a token or row that does not count."""

NO_GROUP = -2
"""Stands for a group's number on a token or row that counts, but whose answer has no letters to tell a group from."""

NO_LETTERS = "no letters"
"""Name of the answers of [`NO_GROUP`] in logs."""

_MISSPELT = 0.82
"""Least similarity of a name to that of a language to count as a misspelling of it."""

DEFAULT_GROUP_COLUMN = "lang"
ROWS_READ_FROM_A_STREAM = 1000


@dataclass(frozen=True)
class GroupTable:
    """
    Numbers of the groups with statistics and of the target groups, which are not penalised. They travel with the
    tokens; the number after the last one is for groups that are in the data but not here.

    A group that is a language may be called by any of its names: `zh-CN`, `zho_Hans` and `Chinese` are `zh`
    ([`named_group`]). Where several groups are of one language, only their exact names tell them apart. A group that
    is not in `names` is refused (`unknown_group="error"`), read with the mean statistics of the others (`"mean"`), or,
    where no statistics are needed, penalised like any other (`"penalised"`).

    Where the tokens of a language's script are penalised (`token_language`), another language that is written in it is
    refused unless it is a target: its own words would be penalised.
    """

    names: tuple[str, ...]
    targets: tuple[str, ...]
    unknown_group: str = "error"
    token_language: str | None = None

    @classmethod
    def for_features(
        cls, feature_set: FeatureSet, targets: Sequence[str], unknown_group: str, token_language: str | None = None
    ) -> "GroupTable":
        """The groups of a feature set. Without statistics these are the targets, and every other group in the data."""
        if not targets:
            raise ValueError(
                "The feature set does not say which group it stands for. Set `target_group`, the group whose "
                "answers are not penalised."
            )
        if not feature_set.groups:
            return cls(tuple(targets), tuple(targets), "penalised", token_language)
        found = [(target, named_group(target, feature_set.groups)) for target in targets]
        absent = [target for target, group in found if group is None]
        if absent:
            raise ValueError(
                f"The target group {absent[0]!r} is not in the feature set, which has statistics of "
                f"{', '.join(feature_set.groups)}."
            )
        own_targets = tuple(dict.fromkeys(group for _, group in found if group is not None))
        return cls(feature_set.groups, own_targets, unknown_group, token_language)

    @classmethod
    def for_tokens(cls, targets: Sequence[str], token_language: str | None = None) -> "GroupTable":
        """The groups of a penalty that needs no statistics: the targets, and every other group in the data."""
        return cls(tuple(targets), tuple(targets), "penalised", token_language)

    @property
    def penalised(self) -> tuple[str, ...]:
        """Groups whose tokens are penalised."""
        return tuple(name for name in self.names if name not in self.targets)

    @property
    def penalised_ids(self) -> list[int]:
        """Numbers of the penalised groups, and the number of unknown groups if these are allowed."""
        return [self.names.index(name) for name in self.penalised] + (
            [len(self.names)] if self.unknown_group != "error" else []
        )

    def number(self, name: object) -> int:
        """Number of a group."""
        if not isinstance(name, str):
            raise ValueError(f"An example's group must be a text, got {name!r}.")
        group = named_group(name, self.names, alike=self.targets)
        if group not in self.targets and self._writes_penalised_tokens(name):
            raise ValueError(
                f"The group {name!r} occurs in the data and is written in the script of "
                f"`penalised_tokens={self.token_language!r}`: its own words would be penalised. Set `target_group="
                f"{[*self.targets, name]}`, or name the tokens in a .json file to penalise them there too."
            )
        if group is not None:
            return self.names.index(group)
        if self.unknown_group == "error":
            raise ValueError(self.missing_statistics(name))
        target = self._misspelt_target(name)
        if target is not None:
            raise ValueError(
                f"The group {name!r} occurs in the data, and its answers would be penalised. Did you mean the target "
                f"{target!r}? Call it so, or, if it is another language, by another name."
            )
        return len(self.names)

    def _writes_penalised_tokens(self, name: str) -> bool:
        if self.token_language is None or not (_is_language(self.token_language) and _is_language(name)):
            return False
        scripts = target_scripts_of(self.token_language) - {"Latin"}  # no list of tokens stands for it
        return not scripts.isdisjoint(own_scripts(name))

    def number_of_text(self, text: str) -> int:
        """Number of the group of an answer, told from the answer's script; [`NO_GROUP`] if it has no letters."""
        group = self.detector()(text)
        return NO_GROUP if group is None else self.number(group)

    def detector(self) -> Callable[[str], str | None]:
        """The [`script_detector`] of these groups."""
        return script_detector(self.names, others=self.unknown_group != "error")

    def count(self, numbers: Iterable[int]) -> dict[str, int]:
        """How often the number of each group occurs, by the group's name; [`PADDING`] is not counted."""
        names = {NO_GROUP: NO_LETTERS, **dict(enumerate((*self.names, OTHER)))}
        return dict(sorted(Counter(names[number] for number in numbers if number != PADDING).items()))

    def log_unknown(self, names: Iterable[object], dataset_name: str) -> None:
        """Log which groups of a dataset are read with the mean of the others, if any."""
        if self.unknown_group == "mean":
            unknown = [str(name) for name in dict.fromkeys(names) if self.number(name) == len(self.names)]
            if unknown:
                logger.warning(
                    "Groups of the %s dataset without statistics, read with the mean of the others: %s.",
                    dataset_name,
                    ", ".join(sorted(unknown)),
                )

    def _misspelt_target(self, name: str) -> str | None:
        near = nearest_language(name, cutoff=_MISSPELT)
        if near is None or language_key(name).startswith(near):  # `zh-mixed` is a name of its own
            return None
        return next((target for target in self.targets if language_key(target).split("-")[0] == near), None)

    def missing_statistics(self, name: str) -> str:
        """Message to the user about a group without statistics."""
        return (
            f"The group {name!r} occurs in the data, but the feature set has statistics of "
            f"{', '.join(self.names)} only. Find the features again with texts of {name!r}, leave it out of the data, "
            f"or set `unknown_group='mean'` to use the mean of the other groups.{self._suggestion(name)}"
        )

    def _suggestion(self, name: str) -> str:
        near = nearest_language(name)
        group = None if near is None else named_group(near, self.names, alike=self.names)
        return "" if group is None or language_key(name) in OWN_SCRIPTS else f" Did you mean {group!r}?"

    def is_penalised(self, group_ids: Tensor) -> Tensor:
        """Which tokens of `group_ids`, any shape, belong to a group that is penalised."""
        penalised = group_ids >= 0
        for target in self.targets:
            penalised = penalised & (group_ids != self.names.index(target))
        return penalised

    def table(self, feature_set: FeatureSet, per_group_FG: Tensor) -> Tensor:
        """Statistics by group number, `(G + 1, F)`; the last row is the mean of the penalised groups."""
        table_GF = self.zeros(len(feature_set))
        for number, name in enumerate(self.names):
            if name in feature_set.groups:
                table_GF[number] = per_group_FG[:, feature_set.groups.index(name)]
        known = [number for number in self.penalised_ids if number < len(self.names)]
        if known:
            table_GF[len(self.names)] = table_GF[known].mean(dim=0)
        return table_GF

    def zeros(self, num_features: int) -> Tensor:
        """A table of zeros, `(G + 1, F)`."""
        return torch.zeros(len(self.names) + 1, num_features)


def _is_language(name: str) -> bool:
    return language_key(name).split("-")[0] in OWN_SCRIPTS


def find_group_column(
    row: Mapping[str, Any], column: str, table: GroupTable, dataset_name: str, *, by_script: bool = True
) -> str | None:
    """
    The column with the groups of a dataset, or `None` if they are told from the script of the answers (`by_script`:
    the rows hold some). Only a column with the default name may be absent.
    """
    if column in row:
        return column
    missing = f"The {dataset_name} dataset has no column {column!r} (`group_column`). It has {', '.join(sorted(row))}."
    if not by_script:
        raise ValueError(
            f"{missing} There is no answer to tell the group from: the model writes it in training, or the trainer "
            "has no tokenizer. Add the column."
        )
    if column != DEFAULT_GROUP_COLUMN:
        raise ValueError(missing)
    table.detector()  # refuses groups that scripts cannot tell apart
    logger.warning(
        "The %s dataset has no column %r: the group of each example is told from the script of its answer.",
        dataset_name,
        column,
    )
    return None


@dataclass(frozen=True)
class RowGroups:
    """
    Finds the number of a dataset row's group, from its column or from the script of its answer. Without the function
    `answer`, rows without the column are refused.
    """

    table: GroupTable
    column: str
    answer: Callable[[Mapping[str, Any]], str] | None = None
    by_script: bool = False

    def __call__(self, row: Mapping[str, Any]) -> int:
        """Number of the row's group."""
        if self.column in row:
            return self.table.number(row[self.column])
        if self.answer is None:
            raise ValueError(
                f"A row has no column {self.column!r} (`group_column`); it has {', '.join(sorted(row))}. Every "
                "dataset, of training and of evaluation, needs it."
            )
        return self.table.number_of_text(self.answer(row))


def require_penalised(
    penalised: Iterable[bool], table: GroupTable, *, streamed: bool, of_tokens: bool = False
) -> None:
    """
    Refuse a dataset in which no row would be penalised, given for each row whether it has a token to penalise.

    If the dataset is `streamed`, only its first thousand rows are read, with a warning. `of_tokens`: the penalty is on
    a set of tokens, and tokens of that set in the answers do not count.
    """
    for row, found in enumerate(penalised):
        if found:
            return
        if streamed and row + 1 == ROWS_READ_FROM_A_STREAM:
            logger.warning("None of the first %d examples has a token to penalise.", row + 1)
            return
    exempt = ", or all its tokens are of the penalised set" if of_tokens else ""
    raise ValueError(
        "No token of the training data would be penalised: every answer belongs to "
        f"{', '.join(table.targets)} or has no token in the loss{exempt}. Add answers of other groups, or change "
        "`target_group`."
    )


def add_group_ids(
    example: Mapping[str, Any], groups: GroupTable, column: str | None, decode: Callable[..., str] | None
) -> dict[str, list[int]]:
    """
    The column [`GROUP_IDS`] of a tokenized example: one number per token, since packing puts several into a row.
    Without a column, the script of the decoded answer tells the group.
    """
    if column is not None:
        number = groups.number(example[column])
    else:
        assert decode is not None
        answer = [token for token, label in zip(example["input_ids"], example["labels"]) if label != -100]
        number = groups.number_of_text(decode(answer, skip_special_tokens=True))
    return {GROUP_IDS: [number] * len(example["input_ids"])}


def require_penalised_tokens(dataset: Any, table: GroupTable, charged: Iterable[int] = ()) -> None:
    """
    Refuse a tokenized dataset with [`GROUP_IDS`] in which no token would be penalised. Answers' own tokens of the set
    `charged` are not penalised.
    """
    penalised, exempt = set(table.penalised_ids), {-100, *charged}
    has_token = (
        any(
            number in penalised and label not in exempt for number, label in zip(row[GROUP_IDS][1:], row["labels"][1:])
        )
        for row in dataset
    )
    require_penalised(has_token, table, streamed=not hasattr(dataset, "__len__"), of_tokens=len(exempt) > 1)


class GroupCollator:
    """
    The trainer's own data collator, and [`GROUP_IDS`] beside it: padded, or in one row for padding-free batches. An
    example may be a list of examples, where the collator packs those into one row.
    """

    def __init__(self, collator: Callable[[list[Any]], dict[str, Any]]):
        self.collator = collator

    def __call__(self, examples: list[Any]) -> dict[str, Any]:
        rows, own = [], []
        for example in examples:
            packed = example if isinstance(example, list) else [example]
            rows.append(torch.cat([torch.as_tensor(each[GROUP_IDS]) for each in packed]))
            without = [{key: value for key, value in each.items() if key != GROUP_IDS} for each in packed]
            own.append(without if isinstance(example, list) else without[0])
        batch = self.collator(own)
        num_rows, num_tokens = batch["labels"].shape
        if num_rows == 1:
            rows = [torch.cat(rows)]
        if len(rows) != num_rows or max(len(row) for row in rows) > num_tokens:
            raise ValueError(
                f"The collator made a batch of {num_rows} × {num_tokens} tokens from {len(rows)} examples of up to "
                f"{max(len(row) for row in rows)}; the group of each token is lost. Use the trainer's own collator."
            )
        group_ids = torch.full((num_rows, num_tokens), PADDING)
        real = batch.get("attention_mask")
        for i, row in enumerate(rows):
            if real is not None and real.dim() == 2 and (real[i] != 0).sum() == len(row):
                group_ids[i, real[i] != 0] = row  # a collator may pad on the left
            else:
                group_ids[i, : len(row)] = row
        return {**batch, GROUP_IDS: group_ids}
