"""The files at the front door say what the code says."""

import re
import tomllib
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
PAGES = ("CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md")


def read(name):
    return (ROOT / name).read_text(encoding="utf-8")


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_to_files(page):
    places = [place for place in re.findall(r"\]\(([^)]+)\)", read(page)) if "://" not in place]
    for place in places:
        assert (ROOT / place).exists(), place


def test_the_table_of_rooms_has_every_room():
    rows = re.findall(r"^\| (`\w+`(?:, `\w+`)*) \|", read("CONTRIBUTING.md"), re.MULTILINE)
    rooms = {room for row in rows for room in re.findall(r"\w+", row)}
    package = ROOT / "sae_posttrain"
    assert rooms == {file.parent.name for file in package.glob("*/__init__.py")}


def test_version_is_the_same_everywhere():
    citation = yaml.safe_load(read("CITATION.cff"))
    assert citation["version"] == PROJECT["version"]
    released = re.findall(r"^## \[(\d[^]]*)\] - (\S+)$", read("CHANGELOG.md"), re.MULTILINE)
    assert released[0] == (citation["version"], citation["date-released"])
    assert citation["license"] == PROJECT["license"]


def test_ruff_of_the_commit_hook_is_the_pinned_one():
    pinned = next(each for each in PROJECT["optional-dependencies"]["dev"] if each.startswith("ruff=="))
    hook = yaml.safe_load(read(".pre-commit-config.yaml"))["repos"][0]
    assert hook["rev"] == f"v{pinned.removeprefix('ruff==')}"


def test_workflow_runs_the_supported_pythons_on_what_contributors_run():
    jobs = yaml.safe_load(read(".github/workflows/tests.yml"))["jobs"]
    assert jobs["docs"]["steps"][-1]["run"] == "make docs"
    job = jobs["check-and-test"]
    pythons = job["strategy"]["matrix"]["python"]
    assert f">={pythons[0]}" == PROJECT["requires-python"]
    supported = {each.rsplit(" ", 1)[1] for each in PROJECT["classifiers"] if " :: 3." in each}
    assert supported <= set(pythons)
    assert job["steps"][-1]["run"] == "make check test"
    assert "`make check test` must pass" in read("CONTRIBUTING.md")


def test_issue_forms_are_forms():
    forms = [path for path in (ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml") if path.name != "config.yml"]
    assert len(forms) >= 3
    for path in forms:
        form = yaml.safe_load(path.read_text(encoding="utf-8"))
        assert form["name"] and form["description"], path
        ids = [each["id"] for each in form["body"]]
        assert len(set(ids)) == len(ids)


def test_what_the_security_page_promises_is_what_the_fuzz_test_holds():
    fuzz = read("tests/saes/fuzz.py")
    assert "MAX_SECONDS = 1.0" in fuzz and "MAX_BYTES = 64 << 20" in fuzz and "NUM_QUICK = 300" in fuzz
    assert "NUM_SLOW = 10_000" in read("tests/saes/test_fuzz.py")
    assert all(promise in read("SECURITY.md") for promise in ("more than 1 s", "64 MB", "300 damaged", "10,000 files"))
    for file in (ROOT / "sae_posttrain" / "saes").rglob("*.py"):
        assert "torch.load(" not in file.read_text(encoding="utf-8"), file
