"""Drop training examples whose answer switches script: the plainest thing to do about unexpected code-switching."""

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ..conversations import read_row
from ..measure.answers.prompts import language_of
from ..measure.faults.scripts import can_measure
from ..measure.faults.switching import find_switches
from ..row_checks import located

if TYPE_CHECKING:
    from datasets import Dataset

logger = logging.getLogger(__name__)


def drop_switched(
    dataset: "Dataset", *, group_column: str = "lang", target_lang: str | None = None, min_chars: int = 1
) -> "Dataset":
    """
    The rows whose answers hold no unexpected switch, as [`find_switches`] tells them.

    What a switch is excused by is excused here too: code, formulas, addresses, quoted terms and glosses, text
    copied from what was asked. Rows in which a switch cannot show (answers in the target language, or in one of its
    script) are kept. A warning says how many rows of which language went; also when none did.

    Args:
        dataset (`datasets.Dataset`):
            With `messages` (each answer of the assistant counts), `prompt` and `completion` (text or messages), or
            `text` (all of it counts), and a column of languages.
        group_column (`str`, *optional*, defaults to `"lang"`):
            Column with the language of the answer: a code or name.
        target_lang (`str`, *optional*):
            Only switches into this language count, e.g. `"zh"`. By default every foreign script does.
        min_chars (`int`, *optional*, defaults to `1`):
            Foreign characters that an answer must hold to be dropped.

    Returns:
        `datasets.Dataset`: the rows that stay, in their order, with all columns.

    Raises:
        ValueError: If the dataset is empty or streamed, a row has no answer or no known language, a switch could show
            in no row, or every row would go.
    """
    if not hasattr(dataset, "select") or not hasattr(dataset, "__len__"):
        raise ValueError(
            f"`drop_switched` reads a `datasets.Dataset`, got {type(dataset).__name__}. Of a stream, filter the rows "
            "with `find_switches`."
        )
    if isinstance(min_chars, bool) or not isinstance(min_chars, int) or min_chars < 1:
        raise ValueError(f"`min_chars` is a number of characters, 1 or more, got {min_chars!r}.")
    kept: list[int] = []
    seen: Counter[str] = Counter()
    dropped: Counter[str] = Counter()
    num_measured = 0
    for index, (where, given) in enumerate(located(dataset, "the dataset")):
        row = read_row(given, where)
        lang = language_of(row, group_column, where)
        seen[lang] += 1
        shows = can_measure(lang, target_lang)
        num_measured += shows
        if shows and any(
            find_switches(answer, lang=lang, prompt=asked, target_lang=target_lang).unexpected_at_least(min_chars)
            for asked, answer in _answers(row, where)
        ):
            dropped[lang] += 1
        else:
            kept.append(index)

    into = f" into {target_lang!r}" if target_lang else ""
    if not num_measured:
        raise ValueError(
            f"No row of {len(dataset)} can show a switch{into}; their languages are: "
            f"{', '.join(sorted(seen)) or 'none'}. Choose another `target_lang`, or None for any foreign script."
        )
    if not kept:
        raise ValueError(
            f"Every row of {len(dataset)} holds an unexpected switch{into}: nothing would be left. Is "
            f"`group_column={group_column!r}` the language of the answer?"
        )
    if not dropped:
        logger.warning(
            "No row of %d holds an unexpected switch%s (it could show in %d): the filter changes nothing.",
            len(dataset),
            into,
            num_measured,
        )
        return dataset
    logger.warning(
        "Dropped %d of %d rows with an unexpected switch%s: %s.",
        dropped.total(),
        len(dataset),
        into,
        ", ".join(f"{lang} {number} of {seen[lang]}" for lang, number in sorted(dropped.items())),
    )
    return dataset.select(kept)


def _answers(row: Mapping[str, Any], where: str) -> list[tuple[str, str]]:
    """Each answer of a row, and what was asked before it."""
    if row.get("messages") is not None:
        messages = row["messages"]
    elif row.get("completion") is not None:
        messages = [*_messages(row.get("prompt"), "user"), *_messages(row["completion"], "assistant")]
    elif isinstance(row.get("text"), str):
        return [("", row["text"])]
    else:
        raise ValueError(
            f"{where} holds no answer: it needs `messages`, `prompt` and `completion`, or `text`. It has: "
            f"{', '.join(sorted(row))}."
        )
    answers: list[tuple[str, str]] = []
    asked: list[str] = []
    for message in messages:
        content = message.get("content") or ""
        if message["role"] == "assistant":
            answers.append(("\n".join(asked), content))
        else:
            asked.append(content)
    if not answers:
        raise ValueError(f"{where} holds no answer: none of its messages is the assistant's.")
    return answers


def _messages(turns: Any, role: str) -> Sequence[Any]:
    return [{"role": role, "content": turns}] if isinstance(turns, str) else turns or []
