"""The page says what the results say, and the results are those of all cases."""

import importlib.util
import json
from pathlib import Path

from pairs import FILE

ROOT = Path(__file__).resolve().parents[2]
spec = importlib.util.spec_from_file_location("compatibility", ROOT / "benchmarks" / "compatibility.py")
compatibility = importlib.util.module_from_spec(spec)
spec.loader.exec_module(compatibility)


def test_the_results_are_those_of_the_checked_in_cases():
    results = json.loads(compatibility.RESULTS.read_text())
    assert [entry["case"] for entry in results["cases"]] == json.loads(FILE.read_text())


def test_the_page_is_written_from_the_results():
    results = json.loads(compatibility.RESULTS.read_text())
    assert compatibility.PAGE.read_text(encoding="utf-8") == compatibility.page(results)
