"""The command `watch`."""

import argparse
from contextlib import suppress
from pathlib import Path


def add_watch(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Show the rates and the answers of a run that trains with watched prompts (`watch_prompts`, or a "
        "FaultWatchCallback), on a page that follows the run. The page is served to this machine alone and read-only."
    )
    parser.add_argument("run_dir", metavar="RUN_DIR", type=Path, help="`output_dir` of the training")
    parser.add_argument(
        "--port", type=int, default=8600, help="port on this machine; 0 takes a free one (default: 8600)"
    )
    parser.set_defaults(run=_watch)


def _watch(arguments: argparse.Namespace) -> None:
    from ..training.watch.serve import WatchServer

    with WatchServer(arguments.run_dir, arguments.port) as server, suppress(KeyboardInterrupt):
        print(f"{arguments.run_dir} is shown at {server.address} (Ctrl-C ends it).", flush=True)
        server.serve_forever()
