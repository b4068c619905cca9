"""The command `report`."""

import argparse
from pathlib import Path


def add_report(parser: argparse.ArgumentParser) -> None:
    parser.description = "Compare evaluations and trainings in one HTML file, which needs no network."
    parser.add_argument(
        "runs",
        nargs="+",
        type=Path,
        metavar="RUN_DIR",
        help="folder with an evaluation or a training, or with several such folders",
    )
    parser.add_argument("--out", type=Path, default=Path("report.html"), help="file to write (default: report.html)")
    parser.add_argument("--title", default="Report", help="title of the page (default: Report)")
    parser.add_argument(
        "--baseline", type=Path, metavar="RUN_DIR", help="evaluation to compare with (default: the first)"
    )
    parser.set_defaults(run=_write_report)


def _write_report(arguments: argparse.Namespace) -> None:
    from ..measure.report.page import write_report
    from ..measure.report.runs import read_sections

    sections = read_sections(arguments.runs, baseline=arguments.baseline)
    print(f"Written: {write_report(arguments.out, sections, title=arguments.title)}")
