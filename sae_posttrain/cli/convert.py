"""The command `convert`."""

import argparse
import sys
from pathlib import Path

from .inspect import add_source, source_options


def add_convert(parser: argparse.ArgumentParser) -> None:
    parser.description = "Write an SAE in SAELens' layout: cfg.json and sae_weights.safetensors, float32."
    add_source(parser)
    parser.add_argument("--out", type=Path, help="folder to write; it must be new or empty")
    parser.add_argument("old_out", nargs="?", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--block", type=int, required=True, help="decoder block, counted from 0")
    parser.set_defaults(run=_convert)


def _convert(arguments: argparse.Namespace) -> None:
    out = arguments.out or arguments.old_out
    if out is None:
        raise ValueError("Name the folder to write: --out FOLDER.")
    if arguments.out is None:
        print("The folder to write is now named with --out.", file=sys.stderr)
    from ..saes.convert import convert_sae

    written = convert_sae(arguments.sae, out, block=arguments.block, **source_options(arguments))
    for note in written.notes:
        print(f"Note: {note}")
    print(f"Written: {written.folder} (SAELens, architecture {written.architecture})")
