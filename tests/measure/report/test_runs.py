"""Run folders as `evaluate` and the trainers leave them, with an evaluation of the tiny model."""

import json
import shutil

import pytest

from sae_posttrain.measure.report.page import write_report
from sae_posttrain.measure.report.runs import read_run, read_sections

ANSWERS = {"저장": "저장 打开文件", "파일 열기": "열기", "Файл": "Файл 打开", "保存": "保存", "Open a file": "Open it"}


@pytest.fixture
def evaluations(tmp_path, run, answer_with, make_model):
    """Two evaluations, `before` and `after`, side by side in one folder."""
    answer_with(ANSWERS)
    run("runs/before")
    answer_with(ANSWERS | {"Файл": "Файл открыт"})
    run("runs/after", model=make_model(seed=1))
    return tmp_path / "runs"


def leave_state(folder, log, step=None):
    folder = folder if step is None else folder / f"checkpoint-{step}"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "trainer_state.json").write_text(json.dumps({"log_history": log, "global_step": step or 9}))


def test_a_folder_of_runs_gives_an_arm_for_each_by_name(evaluations):
    (section,) = read_sections([evaluations])
    arms = section.arms
    assert [arm.name for arm in arms] == ["after", "before"]
    assert [arm.evaluation["overall"]["any"]["1"]["count"] for arm in arms] == [1, 2]
    assert all(len(arm.answers) == 5 for arm in arms)
    (section,) = read_sections([evaluations / "before", evaluations / "after"])
    assert [arm.name for arm in section.arms] == ["before", "after"]


def test_metrics_are_those_of_the_trainer_or_of_its_last_checkpoint(tmp_path):
    leave_state(tmp_path / "sft", [{"step": 9, "loss": 3.0}], step=9)
    leave_state(tmp_path / "sft", [{"step": 9, "loss": 3.0}, {"step": 10, "loss": 2.0}], step=10)
    assert read_run(tmp_path / "sft").log[-1] == {"step": 10, "loss": 2.0}
    leave_state(tmp_path / "sft", [{"step": 12, "loss": 1.0}])
    arm = read_run(tmp_path / "sft", label="SFT")
    assert (arm.name, arm.title, arm.log) == ("sft", "SFT", [{"step": 12, "loss": 1.0}])


def test_runs_become_sections_that_can_be_written(evaluations, tmp_path):
    leave_state(evaluations / "after", [{"step": 1, "loss": 3.0, "sae/penalty": 0.5}])
    sections = read_sections([evaluations], baseline=evaluations / "before")
    assert [section.title for section in sections] == ["Language switching", "Training"]
    assert sections[0].reference.name == "before"
    html = write_report(tmp_path / "report.html", sections, title="T").read_text("utf-8")
    assert "No clear difference between after and before" in html
    assert ">打开文件</mark>" in html
    assert str(tmp_path) not in html


def test_loops_are_shown_where_answers_were_long_enough(run, answer_with, tmp_path):
    answer_with(dict.fromkeys(ANSWERS, "가나 " * 40), finished=False)
    run("long", max_new_tokens=128, target_lang=None)
    assert [section.title for section in read_sections([tmp_path / "long"])] == [
        "Language switching",
        "Endless repetition",
    ]


def test_a_baseline_elsewhere_is_read_too_and_comes_first(evaluations):
    (section,) = read_sections([evaluations / "after"], baseline=evaluations / "before")
    assert [arm.name for arm in section.arms] == ["before", "after"]
    assert section.reference.name == "before"


def test_runs_of_one_name_are_told_apart_by_their_folders(evaluations, tmp_path):
    for seed in ("0", "1"):
        shutil.copytree(evaluations / "before", tmp_path / f"seed-{seed}" / "answers")
    (section,) = read_sections([tmp_path / "seed-0", tmp_path / "seed-1", evaluations / "after"])
    assert [arm.name for arm in section.arms] == ["seed-0/answers", "seed-1/answers", "after"]


def test_answers_are_optional_but_half_an_evaluation_is_not(evaluations):
    (evaluations / "after" / "answers.jsonl").unlink()
    assert read_run(evaluations / "after").answers == []
    (evaluations / "before" / "evaluation.json").unlink()
    with pytest.raises(ValueError, match="not finished: answers.jsonl but no evaluation.json. Run `evaluate` again"):
        read_sections([evaluations])


def test_what_is_no_run_is_refused(evaluations, tmp_path):
    (tmp_path / "empty" / "inside").mkdir(parents=True)
    with pytest.raises(ValueError, match="empty holds no run.*evaluation.json.*trainer_state.json"):
        read_sections([tmp_path / "empty"])
    with pytest.raises(FileNotFoundError, match="no folder .*missing"):
        read_sections([tmp_path / "missing"])
    with pytest.raises(ValueError, match="before is named twice"):
        read_sections([evaluations, evaluations / "before"])
    with pytest.raises(ValueError, match="is no run but a folder of runs"):
        read_sections([evaluations / "after"], baseline=evaluations)
    leave_state(tmp_path / "sft", [{"step": 1, "loss": 3.0}])
    with pytest.raises(ValueError, match="sft holds no evaluation"):
        read_sections([evaluations], baseline=tmp_path / "sft")


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("evaluation.json", '{"overall": ', "evaluation.json is not JSON"),
        ("evaluation.json", "[1]", "evaluation.json holds a list, not an object"),
        ("evaluation.json", "[" * 100_000, "evaluation.json is not JSON"),
        ("evaluation.json", "{}", "evaluation.json is no evaluation: 'overall' is missing"),
        ("answers.jsonl", "{}\n", "answers.jsonl, line 1 is no judged answer: 'id' is missing"),
        ("answers.jsonl", "\xff", "answers.jsonl, line 1 is not JSON"),
        ("trainer_state.json", '{"log_history": [3]}', "trainer_state.json has no list `log_history`"),
        ("trainer_state.json", '{"log_history"', "trainer_state.json is not JSON"),
    ],
)
def test_broken_file_is_named(evaluations, file, content, message):
    (evaluations / "before" / file).write_bytes(content.encode("latin-1"))
    with pytest.raises(ValueError, match=message):
        read_sections([evaluations])


@pytest.mark.parametrize(
    "change",
    [
        {"settings": {"target_lang": ["zh"]}},
        {"settings": {"num_samples": 0}},
        {"groups": {"ko": 3}},
        {"versions": []},
        {"overall": {"any": {"1": {"count": 1, "n": 2, "rate": float("nan"), "low": 0, "high": 1}}}},
        {"overall": {"mean_tokens": float("inf")}},
        {"overall": {"right_language": "all"}},
    ],
)
def test_evaluation_with_impossible_values_is_refused(evaluations, change):
    path = evaluations / "before" / "evaluation.json"
    evaluation = json.loads(path.read_text())
    for key, value in change.items():
        evaluation[key] = {**evaluation[key], **value} if isinstance(value, dict) else value
    path.write_text(json.dumps(evaluation))
    with pytest.raises(ValueError, match="evaluation.json is no evaluation"):
        read_sections([evaluations])
