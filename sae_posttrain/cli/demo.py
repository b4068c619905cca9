"""The command `demo`."""

import argparse

from .options import add_out, add_seed


def add_demo(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Find features, train without and with them, and compare, on a small model that ships with the package: "
        "language switching, then endless repetition. Minutes on a CPU; nothing is downloaded."
    )
    add_out(parser, "folder to write; it must be new or empty, except with --resume or --overwrite")
    parser.add_argument("--quick", action="store_true", help="only the first half, language switching")
    add_seed(parser, "training and sampling")
    used = parser.add_mutually_exclusive_group()
    used.add_argument("--resume", action="store_true", help="continue the interrupted demo in the folder")
    used.add_argument("--overwrite", action="store_true", help="remove the demo in the folder, and start again")
    parser.set_defaults(run=_demo)


def _demo(arguments: argparse.Namespace) -> None:
    from ..lab.demo import run_demo

    run_demo(
        arguments.out,
        quick=arguments.quick,
        seed=arguments.seed,
        resume=arguments.resume,
        overwrite=arguments.overwrite,
    )
