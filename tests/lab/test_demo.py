"""The demo, with a few questions and steps; the real one is a slow test."""

import contextlib
import io
import json
import re
import runpy
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from sae_posttrain.cli import main
from sae_posttrain.lab import arms, contents, demo, record, repetition, switching
from sae_posttrain.lab.demo import NOTICE, format_table, run_demo
from sae_posttrain.measure.report.page import Arm, Section

QUICK = ["features.safetensors", "before", "sft-model", "sft", "sasft-model", "sasft"]


@pytest.fixture(scope="module")
def small():
    """A few questions of each split, two steps a training."""

    def few(split):
        rows = contents.read_texts(split)
        ids = sorted({row["id"] for row in rows})[:: 20 if split != "train" else 10]
        return [row for row in rows if row["id"] in ids]

    with pytest.MonkeyPatch.context() as patch:
        for module in (switching, repetition, arms):
            patch.setattr(module, "read_texts", few)
        for name in ("STEPS", "QUICK_STEPS", "NUM_FEATURES"):
            patch.setattr(switching, name, 2)
        patch.setattr(switching, "BATCH_SIZE", 4)
        patch.setitem(switching.SAMPLING, "max_new_tokens", 24)
        patch.setattr(repetition, "STEPS", 2)
        patch.setattr(repetition, "MAX_NEW_TOKENS", 80)
        patch.setitem(repetition.SAMPLING, "max_new_tokens", 64)
        patch.setattr(repetition, "NUM_PROMPTS", 1)
        patch.setattr(repetition, "NUM_GENERATIONS", 4)
        patch.setattr(repetition, "SEARCH", {"num_candidates": 1, "num_loops": 2, "num_prompts": 2})
        patch.setattr(repetition, "CALIBRATION", {"strengths": (0.5,), "target": 0.01, "num_prompts": 8})
        yield


@pytest.fixture(scope="module")
def finished(small, tmp_path_factory):
    """Folder of a demo that ran without a break, and what it printed. Only its last report is drawn, to save time."""
    folder = tmp_path_factory.mktemp("lab") / "a demo"
    draw = demo.write_report

    def draw_the_last(path, *sections, notice, **options):
        return path if "not finished" in notice else draw(path, *sections, notice=notice, **options)

    with contextlib.redirect_stdout(io.StringIO()) as printed, pytest.MonkeyPatch.context() as patch:
        patch.setattr(demo, "write_report", draw_the_last)
        assert main(["demo", "--out", str(folder)]) == 0
    return folder, printed.getvalue()


def test_demo_ends_with_a_table_and_a_report_of_both_halves(finished):
    folder, printed = finished
    assert [int(number) for number in re.findall(r"^\[(\d+)/13\]", printed, re.MULTILINE)] == list(range(1, 14))
    table = (folder / "table.txt").read_text(encoding="utf-8")
    assert table in printed
    for arm in ("before", "SFT", "SASFT (ours)", "plain DAPO", "steered DAPO (ours)"):
        assert re.search(rf"^  {re.escape(arm)} +\d+ of \d+: ", table, re.MULTILINE), arm
    assert str(folder / "report.html") in printed
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert "Language switching, planted" in page and "Endless repetition, planted" in page
    assert "not finished" not in page


def test_report_and_table_compare_steered_with_plain_dapo_and_say_planted_first(finished):
    folder, _ = finished
    table = (folder / "table.txt").read_text(encoding="utf-8")
    assert re.search(r"^  steered DAPO \(ours\) .*\[.*\] to plain DAPO .*%.*\[.*\]$", table, re.MULTILINE)
    assert re.search(r"^  SASFT \(ours\) .*\[.*\] to SFT .*%.*\[[-+\d., ]+\]$", table, re.MULTILINE)
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert "steered DAPO (ours) minus plain DAPO" in page and "SASFT (ours) minus SFT" in page
    assert page.index(NOTICE) < page.index("<h2>")
    assert "planted" in NOTICE


def test_trained_models_are_kept(finished):
    folder, _ = finished
    for arm in ("switching/sft", "switching/sasft", "repetition/dapo", "repetition/steered"):
        model, tokenizer = arms.load(arms.model_folder(folder / arm))
        assert tokenizer.chat_template and model.config.num_hidden_layers == 4
    for half in ("switching", "repetition"):
        assert (folder / half / "features.safetensors").exists()


def test_interrupted_demo_goes_on_without_doing_finished_stages_again_and_ends_the_same(
    finished, tmp_path, monkeypatch
):
    whole, folder = finished[0], tmp_path / "demo"
    shutil.copytree(whole, folder)
    entered = json.loads((folder / "demo.json").read_text(encoding="utf-8"))
    missing = ["switching/sasft-model", "switching/sasft", "repetition/steered-model", "repetition/steered"]
    for name in missing:
        del entered["seconds"][name]
    (folder / "demo.json").write_text(json.dumps(entered), encoding="utf-8")
    (folder / "table.txt").unlink()
    for name in ("switching/sasft-model/model.safetensors", "repetition/steered/answers.jsonl"):
        content = (folder / name).read_bytes()
        (folder / name).write_bytes(content[: len(content) // 2])  # what the stage had written when it was stopped
    begun, run = [], record.Record.run
    monkeypatch.setattr(demo, "write_report", lambda path, *_, **__: path)  # the pictures take most of the time
    monkeypatch.setattr(record.Record, "run", lambda self, stage: begun.append(stage.makes) or run(self, stage))
    assert main(["demo", "--out", str(folder), "--resume"]) == 0
    assert [made.relative_to(folder).as_posix() for made in begun] == missing
    same = [*whole.glob("*/*/answers.jsonl"), *whole.glob("*/*-model/model.safetensors"), whole / "table.txt"]
    assert len(same) == 6 + 4 + 1
    for path in same:
        assert (folder / path.relative_to(whole)).read_bytes() == path.read_bytes(), path


def test_table_and_report_are_there_as_soon_as_an_arm_is_measured(small, tmp_path, monkeypatch):
    run = record.Record.run

    def stopped(self, stage):
        if stage.makes.name == "sft-model":
            raise KeyboardInterrupt
        run(self, stage)

    monkeypatch.setattr(record.Record, "run", stopped)
    with pytest.raises(KeyboardInterrupt):
        run_demo(tmp_path, quick=True)
    table = (tmp_path / "table.txt").read_text(encoding="utf-8")
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "  before" in table and "  SFT" not in table
    for text in (table, page):
        assert "This run is not finished: 4 stages are missing. --resume goes on." in text


def test_finished_demo_is_not_run_again_but_shown(finished, monkeypatch, capsys):
    folder, _ = finished
    monkeypatch.setattr(record.Record, "run", lambda *_: pytest.fail("a finished stage was run"))
    monkeypatch.setattr(demo, "write_report", lambda path, *_, **__: path)
    assert main(["demo", "--out", str(folder), "--resume"]) == 0
    assert (folder / "table.txt").read_text(encoding="utf-8") in capsys.readouterr().out


def commands_of(printed):
    """The lines below "Try the models", as a shell would take them."""
    lines = printed.split("Try the models that were trained:\n")[-1].splitlines()
    return [words for line in lines if (words := shlex.split(line, comments=True))]


def test_the_three_commands_at_the_end_run_as_printed(finished, capsys):
    folder, printed = finished
    again, steered, report = commands_of(printed)
    assert Path(again[0]).name == Path(report[0]).name == "sae-posttrain"
    assert main(again[1:]) == 0
    assert "Difference to sft-model" in capsys.readouterr().out
    runpy.run_path(steered[1], run_name="__main__")
    answers = capsys.readouterr().out.split("strength ")[1:]
    assert len({answer.split("\n", 1)[1] for answer in answers}) > 1, "the push changes nothing"
    assert main(report[1:]) == 0
    page = (folder / "tried" / "report.html").read_text(encoding="utf-8")
    assert "<h1>Planted language switching</h1>" in page and "sasft minus sft" in page


def test_folder_that_holds_something_else_is_refused_and_kept(tmp_path, capsys):
    (tmp_path / "mine.txt").write_text("keep")
    for more in ([], ["--resume"], ["--overwrite"]):
        assert main(["demo", "--out", str(tmp_path), *more]) == 2
        assert "not an empty folder, and it holds no demo (demo.json)" in capsys.readouterr().err
    assert (tmp_path / "mine.txt").read_text() == "keep"


def test_demo_with_other_settings_is_not_gone_on_with(finished, capsys):
    folder, _ = finished
    assert main(["demo", "--out", str(folder)]) == 2
    assert "--resume goes on with it, --overwrite removes it" in capsys.readouterr().err
    assert main(["demo", "--out", str(folder), "--resume", "--quick", "--seed", "3"]) == 2
    assert "quick was False, is True; seed was 0, is 3. --overwrite removes it" in capsys.readouterr().err
    assert (folder / "table.txt").exists()
    with pytest.raises(ValueError, match="set one of the two"):
        run_demo(folder, resume=True, overwrite=True)


def test_overwrite_begins_anew_and_keeps_what_the_demo_did_not_write(small, tmp_path, monkeypatch):
    run_stages = []
    monkeypatch.setattr(record.Record, "run", lambda self, stage: run_stages.append(stage.makes.name) or 1 / 0)
    (tmp_path / "demo" / "switching").mkdir(parents=True)
    (tmp_path / "demo" / "mine.txt").write_text("keep")
    (tmp_path / "demo" / "table.txt").write_text("old")
    (tmp_path / "demo" / "demo.json").write_text('{"settings": {}, "versions": {}, "seconds": {"switching/sft": 3}}')
    with pytest.raises(ZeroDivisionError):
        run_demo(tmp_path / "demo", quick=True, overwrite=True)
    assert run_stages == QUICK[:1]
    assert sorted(path.name for path in (tmp_path / "demo").iterdir()) == ["demo.json", "mine.txt"]


@pytest.mark.parametrize("content", ["{", "[]", '{"settings": {}, "versions": {}}'])
def test_damaged_record_is_told_with_a_way_out(tmp_path, capsys, content):
    (tmp_path / "demo.json").write_text(content)
    assert main(["demo", "--out", str(tmp_path), "--resume"]) == 2
    assert "--overwrite starts again" in capsys.readouterr().err


def test_make_demo_goes_on_unless_it_is_to_begin_anew():
    root = Path(__file__).parents[2]

    def command(arguments):
        lines = subprocess.check_output(["make", "--dry-run", "demo", f"ARGS={arguments}"], cwd=root, text=True)
        return shlex.split(next(line for line in lines.splitlines() if " demo " in line))[1:]

    assert command("") == ["demo", "--out", "runs/demo", "--resume"]
    assert command("--quick") == ["demo", "--out", "runs/demo-quick", "--resume", "--quick"]
    assert command("--overwrite") == ["demo", "--out", "runs/demo", "--overwrite"]


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
def test_quick_demo_lowers_switching_twice_makes_the_same_table_and_its_commands_run(tmp_path, capsys):
    tables = []
    for name in ("one", "two"):
        run_demo(tmp_path / name, quick=True)
        tables.append((tmp_path / name / "table.txt").read_text(encoding="utf-8"))
    assert tables[0] == tables[1]
    counts = {name: int(num) for name, num in re.findall(r"^  (\S+).*? (\d+) of \d+:", tables[0], re.MULTILINE)}
    assert counts["SASFT"] <= 0.4 * counts["SFT"]
    for words in commands_of(capsys.readouterr().out):
        done = subprocess.run(shlex.join(words), shell=True, cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0, (words, done.stderr[-2000:])
    assert re.search(
        "[\u4e00-\u9fff]", subprocess.check_output([sys.executable, tmp_path / "two" / "steer.py"], text=True)
    )
