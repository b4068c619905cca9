"""Answers in a terminal: two columns, with foreign characters and loops marked as in the report."""

import re
import unicodedata
from collections.abc import Iterable, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from ..measure.report.examples import Piece, ShownAnswer, show_whole
from ..measure.report.words import language
from .side_by_side import SideBySide, is_faulty

STYLES = {
    "switch": "bold white on red",
    "excused": "underline",
    "loop": "black on yellow",
    "round": "bold red on yellow",
}
"""Style of each mark; `round` is the first character of a round of a loop."""


_MANY_EMPTY_LINES = re.compile(r"\n(?:[ ]*\n){5,}")


def print_side_by_side(answers: SideBySide, console: Console) -> None:
    """
    Print every pair of answers, and what the marks mean.

    Args:
        answers ([`SideBySide`]):
            The answers.
        console (`rich.console.Console`):
            Where to print. Without colours, the line under an answer says what was found.
    """
    for plain, steered in zip(answers.plain, answers.steered):
        console.print()
        console.print(Text.assemble((f"{language(plain['lang'])}: ", "bold"), visible(plain["prompt"].strip())))
        table = Table(expand=True, show_lines=False, padding=(0, 1))
        shown = [
            show_whole(title, answer, is_faulty(answer)) for title, answer in zip(answers.titles, (plain, steered))
        ]
        for each in shown:
            table.add_column(Text(each.title), ratio=1, overflow="fold")
        table.add_row(*(answer_text(each) for each in shown))
        table.add_row(*(_verdict(each) for each in shown))
        console.print(table)
    console.print()
    console.print(legend())
    console.print(Text(counts(answers)))


def counts(answers: SideBySide) -> str:
    """How many answers of each column show a fault."""
    num = len(answers.plain)
    faulty = [sum(map(is_faulty, column)) for column in (answers.plain, answers.steered)]
    return "Faulty (an endless loop, or another script that nothing excuses): " + ", ".join(
        f"{title} {count} of {num}" for title, count in zip(answers.titles, faulty)
    )


def legend() -> Text:
    """What the marks mean."""
    return Text.assemble(
        "Marked: ",
        ("another script", STYLES["switch"]),
        "  ",
        ("another script, excused", STYLES["excused"]),
        "  ",
        ("a", STYLES["round"]),
        (" round of a loop", STYLES["loop"]),
    )


def answer_text(answer: ShownAnswer) -> Text:
    """An answer with its marks."""
    if not answer.pieces:
        return Text("[empty]", style="dim")
    return Text.assemble(*(part for piece in answer.pieces for part in _styled(piece)))


def shaded(tokens: Sequence[str], shades: Iterable[float]) -> Text:
    """
    Tokens on a background that is the stronger, the higher their reading is.

    Args:
        tokens (`Sequence[str]`):
            Texts of the tokens.
        shades (`Iterable[float]`):
            A number from 0 (no background) to 1 for each.
    """
    parts: list[Any] = []
    for token, shade in zip(tokens, shades):
        shade = min(max(shade, 0.0), 1.0)
        parts.append(
            (visible(token), f"black on rgb({255},{int(240 - 130 * shade)},{int(225 - 190 * shade)})")
            if shade > 0.05
            else visible(token)
        )
    return Text.assemble(*parts)


def visible(text: str) -> str:
    """A text whose control characters can do nothing to a terminal; ends of lines stay."""
    return "".join(
        char if char == "\n" or unicodedata.category(char) not in ("Cc", "Cf", "Cs") or char == "\u200d" else "\ufffd"
        for char in text.replace("\t", "    ").replace("\r\n", "\n")
    )


def _styled(piece: Piece) -> list[tuple[str, str]]:
    text = _MANY_EMPTY_LINES.sub(lambda lines: f"\n[{lines[0].count(chr(10))} empty lines]\n", visible(piece.text))
    kinds = set(piece.kinds)
    style = next((STYLES[kind] for kind in ("switch", "loop", "excused") if kind in kinds), "")
    if "round" in kinds and "switch" not in kinds and text:
        return [(text[0], STYLES["round"]), (text[1:], style)]
    return [(text, style)]


def _verdict(answer: ShownAnswer) -> Text:
    mark = ("faulty", "bold red") if answer.faulty else ("no fault", "green")
    return Text.assemble(mark, (f"; {answer.facts}", "dim"))
