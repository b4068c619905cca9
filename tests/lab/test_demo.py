"""The demo, with a few questions and steps; the real one is a slow test."""

import re

import pytest

from sae_posttrain.cli import main
from sae_posttrain.lab import contents, demo, repetition, switching
from sae_posttrain.lab.demo import format_table, run_demo
from sae_posttrain.measure.report import Arm, Section


@pytest.fixture
def small(monkeypatch):
    """Sixteen questions a split, two steps a training."""

    def few(split):
        rows = contents.read_texts(split)
        ids = sorted({row["id"] for row in rows})[:: 20 if split != "train" else 10]
        return [row for row in rows if row["id"] in ids]

    for module in (switching, repetition, demo):
        monkeypatch.setattr(module, "read_texts", few)
        if module is not demo:
            monkeypatch.setattr(module, "STEPS", 2)
    monkeypatch.setattr(switching, "NUM_FEATURES", 2)
    monkeypatch.setattr(repetition, "GROUPS", 1)
    monkeypatch.setattr(repetition, "GROUP_SIZE", 4)
    monkeypatch.setattr(repetition, "SEARCH", {"num_candidates": 1, "num_loops": 2, "num_prompts": 2})
    monkeypatch.setattr(repetition, "CALIBRATION", {"strengths": (0.5,), "target": 0.01, "num_prompts": 8})


def test_demo_ends_with_a_table_and_a_report_of_both_halves(small, tmp_path, capsys):
    assert main(["demo", "--out", str(tmp_path / "demo")]) == 0
    printed = capsys.readouterr().out
    assert [int(number) for number in re.findall(r"^\[(\d)/9\]", printed, re.MULTILINE)] == list(range(1, 10))
    table = (tmp_path / "demo" / "table.txt").read_text(encoding="utf-8")
    assert table in printed
    for arm in ("before", "SFT", "SASFT (ours)", "plain DAPO", "steered DAPO (ours)"):
        assert re.search(rf"^  {re.escape(arm)} +\d+ of \d+: ", table, re.MULTILINE), arm
    assert str(tmp_path / "demo" / "report.html") in printed
    page = (tmp_path / "demo" / "report.html").read_text(encoding="utf-8")
    assert "Language switching" in page and "Endless repetition" in page
    for half in ("switching", "repetition"):
        assert (tmp_path / "demo" / half / "features.safetensors").exists()


def test_folder_that_holds_something_is_refused_before_any_work(tmp_path, capsys):
    (tmp_path / "mine.txt").write_text("keep")
    assert main(["demo", "--out", str(tmp_path)]) == 2
    assert "not an empty folder" in capsys.readouterr().err
    assert (tmp_path / "mine.txt").read_text() == "keep"


def test_table_shows_rates_differences_and_right_answers():
    def arm(name, faults):
        answers = [
            {"id": i, "sample": 0, "lang": "ko", "any": i < faults, "unexpected": i < faults, "right_language": True,
             "loop": {"endless": False, "loop_any": False, "near_loop": False}, "prompt": "?"}
            for i in range(20)
        ]  # fmt: skip
        rate = {"count": faults, "n": 20, "rate": faults / 20, "low": 0.0, "high": 0.5}
        return Arm(name, evaluation={"overall": {"any": {"1": rate}}}, answers=answers, capability=(15, 20))

    table = format_table([Section("Switching", [arm("SFT", 8), arm("ours", 0)], "switching", baseline="SFT")])
    sft, ours = table.splitlines()[2:]
    assert "8 of 20: 40.0 %" in sft and "75.0 %" in sft and "to SFT" not in sft
    assert "0 of 20: 0.0 %" in ours and "-40.0 [" in ours and "to SFT" in ours


@pytest.mark.slow
def test_quick_demo_lowers_switching_and_twice_makes_the_same_table(tmp_path):
    tables = []
    for name in ("one", "two"):
        run_demo(tmp_path / name, quick=True)
        tables.append((tmp_path / name / "table.txt").read_text(encoding="utf-8"))
    assert tables[0] == tables[1]
    counts = {name: int(num) for name, num in re.findall(r"^  (\S+).*? (\d+) of \d+:", tables[0], re.MULTILINE)}
    assert counts["SASFT"] <= 0.4 * counts["SFT"]
