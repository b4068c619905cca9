"""Texts of several groups, read and divided once: those that are measured, and those held out to judge by."""

import logging
import os
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from accelerate import PartialState

from ...languages import language_key, names_of_targets
from .duplicates import num_duplicates
from .text_options import ALL_TEXTS, TextOptions
from .texts import Text, TextBatch, batches, check_texts, split_held_out, tokenize

logger = logging.getLogger(__name__)


def read_group_rows(
    texts: str | os.PathLike | Iterable[Mapping[str, Any]],
    target_groups: Sequence[str],
    options: TextOptions = ALL_TEXTS,
    *,
    needs_others: bool = True,
) -> list[Mapping[str, Any]]:
    """
    Rows of texts, checked for the groups that are asked for before anything large is loaded.

    The target groups must occur, and another one if `needs_others`. Rows of the same language under another name get
    the target's name.
    """
    group_column = options.group_column
    rows = check_texts(texts, options.split, group_column=group_column, text_column=options.text_column)
    if not rows:
        raise ValueError("There are no texts.")
    groups = {row[group_column] for row in rows}
    renamed = names_of_targets(groups, target_groups)
    if renamed:
        rows = [{**row, group_column: renamed.get(row[group_column], row[group_column])} for row in rows]
        groups = {renamed.get(group, group) for group in groups}
    _warn_of_other_regions(groups, target_groups)
    absent = [group for group in target_groups if group not in groups]
    if absent:
        raise ValueError(
            f"No text belongs to the target group {absent[0]!r}; the groups are {', '.join(sorted(groups))}."
        )
    if needs_others and groups <= set(target_groups):
        raise ValueError(
            f"All texts belong to {', '.join(map(repr, sorted(groups)))}. Add texts of other groups to tell it apart "
            "from."
        )
    return rows


def _warn_of_other_regions(groups: Collection[str], target_groups: Sequence[str]) -> None:
    for target in target_groups:
        alike = sorted(g for g in groups if g not in target_groups and language_key(g) == language_key(target))
        if alike:
            logger.warning(
                "The texts have %s beside the target group %r: they count as other groups. Call all by one name if "
                "they are one.",
                ", ".join(map(repr, alike)),
                target,
            )


@dataclass(frozen=True)
class GroupedTexts:
    """
    Tokenized texts, divided as [`find_features`] divides them: with the same settings, into the same ones.

    Attributes:
        kept, held_out: Texts to measure, and texts to judge by.
    """

    kept: list[Text]
    held_out: list[Text]
    groups: tuple[str, ...]
    batch_size: int

    @classmethod
    def divide(
        cls,
        rows: Sequence[Mapping[str, Any]],
        tokenizer: Any,
        options: TextOptions,
        *,
        held_out: float,
        seed: int,
    ) -> "GroupedTexts":
        """Tokenize rows and hold a share of each group out; a share of 0 keeps all."""
        if not 0 <= held_out < 1:
            raise ValueError(f"`held_out` must be in [0, 1), got {held_out}.")
        texts = tokenize(rows, tokenizer, options)
        kept, judges = split_held_out(texts, held_out, options.max_texts, seed)
        return cls(kept, judges, tuple(sorted({text.group for text in kept})), options.batch_size)

    def batches(self, texts: Sequence[Text]) -> Iterator[TextBatch]:
        """Batches of some of the texts."""
        return batches(texts, self.groups, self.batch_size)

    @property
    def counts(self) -> dict[str, dict[str, int]]:
        """Texts of each group, and how many repeat others, for the notes of a feature set."""
        return {"num_duplicates": num_duplicates(self.kept + self.held_out)} | {
            name: {group: sum(text.group == group for text in texts) for group in self.groups}
            for name, texts in (("num_texts", self.kept), ("num_held_out", self.held_out))
        }


def share_of_process(texts: Sequence[Text]) -> list[Text]:
    """The texts that this process reads; all of them, but under `accelerate launch`."""
    state = PartialState()
    return list(texts[state.process_index :: state.num_processes])
