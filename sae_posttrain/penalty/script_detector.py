"""Which of some languages a text is in, told from its script."""

from collections.abc import Callable, Sequence

from ..languages import scripts_of
from ..measure.faults.scripts import count_scripts

OTHER = "other"
"""Name of a group that is in the data but not in the table."""


def script_detector(groups: Sequence[str], *, others: bool = False) -> Callable[[str], str | None]:
    """
    A function that tells the group of a text from its script, for groups that are languages.

    It gives `None` for a text without letters. Texts in a script of none of these languages are of the group `"other"`
    with `others`; without, such scripts are ignored, and it raises a `ValueError` for a text that has no other
    letters.
    """
    group_of: dict[str, str] = {}
    for group in groups:
        try:
            scripts = scripts_of(group)
        except ValueError:
            raise ValueError(
                f"The dataset has no group column, and {group!r} is no language whose script is known. "
                "Add a column with the group of each example and name it in `group_column`."
            ) from None
        for script in scripts:
            if script in group_of:
                raise ValueError(
                    f"The dataset has no group column, and {group_of[script]!r} and {group!r} share the script "
                    f"{script}, so the text cannot tell them apart. Add a column with the group of each example and "
                    "name it in `group_column`."
                )
            group_of[script] = group

    def detect(text: str) -> str | None:
        found = count_scripts(text)
        if not found:
            return None
        counts = {script: n for script, n in found.items() if others or script in group_of}
        # Latin names and terms stand in texts of every language, so another script decides where there is one.
        not_latin = {script: n for script, n in counts.items() if script != "Latin"}
        total = sum(counts.values())
        if not total:
            raise ValueError(
                f"The group of an example cannot be told from its script: {text[:80]!r} is in {', '.join(found)}, "
                f"and the groups are {', '.join(groups)}. Leave it out, add a column with the group of each example "
                "and name it in `group_column`, or set `unknown_group='mean'`."
            )
        if not_latin and sum(not_latin.values()) >= 0.3 * total:
            counts = not_latin
        return group_of.get(max(counts, key=counts.__getitem__), OTHER)

    return detect
