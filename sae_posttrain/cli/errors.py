"""How a mistake reads on the command line: one line, in the command's own options."""

import argparse
import re
import sys
from pathlib import Path
from typing import NoReturn

MISTAKES = (ValueError, OSError, ImportError)
"""What a mistake in the input raises. It is printed in one line, without a traceback."""

_OTHER_NAMES = {
    "find-features": {"chat_template": "plain"},
    "calibrate": {"feature_set": "features", "chat_template": "plain"},
    "convert": {"output_dir": "out"},
    "evaluate": {"output_dir": "out", "lid_languages": "lid", "chat_template": "plain"},
    "train-sae": {"output_dir": "out", "learning_rate": "lr", "l1_coefficient": "l1"},
    "demo": {"output_dir": "out"},
    "generate": {"feature_set": "features"},
    "synthesise": {"output_dir": "out", "base_url": "endpoint", "only_missing": "all_targets"},
    "chat": {"feature_set": "features"},
}
"""For each command, arguments of its function whose option has another name."""

_WORDS = re.compile(r"[^\s,\[\]()'\"]+")  # words of a Python list or text
_QUOTED = re.compile(r"`([A-Za-z_]\w*)(?:=([^`]*))?`")


class OneLineParser(argparse.ArgumentParser):
    """A parser whose errors are one line too: the list of all options would hide it."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {message}. `{self.prog} --help` lists the options.\n")


def mistake(message: str) -> int:
    """Print what is wrong; the exit status."""
    print(f"sae-posttrain: {message}", file=sys.stderr)
    return 2


def options_of(parser: argparse.ArgumentParser, command: str) -> dict[str, argparse.Action]:
    """The options of a command, by the name that errors of its function may use."""
    subparsers = next(each for each in parser._actions if isinstance(each, argparse._SubParsersAction))
    actions = {
        action.dest: action for action in subparsers.choices[command]._actions if action.help != argparse.SUPPRESS
    }
    others = _OTHER_NAMES.get(command, {})
    return actions | {name: actions[dest] for name, dest in others.items() if dest in actions}


def in_options(message: str, options: dict[str, argparse.Action]) -> str:
    """
    Write the arguments of a function in a message as options of the command.

    `` `max_texts` `` becomes `--max-texts`, and `` `k=50` `` becomes `--k 50`. An argument that a switch sets becomes
    the switch. Anything else in backticks stays.
    """

    def option(found: re.Match[str]) -> str:
        name, value = found[1], found[2]
        action = options.get(name)
        if action is None:
            return found[0]
        shown = max(action.option_strings, key=len) if action.option_strings else str(action.metavar or action.dest)
        if value is None or action.nargs == 0:
            return shown
        return f"{shown} {' '.join(_WORDS.findall(value)) or value}"

    message = _QUOTED.sub(option, message)
    # the message names the option itself
    return re.sub(r"(--[\w-]+(?: [^\s()`]+)?) \((?:on the command line )?`\1`\)", r"\1", message)


def in_one_line(error: BaseException) -> str:
    """
    The message of an error. Errors of this package keep their lines; the lines of other errors are joined.
    """
    message = str(error).strip() or type(error).__name__
    if is_ours(error) or "\n" not in message:
        return message
    return re.sub(r"\s+", " ", message)


def is_ours(error: BaseException) -> bool:
    """Whether this package raised an error; it is then about what the user gave."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return trace is not None and Path(__file__).parents[1] in Path(trace.tb_frame.f_code.co_filename).parents
