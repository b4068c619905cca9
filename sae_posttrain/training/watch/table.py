"""A watch in the terminal: its rates, and a few answers with their faults marked, as TRL prints completions."""

from collections.abc import Mapping
from typing import Any

from .rates import HIGHER_IS_BETTER

_SHOWN_CHARS = 400


def is_faulty(answer: Mapping[str, Any]) -> bool:
    """Whether any flag of an answer is a bad one."""
    return any(_is_bad(name, flag) for name, flag in answer["flags"].items())


def print_watch(watch: Mapping[str, Any], num_shown: int) -> None:
    """Print a watch. The answers shown are faulty ones first. Needs `rich`."""
    from rich.console import Console
    from rich.panel import Panel
    from rich.table import Table
    from rich.text import Text

    answers = sorted(watch["answers"], key=lambda answer: not is_faulty(answer))[:num_shown]
    rates = "   ".join(
        f"{name} {100 * rate['rate']:.1f} % [{100 * rate['low']:.1f}, {100 * rate['high']:.1f}]"
        for name, rate in watch["rates"].items()
    )
    title = f"Watch at step {watch['step']}"
    console = Console()
    if not answers:
        console.print(Panel(Text(rates), title=title, expand=False))
        return
    table = Table(show_header=True, header_style="bold white", expand=True, title=Text(rates))
    table.add_column("Prompt", style="bright_yellow", ratio=2)
    table.add_column("Answer", ratio=5)
    table.add_column("Faults", style="bold cyan", min_width=len("not right_language"))
    for answer in answers:
        flags = answer["flags"].items()
        bad = [name if name not in HIGHER_IS_BETTER else f"not {name}" for name, flag in flags if _is_bad(name, flag)]
        table.add_row(Text(answer["prompt"][:_SHOWN_CHARS]), marked(answer), Text("\n".join(bad)))
        table.add_section()
    console.print(Panel(table, title=title, border_style="bold white"))


def _is_bad(name: str, flag: bool | None) -> bool:
    return flag is not None and flag != (name in HIGHER_IS_BETTER)


def marked(answer: Mapping[str, Any]) -> Any:
    """The answer as a `rich.text.Text`: unexpected characters red, a loop underlined, a long answer cut."""
    from rich.text import Text

    text = Text(answer["answer"], style="bright_green")
    if "loop_text" in answer:
        start, end = answer["loop_text"]
        text.stylize("underline magenta", start, end)
    for span in answer["spans"]:
        if span["excused"] is None:
            text.stylize("bold white on red", span["start"], span["start"] + len(span["text"]))
    if len(text) > _SHOWN_CHARS:
        half = _SHOWN_CHARS // 2
        text = Text.assemble(text[:half], (" … ", "dim"), text[-half:])
    return text
