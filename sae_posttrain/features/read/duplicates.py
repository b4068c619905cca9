"""Copies of one text: told by what they say, and kept on one side when texts are divided."""

import hashlib
import logging
import unicodedata
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .texts import Text

logger = logging.getLogger(__name__)

Key = str | tuple[int, ...]
"""What copies of a text have in common: [`text_key`], or the token ids of a text that has none."""


def text_key(text: str) -> str:
    """
    The same for texts that differ in case, spaces or the form of their characters only (Unicode NFKC), as a hash.
    """
    normal = " ".join(unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold()).split())
    return hashlib.blake2b(normal.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()


def num_duplicates(texts: Sequence["Text"]) -> dict[str, int]:
    """Number of texts in each group that repeat an earlier text of any group; groups without any are left out."""
    seen: set[Key] = set()
    repeated: Counter[str] = Counter()
    for text in texts:
        key = _key(text)
        repeated[text.group] += key in seen
        seen.add(key)
    return {group: number for group, number in repeated.items() if number}


def hold_out(
    by_group: Mapping[str, Sequence["Text"]], fraction: float
) -> tuple[dict[str, list["Text"]], dict[str, list["Text"]]]:
    """
    Hold back a fraction of each group, all copies of a text on one side, whatever their groups. Returns the kept and
    the held-out texts.

    Without duplicates, the first texts of each group are held back. With some, a group's share can differ from the
    fraction by the copies of one text.
    """
    sizes = {group: Counter(map(_key, members)) for group, members in by_group.items()}
    is_held: dict[Key, bool] = {}
    for group, members in by_group.items():
        wanted = min(max(1, round(fraction * len(members))), len(members) - 1) if fraction else 0
        num_held = sum(size for key, size in sizes[group].items() if is_held.get(key))
        for key, size in sizes[group].items():
            if key not in is_held:
                is_held[key] = num_held + size <= wanted
                num_held += size * is_held[key]
    if fraction:
        for group in by_group:
            for side in (True, False):
                _leave_some(group, side, sizes, is_held)
    kept = {group: [text for text in members if not is_held[_key(text)]] for group, members in by_group.items()}
    held_out = {group: [text for text in members if is_held[_key(text)]] for group, members in by_group.items()}
    if repeated := num_duplicates([text for members in by_group.values() for text in members]):
        logger.warning(
            "%d of %d texts repeat others, up to case and spaces (%s). Copies stay on one side of the split.",
            sum(repeated.values()),
            sum(map(len, by_group.values())),
            ", ".join(f"{group}: {number}" for group, number in repeated.items()),
        )
    return kept, held_out


def _leave_some(group: str, side: bool, sizes: Mapping[str, Counter[Key]], is_held: dict[Key, bool]) -> None:
    """See that a group has a text on one side of the split: bring the smallest over that no group needs elsewhere."""
    if any(is_held[key] == side for key in sizes[group]):
        return
    for key in sorted(sizes[group], key=lambda key: sizes[group][key]):
        rest = [[is_held[other] for other in members if other != key] for members in sizes.values() if key in members]
        if all((not side) in sides for sides in rest):
            is_held[key] = side
            return
    num_texts, num_different = sizes[group].total(), len(sizes[group])
    if num_different == 1:
        found = f"the {num_texts} texts of the group {group!r} are copies of one"
    else:
        found = f"the texts of the group {group!r} stand in other groups too, and cannot be divided with these"
    raise ValueError(
        f"No text can be held out to judge by: {found}. Copies of a text (up to case and spaces) stay on one side of "
        "the split. Give two or more different texts of each group, a few hundred if you can."
    )


def _key(text: "Text") -> Key:
    return text.key or text.ids
