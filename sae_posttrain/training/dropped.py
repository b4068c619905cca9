"""Warns about rows that training leaves out because their whole answer lies behind the length limit."""

import logging
import os
from collections import Counter
from collections.abc import Mapping

logger = logging.getLogger(__name__)


def say_dropped(before: Mapping[str, int], after: Mapping[str, int], name: str, max_length: int | None) -> None:
    """
    Warn how many rows of each group (`""`: of none) a trainer dropped, and which groups are gone. Only the first
    process warns.
    """
    lost = {group: number - after.get(group, 0) for group, number in before.items() if number > after.get(group, 0)}
    if not lost:
        return
    total, num_lost = sum(before.values()), sum(lost.values())
    by_group = ", ".join(f"{lost[group]} of {before[group]} in {group}" for group in sorted(lost) if group)
    said = (
        f"The {name} dataset: {num_lost} of {total} rows are dropped, because their whole answer lies behind "
        f"`max_length={max_length}` tokens{f' ({by_group})' if by_group else ''}."
    )
    if not sum(after.values()):
        raise ValueError(f"{said} Nothing is left to train on. Raise `max_length`, or shorten the prompts.")
    gone = sorted(group for group in lost if group and not after.get(group))
    if gone:
        said += f" NO ROW IS LEFT OF {', '.join(gone)}."
    if os.environ.get("RANK", "0") == "0":
        logger.warning("%s Raise `max_length`, or shorten the prompts.", said)


def count_groups(groups: list[str] | None, num_rows: int) -> Counter[str]:
    """Number of rows of each group, from the column of groups. Without a column all rows are of the group `""`."""
    return Counter({"": num_rows}) if groups is None else Counter(map(str, groups))
