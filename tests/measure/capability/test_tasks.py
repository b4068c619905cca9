"""Folders of capability tasks, with answers that are given instead of a harness; see `test_tasks_library.py`."""

import json
from types import SimpleNamespace

import pytest

from sae_posttrain.cli import main
from sae_posttrain.measure.capability import tasks as tasks_module
from sae_posttrain.measure.capability.tasks import evaluate_tasks


class Harness:
    """Tasks of three documents; `right` says which a model answers rightly."""

    def __init__(self):
        self.right = [1.0, 0.0, 1.0]
        self.version = 1
        self.runs = []
        self.fails_at = None

    def load_tasks(self, names, **_options):
        group = {"all": ["one", "two"]} if "all" in names else {}
        names = [name for asked in names for name in group.get(asked, [asked])]
        return {name: SimpleNamespace(task_name=name) for name in names}, group

    def describe_task(self, task):
        return {"version": str(self.version), "num_fewshot": 0, "config_sha256": "c"}

    def document_hashes(self, task, limit):
        return [f"{task.task_name}{i}" for i in range(len(self.right))][:limit]

    def run_task(self, _wrapped, task, *, limit, **_options):
        name = task.task_name
        if name == self.fails_at:
            raise KeyboardInterrupt
        self.runs.append(name)
        right = self.right[:limit]
        items = [
            {"task": name, "doc_id": i, "doc_hash": f"{name}{i}", "prompt_hash": f"p{i}", "metrics": {"acc": value}}
            for i, value in enumerate(right)
        ]
        return {"acc": {"value": sum(right) / len(right), "higher_is_better": True}}, items


@pytest.fixture
def harness(monkeypatch):
    harness = Harness()
    for name in ("load_tasks", "describe_task", "document_hashes", "run_task"):
        monkeypatch.setattr(tasks_module, name, getattr(harness, name))
    for name in ("require_harness", "wrap_model"):
        monkeypatch.setattr(tasks_module, name, lambda *_arguments: None)
    return harness


@pytest.fixture
def run(tmp_path, make_model, tokenizer, harness):
    model = make_model()

    def run(names=("one", "two"), folder="run", **options):
        return evaluate_tasks(
            options.pop("model", model), list(names), output_dir=tmp_path / folder, tokenizer=tokenizer, **options
        )

    return run


def test_results_and_items_are_written_and_returned(run, tmp_path):
    result = run(["all"])
    assert result["tasks"]["one"]["metrics"]["acc"]["n"] == 3
    assert result["groups"]["all"]["metrics"]["acc"]["n"] == 6
    assert json.loads((tmp_path / "run" / "tasks.json").read_text()) == result
    lines = (tmp_path / "run" / "task_items.jsonl").read_text().splitlines()
    assert json.loads(lines[3]) == {
        "task": "two",
        "doc_id": 0,
        "doc_hash": "two0",
        "prompt_hash": "p0",
        "metrics": {"acc": 1.0},
    }


def test_interrupted_run_goes_on_with_the_task_it_was_at(run, harness, tmp_path):
    harness.fails_at = "two"
    with pytest.raises(KeyboardInterrupt):
        run(["all"])
    items = tmp_path / "run" / "task_items.jsonl"
    with items.open("a") as file:  # the items are written before the results
        file.write('{"task": "two", "doc_id": 0, "doc_hash": "two0", "prompt_hash": "p0", "metrics": {"acc": 0}}\n')
    harness.fails_at = None
    resumed = run(["all"])
    assert harness.runs == ["one", "two"]
    assert resumed == {**run(["all"], folder="whole"), "settings": resumed["settings"]}
    assert items.read_text() == (tmp_path / "whole" / "task_items.jsonl").read_text()


def test_finished_tasks_are_kept_beside_further_ones_and_need_no_model(run, harness, tmp_path, monkeypatch):
    run(["one"])
    assert list(run(["two"])["tasks"]) == ["two"]
    monkeypatch.setattr(tasks_module, "load_model", None)
    assert run(["all"], batch_size=1)["groups"]["all"]["metrics"]["acc"]["n"] == 6
    assert harness.runs == ["one", "two"]
    record = json.loads((tmp_path / "run" / "tasks.json").read_text())
    assert (list(record["tasks"]), list(record["groups"])) == (["one", "two"], ["all"])


def test_other_settings_a_changed_task_or_other_documents_are_refused(run, harness, make_model):
    run(["one"])
    with pytest.raises(ValueError, match="holds tasks with other settings: seed was 0, is 1"):
        run(["two"], seed=1)
    with pytest.raises(ValueError, match="other settings: model_fingerprint was"):
        run(["two"], model=make_model(seed=3))
    harness.version = 2
    with pytest.raises(ValueError, match=r"holds one as it was before it changed \(version\)"):
        run(["one"])
    harness.version, harness.right = 1, [1.0, 0.0]
    with pytest.raises(ValueError, match="run was not asked the same documents of one: 0 are only here, 1 only there"):
        run(["one"])


def test_comparison_is_paired_by_document_and_not_written(run, harness, tmp_path, make_model):
    run(["all"], folder="before")
    harness.right = [1.0, 0.0, 0.0]
    result = run(["all"], folder="after", compare=tmp_path / "before", margin=0.9, model=make_model(seed=1))
    comparison = result["comparison"]
    assert comparison["tasks"]["one"]["metrics"]["acc"]["difference"] == pytest.approx(-1 / 3)
    assert comparison["groups"]["all"]["num_pairs"] == 6
    assert (comparison["other"], comparison["margin"], comparison["different_settings"]) == ("before", 0.9, [])
    assert "comparison" not in json.loads((tmp_path / "after" / "tasks.json").read_text())
    with pytest.raises(ValueError, match="has no result of three to compare with"):
        run(["three"], folder="after", compare=tmp_path / "before")
    harness.right = [1.0]
    with pytest.raises(ValueError, match="not asked the same documents of one: 0 are only here, 2 only there"):
        run(["one"], folder="fewer", compare=tmp_path / "before")
    with pytest.raises(ValueError, match="holds no results of tasks"):
        run(["one"], folder="fewer", compare=tmp_path / "nothing")
    assert not (tmp_path / "fewer").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"names": []}, "`tasks` is a list of one or more names"),
        ({"limit": 0}, "`limit` must be 1 or more, got 0"),
        ({"batch_size": 0}, "`batch_size` must be 1 or more"),
        ({"num_fewshot": -1}, "`num_fewshot` must be 0 or more"),
        ({"margin": 2}, "`margin` is a rate between 0 and 1, 0.02 for 2 points; got 2"),
    ],
)
def test_unusable_settings_are_refused(run, options, message):
    with pytest.raises(ValueError, match=message):
        run(**options)


def test_missing_chat_template_is_refused_where_it_is_asked_for(run, tokenizer, monkeypatch):
    monkeypatch.setattr(tokenizer, "chat_template", None)
    assert run()["settings"]["chat_template"] is False
    with pytest.raises(ValueError, match="The tokenizer has no chat template"):
        run(chat_template=True, folder="other")


def test_without_the_harness_the_message_says_what_to_install(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr("sae_posttrain.measure.capability.harness.find_spec", lambda _name: None)
    with pytest.raises(ImportError, match="pip install 'sae_posttrain\\[eval\\]'"):
        evaluate_tasks("model", ["mmlu"], output_dir=tmp_path / "run")
    # before the prompts of --prompts are answered, which can take hours
    both = ["--model", "model", "--prompts", "prompts.jsonl", "--tasks", "mmlu", "--out", str(tmp_path / "run")]
    monkeypatch.setattr("sae_posttrain.cli.evaluate.require_model", lambda _model: None)
    assert main(["evaluate", *both]) == 2
    assert "pip install 'sae_posttrain[eval]'" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
