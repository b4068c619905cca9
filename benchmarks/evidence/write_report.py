"""
Tables and pictures of an experiment, from its raw results: nothing is run.

    python benchmarks/evidence/write_report.py code_switching

Writes the pictures to docs/evidence/ and the tables to docs/evidence/details.md, between the marks of the experiment.
"""

import argparse
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
EVIDENCE = HERE.parent.parent / "docs" / "evidence"
PAGE = EVIDENCE / "details.md"
sys.path.insert(0, str(HERE))
sys.path.insert(0, str(HERE.parent / "help"))

from run import read_results  # noqa: E402
from settings import Experiment  # noqa: E402


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("experiment", choices=sorted(file.stem for file in HERE.glob("*.yaml")))
    parser.add_argument("--results", type=Path, default=HERE / "results")
    arguments = parser.parse_args(argv)
    experiment = Experiment.read(HERE / f"{arguments.experiment}.yaml")
    results = read_results(arguments.results / f"{experiment.name}.jsonl")
    tables = experiment.part("report").write(experiment, results, EVIDENCE)
    PAGE.write_text(with_tables(PAGE.read_text(encoding="utf-8"), experiment.name, tables), encoding="utf-8")
    print(tables)


def with_tables(page: str, name: str, tables: str) -> str:
    """The page with new tables between the marks of an experiment; a table needs a blank line before it."""
    begin, end = f"<!-- {name}: begin -->", f"<!-- {name}: end -->"
    if begin not in page or end not in page:
        raise ValueError(f"docs/evidence/details.md has no marks {begin} and {end}.")
    before, rest = page.split(begin)
    return f"{before}{begin}\n\n{tables}\n\n{end}{rest.split(end)[1]}"


if __name__ == "__main__":
    main()
