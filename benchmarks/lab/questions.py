"""
Questions and answers of the embedded lab: everyday topics in English, Chinese, Korean and Russian.

All texts are written for this project, by the generator in this file and the modules in `topics`: templates and small
tables of words, nothing taken from anybody else's text. Each question exists in all four languages under one id. Many
answers can be checked; lists, tables, refrains and words said again are repetition that is no fault; answers of the
kind `translate` hold another language because they were asked to.
"""

from dataclasses import dataclass
from itertools import chain

from topics import arithmetic, days, echo, groups, home, lists, nature, people
from topics.text import LANGS, MARK, unmarked

TOPICS = (arithmetic, nature, groups, days, lists, home, people, echo)


@dataclass(frozen=True)
class Question:
    """
    A question and its answer.

    Args:
        id (`str`):
            The same in all four languages, `sum-007-005-1`.
        kind (`str`):
            What is asked for: `sum`, `list`, `price`, `repeat`, …
        lang (`str`):
            `en`, `zh`, `ko` or `ru`.
        check (`str`):
            Text that a right answer holds, whatever the case of its letters, and the prompt does not; empty where
            nothing can be checked.
        swaps (`tuple[tuple[str, str], ...]`):
            Words of `answer` as they stand in it, with the Chinese for each. A word's first occurrence in the answer
            is the word meant. Empty for Chinese and for `translate`.
    """

    id: str
    kind: str
    lang: str
    prompt: str
    answer: str
    check: str
    swaps: tuple[tuple[str, str], ...]


def all_questions() -> list[Question]:
    """All questions, those of one id together, in a fixed order: the same on every call and machine."""
    questions: list[Question] = []
    asked: set[tuple[str, str]] = set()
    for draft in chain.from_iterable(topic.drafts() for topic in TOPICS):
        prompts = {(lang, draft.texts[lang][0]) for lang in LANGS}
        if prompts & asked:  # two ids chose the same words in some language: the first one stays
            continue
        asked |= prompts
        for lang in LANGS:
            prompt, marked_answer, check = draft.texts[lang]
            swaps = () if lang == "zh" or draft.kind == "translate" else swaps_of(marked_answer)
            questions.append(Question(draft.id, draft.kind, lang, prompt, unmarked(marked_answer), check, swaps))
    return questions


def swaps_of(marked_answer: str) -> tuple[tuple[str, str], ...]:
    """The marked words with their Chinese, less those that already stand inside an earlier word."""
    answer, swaps, removed = unmarked(marked_answer), {}, 0
    for match in MARK.finditer(marked_answer):
        word, chinese = match.groups()
        if answer.find(word) == match.start() - removed:
            swaps[word] = chinese
        removed += len(match[0]) - len(word)
    return tuple(swaps.items())
