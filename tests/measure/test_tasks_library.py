"""Tasks run by lm-evaluation-harness itself: `pip install -e '.[dev,eval]'`, then `pytest -m slow tests/measure`."""

import json
import random
import re
import socket
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from peft import LoraConfig, get_peft_model

from sae_posttrain.cli import main
from sae_posttrain.measure.capability.tasks import evaluate_tasks

pytest.importorskip("lm_eval", reason="needs lm-evaluation-harness: pip install 'sae_posttrain[eval]'")
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("default")]  # the harness and what it brings warn

COLOURS = ["gold", "blue", "pink", "grey"]  # of one length, so that no choice is likelier by being short
DOCUMENTS = [
    {"question": f"{one} {two}?", "choices": COLOURS, "answer": (i + j) % 4}
    for i, one in enumerate(["sky", "sea", "grass", "snow", "brick", "leaf", "wine", "milk"])
    for j, two in enumerate(["now", "then", "here", "there", "often"])
]
COLOUR_TASK = {
    "task": "colours",
    "dataset_path": "json",
    "output_type": "multiple_choice",
    "test_split": "test",
    "fewshot_split": "test",
    "doc_to_text": "Q: {{question}}\nA:",
    "doc_to_target": "answer",
    "doc_to_choice": "choices",
    "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
    "metadata": {"version": 1.0},
}


@pytest.fixture(autouse=True)
def no_network(monkeypatch, tmp_path):
    """No connection can be opened, and data sets are built in the test's own folder."""

    def refuse(*_arguments, **_options):
        raise AssertionError("a connection was opened")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)


@pytest.fixture
def folder(tmp_path, make_model, tokenizer):
    """Two models, and two tasks with a group of both in a folder of their own."""
    for name, seed in (("before", 0), ("after", 1)):
        make_model(seed=seed).save_pretrained(tmp_path / name)
        tokenizer.save_pretrained(tmp_path / name)
    (tmp_path / "own").mkdir()
    write_task(tmp_path, COLOUR_TASK, DOCUMENTS)
    say = {
        "task": "say",
        "output_type": "generate_until",
        "doc_to_text": "{{question}}",
        "doc_to_target": "{{choices[answer]}}",
        "doc_to_choice": None,
        "generation_kwargs": {"until": ["\n"], "max_gen_toks": 4, "do_sample": False},
        "metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
    }
    write_task(tmp_path, {**COLOUR_TASK, **say}, DOCUMENTS[:5])
    write_task(tmp_path, {**COLOUR_TASK, "task": "more_colours"}, [{**d, "answer": 0} for d in DOCUMENTS[:10]])
    group = {"group": "all_colours", "task": ["colours", "more_colours"]}
    (tmp_path / "own" / "all_colours.yaml").write_text(yaml.safe_dump(group))
    return tmp_path


def write_task(folder, config, documents):
    name = config["task"]
    data = folder / f"{name}.jsonl"
    data.write_text("".join(json.dumps(document) + "\n" for document in documents))
    config = {**config, "dataset_kwargs": {"data_files": {"test": str(data)}}}
    (folder / "own" / f"{name}.yaml").write_text(yaml.safe_dump(config))


def run(folder, name, *extra, tasks=None, out=None):
    tasks = tasks or [str(folder / "own" / "colours.yaml")]
    where = ["--model", str(folder / name), "--out", str(folder / "runs" / (out or name))]
    return main(["evaluate", *where, "--device", "cpu", "--tasks", *tasks, *extra])


def read_items(folder, name):
    lines = (folder / "runs" / name / "task_items.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def right_answers(model, tokenizer):
    """Whether the likeliest choice is the right one, from the model's log-probabilities alone."""
    right = []
    for document in DOCUMENTS:
        context = tokenizer(f"Q: {document['question']}\nA:")["input_ids"]
        scores = []
        for choice in document["choices"]:
            ids = context + tokenizer(f" {choice}")["input_ids"]
            with torch.no_grad():
                logits = model.eval()(torch.tensor([ids])).logits[0].log_softmax(-1)
            scores.append(sum(logits[t - 1, ids[t]].item() for t in range(len(context), len(ids))))
        right.append(float(int(np.argmax(scores)) == document["answer"]))
    return right


def test_own_task_runs_offline_and_two_models_are_paired(folder, capsys, make_model, tokenizer):
    assert run(folder, "before", "--plain") == 0
    assert run(folder, "after", "--plain", "--compare", str(folder / "runs" / "before"), "--margin", "0.5") == 0
    printed = capsys.readouterr().out

    before, after = (right_answers(make_model(seed=seed), tokenizer) for seed in (0, 1))
    assert [item["metrics"]["acc"] for item in read_items(folder, "before")] == before
    assert [item["metrics"]["acc"] for item in read_items(folder, "after")] == after
    record = json.loads((folder / "runs" / "after" / "tasks.json").read_text())
    acc = record["tasks"]["colours"]["metrics"]["acc"]
    assert (acc["value"], acc["n"], acc["higher_is_better"]) == (sum(after) / 40, 40, True)
    assert acc["low"] < acc["value"] < acc["high"]
    assert "comparison" not in record
    points = 100 * (sum(after) - sum(before)) / 40
    assert "Difference to before (before), paired by document:" in printed
    assert f"{points:+.2f} [" in printed
    assert "non-inferior: the interval rules out a loss of 50 points." in printed
    for name in ("before", "after"):
        for file in (folder / "runs" / name).iterdir():
            assert str(folder) not in file.read_text()


def test_finished_tasks_are_not_run_again_and_other_settings_are_refused(folder, capsys, monkeypatch):
    assert run(folder, "before", "--limit", "3") == 0
    with monkeypatch.context() as without_model:
        without_model.setattr("sae_posttrain.measure.capability.tasks.load_model", None)
        assert run(folder, "before", "--limit", "3", "--batch-size", "2") == 0
    include = ["--include-path", str(folder / "own"), "--limit", "3"]
    assert run(folder, "before", *include, tasks=["all_colours"]) == 0
    record = json.loads((folder / "runs" / "before" / "tasks.json").read_text())
    assert list(record["tasks"]) == ["colours", "more_colours"]
    assert record["groups"]["all_colours"]["metrics"]["acc"]["n"] == 6
    assert [item["doc_id"] for item in read_items(folder, "before")] == [0, 1, 2, 0, 1, 2]

    capsys.readouterr()
    assert run(folder, "before", "--limit", "4") == 2
    assert "holds tasks with other settings: limit was 3, is 4" in capsys.readouterr().err
    write_task(folder, {**COLOUR_TASK, "doc_to_text": "{{question}}"}, DOCUMENTS)
    assert run(folder, "before", "--limit", "3") == 2
    assert "holds colours as it was before it changed (config_sha256)" in capsys.readouterr().err
    write_task(folder, COLOUR_TASK, DOCUMENTS[1:])
    assert run(folder, "before", "--limit", "3") == 2
    assert "was not asked the same documents of colours: 1 are only here, 1 only there" in capsys.readouterr().err


def test_comparison_of_other_documents_is_refused_and_other_prompts_are_named(folder, capsys):
    assert run(folder, "before", "--limit", "5", "--plain") == 0
    compare = ["--compare", str(folder / "runs" / "before")]
    assert run(folder, "after", *compare, "--limit", "6", out="six") == 2
    assert "was not asked the same documents of colours: 1 are only here, 0 only there" in capsys.readouterr().err
    assert not (folder / "runs" / "six").exists()
    say = [str(folder / "own" / "say.yaml")]
    assert run(folder, "after", *compare, "--limit", "5", tasks=say, out="say") == 2
    assert "has no result of say to compare with" in capsys.readouterr().err

    assert run(folder, "after", *compare, "--limit", "5", "--num-fewshot", "2") == 0
    printed = capsys.readouterr().out
    assert "The two models got other prompts to the same documents in colours." in printed
    assert "Not the same in both: chat_template, num_fewshot." in printed


def test_generated_answers_are_scored_and_the_loaded_model_and_random_state_stay_as_they_were(
    folder, make_model, tokenizer
):
    model = make_model().train()
    state = random.getstate()
    drawn = torch.random.get_rng_state()
    result = evaluate_tasks(
        model, ["say"], output_dir=folder / "runs" / "say", tokenizer=tokenizer, include_path=folder / "own"
    )
    assert result["tasks"]["say"]["metrics"]["exact_match"]["n"] == 5
    assert result["settings"]["chat_template"] is True
    assert model.training
    assert random.getstate() == state
    assert torch.equal(torch.random.get_rng_state(), drawn)


def test_adapter_is_measured_as_its_merged_model_is(folder, make_model, tokenizer):
    model = make_model()
    adapted = get_peft_model(
        model, LoraConfig(r=4, lora_alpha=400, target_modules=["v_proj"], init_lora_weights=False)
    )
    adapted.base_model.model.config._name_or_path = str(folder / "before")
    adapted.peft_config["default"].base_model_name_or_path = str(folder / "before")
    adapted.save_pretrained(folder / "adapter")
    merged = adapted.merge_and_unload()
    options = {"tokenizer": tokenizer, "include_path": folder / "own", "chat_template": False}
    evaluate_tasks(str(folder / "adapter"), ["colours"], output_dir=folder / "runs" / "adapter", **options)
    evaluate_tasks(merged, ["colours"], output_dir=folder / "runs" / "merged", **options)
    right = [item["metrics"]["acc"] for item in read_items(folder, "adapter")]
    assert right == [item["metrics"]["acc"] for item in read_items(folder, "merged")]
    assert right != right_answers(make_model(), tokenizer)


def test_example_of_the_documentation_runs_as_it_stands(folder, monkeypatch):
    page = Path(__file__).parents[2] / "docs" / "capability.md"
    blocks = dict(re.findall(r"```(json|yaml)\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL))
    (folder / "capitals.jsonl").write_text(blocks["json"])
    (folder / "capitals.yaml").write_text(blocks["yaml"])
    monkeypatch.chdir(folder)
    assert run(folder, "before", tasks=["capitals.yaml"]) == 0
    assert [item["doc_id"] for item in read_items(folder, "before")] == [0, 1, 2]


def test_unsafe_and_downloaded_code_is_refused_before_the_model_is_loaded_unless_confirmed(
    folder, capsys, monkeypatch
):
    own = [str(folder / "own" / "colours.yaml")]
    downloaded = {**COLOUR_TASK, "metric_list": [{"metric": "some_space", "hf_evaluate": True}]}
    with monkeypatch.context() as without_model:
        without_model.setattr("sae_posttrain.measure.capability.tasks.load_model", None)
        assert run(folder, "before", tasks=["humaneval"]) == 2
        error = capsys.readouterr().err
        assert "humaneval: a metric is code that is downloaded and run (code_eval of the `evaluate` library)" in error
        write_task(folder, downloaded, DOCUMENTS)
        assert run(folder, "before", tasks=own) == 2
        error = capsys.readouterr().err
        assert "a metric is code that is downloaded and run (some_space of the `evaluate` library)" in error
        write_task(folder, {**COLOUR_TASK, "unsafe_code": True}, DOCUMENTS)
        assert run(folder, "before", tasks=own) == 2
        error = capsys.readouterr().err
        assert "colours: the score comes from running code that the model wrote." in error
        assert "pass --confirm-run-unsafe-code" in error
        include = ["--include-path", str(folder / "own")]
        assert run(folder, "before", *include, tasks=["all_colours"]) == 2  # a member of a group
        assert "colours: the score comes from running code" in capsys.readouterr().err
    assert run(folder, "before", "--confirm-run-unsafe-code", "--limit", "2", tasks=own) == 0


@pytest.mark.parametrize(
    ("tasks", "extra", "message"),
    [
        (
            ["coulours"],
            ["--include-path", "own"],
            "registered task/group/tag name or valid YAML path. Did you mean colours?",
        ),
        (["own/colours.yaml"], ["--include-path", "none"], "There is no folder none to look for tasks in"),
        (["own/gone.yaml"], [], "own/gone.yaml cannot be loaded: Unable to find"),
        (["own/empty.yaml"], [], "own/empty.yaml cannot be loaded: Unknown config shape"),
        (["own/broken.yaml"], [], "did not find expected"),
        (["own/half.yaml"], ["--include-path", "own"], "own/half.yaml cannot be loaded: expected str"),
        (["own/fixed.yaml"], ["--num-fewshot", "2"], "The task fixed is defined without examples (`num_fewshot: 0`)"),
    ],
)
def test_task_that_cannot_be_run_is_said_in_one_line_before_the_model_is_loaded(
    folder, capsys, monkeypatch, tasks, extra, message
):
    monkeypatch.chdir(folder)
    monkeypatch.setattr("sae_posttrain.measure.capability.tasks.load_model", None)
    write_task(folder, {**COLOUR_TASK, "task": "gone"}, DOCUMENTS)
    (folder / "gone.jsonl").unlink()
    write_task(folder, {**COLOUR_TASK, "task": "fixed", "num_fewshot": 0}, DOCUMENTS)
    (folder / "own" / "empty.yaml").write_text("dataset_path: json\n")
    (folder / "own" / "broken.yaml").write_text("task: [a\n b: c: d\n")
    (folder / "own" / "half.yaml").write_text("group: half\ntask: [colours, no_such_task]\n")
    assert run(folder, "before", *extra, tasks=tasks) == 2
    assert message in capsys.readouterr().err.strip()
