"""The command line: one file for each command, and each command is one public function of the package."""

from .commands import main, make_parser

__all__ = ["main", "make_parser"]
