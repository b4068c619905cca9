"""Examples of the report: choose prompts whose answers are shown side by side, and mark the faults in them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from ..answers.summary import answer_key
from .data import MEASURES, Arm, Section
from .words import language

NUM_EXAMPLES = 6
"""Prompts that a section shows."""

_NUM_OF_KIND = {"only baseline": 3, "only last": 2, "both": 1, "neither": 0}

# With more arms, only the baseline and the last arm are shown side by side.
_MAX_COLUMNS = 4

_MAX_CHARS = 700
_CHARS_BEFORE_MARK = 160
_MAX_PROMPT_CHARS = 300

# Loops with a shorter cycle are marked as a whole, because marks for each round would be mostly borders.
_MIN_CYCLE_MARKED = 6


@dataclass(frozen=True)
class Piece:
    """
    A part of an answer: its text, the classes of its mark (none if it is not marked), and the meaning of the mark.

    The classes are `switch`, `excused` and `loop`, and `round` at the beginning of each round of a loop.
    """

    text: str
    kinds: tuple[str, ...] = ()
    meaning: str = ""


@dataclass(frozen=True)
class ShownAnswer:
    """An answer of one arm, cut to a readable length and divided into pieces."""

    title: str
    faulty: bool
    facts: str
    pieces: tuple[Piece, ...]
    cut_before: int
    cut_after: int


@dataclass(frozen=True)
class Example:
    """The answers of all arms to one prompt."""

    lang: str
    language: str
    prompt: str
    answers: tuple[ShownAnswer, ...]


@dataclass(frozen=True)
class Mark:
    """Characters `start` to `end` of an answer, with the class and the meaning of their mark."""

    start: int
    end: int
    kind: str
    meaning: str


def choose_examples(section: Section) -> tuple[str, list[Example]]:
    """
    Prompts that all arms answered: first those that show the fault in the baseline only, then in the last arm only.

    Within a kind, languages alternate and prompts are sorted by id, so nobody picked them. With more than four arms,
    only the baseline and the last arm are used. Returns how many prompts there are of each kind, as a sentence, and
    the examples; none if no prompt is common to all.
    """
    arms = [arm for arm in section.evaluated if arm.answers]
    if not arms or section.measure is None:
        return "", []
    first = next((arm for arm in arms if arm is section.reference), arms[0])
    last = next((arm for arm in reversed(arms) if arm is not first), first)
    if len(arms) > _MAX_COLUMNS:
        arms = [first, last]
    measure = MEASURES[section.measure]
    by_key = [{answer_key(answer): answer for answer in arm.answers} for arm in arms]
    keys = [key for key in by_key[0] if all(key in answers for answers in by_key[1:])]
    keys = [key for key in keys if len({answers[key]["prompt"] for answers in by_key}) == 1]
    of_first, of_last = (by_key[arms.index(arm)] for arm in (first, last))
    kinds: dict[str, list[Any]] = {kind: [] for kind in _NUM_OF_KIND}
    for key in keys:
        in_first, in_last = measure.shows(of_first[key]), measure.shows(of_last[key])
        kind = (
            "both" if in_first and in_last else "only baseline" if in_first else "only last" if in_last else "neither"
        )
        kinds[kind].append(key)
    shown = _take(kinds)
    examples = [_example(key, arms, [answers[key] for answers in by_key], section.measure) for key in shown]
    return _sentence(kinds, first, last, len(keys)), examples


def _take(kinds: Mapping[str, list[Any]]) -> list[Any]:
    """A number of each kind, then of any faulty kind until there are enough; a few of the others if none is faulty."""
    turns = {kind: _in_turns(keys) for kind, keys in kinds.items()}
    taken = {kind: keys[: _NUM_OF_KIND[kind]] for kind, keys in turns.items()}
    for kind in ("only baseline", "only last", "both"):
        free = NUM_EXAMPLES - sum(map(len, taken.values()))
        taken[kind] = turns[kind][: len(taken[kind]) + free]
    if not any(taken.values()):
        taken["neither"] = turns["neither"][:2]
    return [key for kind in _NUM_OF_KIND for key in taken[kind]]


def _in_turns(keys: Sequence[Any]) -> list[Any]:
    """Keys sorted by id within a language, with alternating languages."""
    by_lang: dict[str, list[Any]] = {}
    for key in sorted(keys, key=lambda key: (str(key[2]), str(key[0]), key[1])):
        by_lang.setdefault(key[2], []).append(key)
    most = max(map(len, by_lang.values()), default=0)
    return [of_lang[turn] for turn in range(most) for of_lang in by_lang.values() if turn < len(of_lang)]


def _sentence(kinds: Mapping[str, list[Any]], first: Arm, last: Arm, num: int) -> str:
    if len(kinds["neither"]) == num:
        return f"None of {num:,} answers to the same prompts shows the fault; these are just the first by id."
    if first is last:
        return f"{len(kinds['both'])} of {num} answers show the fault. Shown are the first of each language by id."
    counts = {kind: len(keys) for kind, keys in kinds.items()}
    return (
        f"Of {num} answers to the same prompts, {counts['only baseline']} show the fault only with {first.title}, "
        f"{counts['only last']} only with {last.title}, {counts['both']} with both and {counts['neither']} with "
        "neither. Shown are the first of each language by id, for each kind except the last."
    )


def _example(key: Any, arms: Sequence[Arm], answers: Sequence[Mapping[str, Any]], measure: str) -> Example:
    prompt = answers[0]["prompt"]
    if len(prompt) > _MAX_PROMPT_CHARS:
        prompt = prompt[:_MAX_PROMPT_CHARS].rstrip() + " …"
    shown = tuple(_show(arm.title, answer, measure) for arm, answer in zip(arms, answers))
    return Example(lang=str(key[2]), language=language(str(key[2])), prompt=prompt, answers=shown)


def _show(title: str, answer: Mapping[str, Any], measure: str) -> ShownAnswer:
    text = answer["answer"]
    marks = find_marks(answer)
    start, end = _window(text, marks)
    return ShownAnswer(
        title=title,
        faulty=MEASURES[measure].shows(answer),
        facts=_facts(answer),
        pieces=tuple(cut_pieces(text, marks, start, end)),
        cut_before=start,
        cut_after=len(text) - end,
    )


def show_whole(title: str, answer: Mapping[str, Any], faulty: bool) -> ShownAnswer:
    """An answer in full, divided into pieces."""
    text = answer["answer"]
    pieces = tuple(cut_pieces(text, find_marks(answer), 0, len(text)))
    return ShownAnswer(title, faulty, _facts(answer), tuple(piece for piece in pieces if piece.text), 0, 0)


def _facts(answer: Mapping[str, Any]) -> str:
    num_tokens = answer["num_tokens"]
    facts = [f"{num_tokens:,} tokens" if answer["finished"] else f"cut off at {num_tokens:,} tokens"]
    if answer["num_any"]:
        facts.append(f"{answer['num_any']} foreign character{'' if answer['num_any'] == 1 else 's'}")
    loop = answer.get("loop") or {}
    if loop.get("span"):
        facts.append(f"{loop['span']:,} tokens in a loop of {loop['period']}")
    elif loop.get("near_loop"):
        facts.append("nearly a loop")
    return ", ".join(facts)


def find_marks(answer: Mapping[str, Any]) -> list[Mark]:
    """
    What to mark in a line of `answers.jsonl`: each foreign run, and each round of its loop. Marks may overlap.

    The loop is recorded in tokens. In the text, it is the part that repeats and has about the same share of the
    answer.
    """
    text = answer["answer"]
    marks = []
    for span in answer["spans"]:
        start, end = span["start"], span["start"] + len(span["text"])
        if text[start:end] != span["text"]:
            continue  # the span belongs to another text, so it is not marked
        if span["excused"] is None and span["segment"] == "answer":
            marks.append(Mark(start, end, "switch", f"{span['script']} script"))
        else:
            reason = f"excused: {span['excused']}" if span["excused"] else "in the thinking"
            marks.append(Mark(start, end, "excused", f"{span['script']} script, {reason}"))
    found = locate_loop(text, answer.get("loop") or {}, answer["num_tokens"])
    if found is not None:
        start, end, period = found
        letters = len(text[start:end].lstrip())
        start = end - letters if letters else start  # a loop may hold empty lines alone
        step = period if period >= _MIN_CYCLE_MARKED else end - start
        # A loop has no natural beginning. If its text has lines, each round begins with a line.
        first = text.rfind("\n", start, start + step) + 1 or start + step
        rounds = [start, *range(first, end, step), end]
        for number, (left, right) in enumerate(pairwise(rounds), 1):
            if left < right:
                marks.append(Mark(left, right, "loop", f"loop, round {number}" if step == period else "loop"))
    return marks


def locate_loop(text: str, loop: Mapping[str, Any], num_tokens: int) -> tuple[int, int, int] | None:
    """
    Find a loop of tokens in the text: (start, end, period) in characters, or `None` if it is not found.

    Equal tokens give equal text, so the text repeats too, with a period near `period / num_tokens` of its length. The
    result is the smallest period whose repeated part is at least half as long as the loop's share of the tokens.
    """
    if not loop.get("span") or not loop.get("period") or not num_tokens:
        return None
    end = len(text.rstrip("\ufffd"))  # the answer may be cut within a character
    chars = np.frombuffer(text[:end].encode("utf-32-le", "surrogatepass"), dtype=np.uint32)
    expected = len(chars) * loop["span"] / num_tokens
    longest_period = min(len(chars) // 3, int(4 * len(chars) * loop["period"] / num_tokens) + 16)
    for period in range(1, longest_period + 1):
        same = np.concatenate(([False], chars[period:] == chars[:-period], [False]))
        edges = np.flatnonzero(same[1:] != same[:-1])
        if not len(edges):
            continue
        lengths = edges[1::2] - edges[::2]
        longest = int(lengths.argmax())
        length = int(lengths[longest]) + period
        if length >= max(3 * period, expected / 2):
            start = int(edges[2 * longest])
            return start, start + length, period
    return None


def _window(text: str, marks: Sequence[Mark]) -> tuple[int, int]:
    """The part that is shown: from the beginning, or from shortly before the first mark if it would be cut off."""
    if len(text) <= _MAX_CHARS:
        return 0, len(text)
    important = [mark.start for mark in marks if mark.kind != "excused"] or [mark.start for mark in marks]
    start = min(important, default=0) - _CHARS_BEFORE_MARK
    if start < _MAX_CHARS // 2:
        return 0, _MAX_CHARS
    start = min(start, len(text) - _MAX_CHARS)
    return start, start + _MAX_CHARS


def cut_pieces(text: str, marks: Sequence[Mark], start: int, end: int) -> list[Piece]:
    """`text[start:end]` in pieces, cut wherever a mark begins or ends. A piece has every mark that covers it."""
    cuts = {start, end} | {place for mark in marks for place in (mark.start, mark.end) if start < place < end}
    places = sorted(cuts)
    pieces = []
    for left, right in pairwise(places):
        covering = [mark for mark in marks if mark.start <= left and right <= mark.end]
        kinds = tuple(dict.fromkeys(mark.kind for mark in covering))
        if any(mark.kind == "loop" and mark.start == left for mark in covering):
            kinds += ("round",)
        pieces.append(Piece(text[left:right], kinds, "; ".join(mark.meaning for mark in covering)))
    return pieces
