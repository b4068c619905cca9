"""What `sae-posttrain evaluate` hands on, and what it refuses; whole runs are in `test_commands.py`."""

import pytest

from sae_posttrain.cli import main


@pytest.fixture
def calls(monkeypatch):
    """What the two functions behind the command were called with."""
    calls = {}
    for name, module in (("evaluate", "answers.evaluation"), ("evaluate_tasks", "capability.tasks")):

        def record(*arguments, name=name, **options):
            calls[name] = (arguments, options)

        monkeypatch.setattr(f"sae_posttrain.measure.{module}.{name}", record)
    monkeypatch.setattr("sae_posttrain.measure.answers.summary.format_evaluation", lambda _result: "answers")
    monkeypatch.setattr("sae_posttrain.measure.capability.task_summary.format_tasks", lambda _result: "capability")
    monkeypatch.setattr("sae_posttrain.measure.capability.harness.require_harness", lambda: None)
    monkeypatch.setattr("sae_posttrain.cli.evaluate.require_model", lambda _model: None)
    return calls


def evaluate(*arguments):
    return main(["evaluate", "--model", "m", "--out", "run", *arguments])


def test_options_of_prompts_and_of_tasks_reach_their_functions(calls, capsys):
    data = ["--prompts", "p.jsonl", "--target-lang", "any", "--lid", "en", "es", "--temperature", "0"]
    thinking = ["--chat-template-kwargs", '{"enable_thinking": false}']
    tasks = ["--tasks", "mmlu", "own.yaml", "--num-fewshot", "5", "--compare", "base", "--margin", "0.01"]
    assert evaluate(*data, *tasks, "--plain", *thinking, "--dtype", "bfloat16", "--limit", "9") == 0
    assert capsys.readouterr().out.split() == ["answers", "capability"]

    arguments, options = calls["evaluate"]
    assert arguments == ("m", "p.jsonl")
    own = {"target_lang": None, "lid_languages": ["en", "es"], "temperature": 0.0}
    common = {name: value for name, value in options.items() if name not in own}
    assert {name: options[name] for name in own} == own
    assert (common["limit"], common["chat_template_kwargs"], common["seed"]) == (9, {"enable_thinking": False}, 0)
    assert common["model_kwargs"] == {"dtype": "bfloat16"}

    arguments, options = calls["evaluate_tasks"]
    assert arguments == ("m", ["mmlu", "own.yaml"])
    assert options == {
        **{**common, "chat_template_kwargs": None},
        "num_fewshot": 5,
        "margin": 0.01,
        "chat_template": False,
    }


def test_each_half_runs_alone(calls):
    assert evaluate("--prompts", "p.jsonl") == 0
    assert list(calls) == ["evaluate"]
    calls.clear()
    assert evaluate("--tasks", "mmlu") == 0
    assert list(calls) == ["evaluate_tasks"]
    assert calls["evaluate_tasks"][1]["batch_size"] == 32


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "Give --prompts, --tasks (capability) or both."),
        (["--tasks", "mmlu", "--temperature", "0"], "--temperature needs --prompts."),
        (["--tasks", "mmlu", "--lid", "en"], "--lid needs --prompts."),
        (["--prompts", "p.jsonl", "--num-fewshot", "5"], "--num-fewshot needs --tasks."),
        (["--prompts", "p.jsonl", "--confirm-run-unsafe-code"], "--confirm-run-unsafe-code needs --tasks."),
        (["--prompts", "p.jsonl", "--plain"], "--plain needs --tasks."),
        (["--tasks", "mmlu", "--margin", "0.02"], "--margin needs --compare"),
    ],
)
def test_option_that_nothing_would_use_is_refused(calls, capsys, arguments, message):
    assert evaluate(*arguments) == 2
    assert message in capsys.readouterr().err
    assert not calls


def test_template_variables_must_be_json(capsys):
    with pytest.raises(SystemExit):
        evaluate("--prompts", "p.jsonl", "--chat-template-kwargs", "enable_thinking=false")
    assert (
        "'enable_thinking=false' is not a JSON object; write '{\"enable_thinking\": false}'" in capsys.readouterr().err
    )
