"""Data that cannot be trained on is refused at its first row, in words, before a model is loaded."""

import json

import pytest

from sae_posttrain.rl.script import main as grpo
from sae_posttrain.sft.rows import NUM_CHECKED, require_prompt_rows, require_training_rows
from sae_posttrain.sft.script import main as sft

USER, ASSISTANT = {"role": "user", "content": "Hello?"}, {"role": "assistant", "content": "Yes."}


@pytest.mark.parametrize(
    "row",
    [
        {"messages": [USER, ASSISTANT], "lang": "en"},
        {"prompt": "Hello?", "completion": "Yes."},
        {"prompt": [USER], "completion": [ASSISTANT], "lang": "ko"},
        {"text": "Hello."},
        {"input_ids": [1, 2]},
    ],
    ids=lambda row: "-".join(row),
)
def test_layouts_of_trl_are_taken(row):
    require_training_rows([row], "lang")


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"question": "a", "answer": "b"}, "has the columns question, answer, and none of messages"),
        ({"prompt": "a", "lang": "en"}, "a `prompt` and no `completion`"),
        ({"messages": "Hello"}, "must be a list of messages, got 'Hello'"),
        ({"messages": []}, "must be a list of messages"),
        ({"messages": [{"from": "human", "value": "a"}]}, "message 1 of `messages` must be"),
        ({"messages": [{"role": "bot", "content": "a"}]}, "the role 'bot'"),
        ({"messages": [ASSISTANT, USER]}, "is the user's; it must be the assistant's"),
        ({"text": "a", "lang": None}, "`lang` must be a text that is not empty, got None"),
    ],
)
def test_rows_that_cannot_be_trained_on_are_refused(row, message):
    with pytest.raises(ValueError, match=message):
        require_training_rows([{"text": "a", "lang": "en"}, row], "lang")


@pytest.mark.parametrize(
    ("row", "columns", "message"),
    [
        ({"question": "a"}, [], "and no `prompt`"),
        ({"prompt": " "}, [], "`prompt` must be a text that is not empty"),
        ({"prompt": [USER, ASSISTANT]}, [], "must be the user or the tool's"),
        ({"prompt": "a"}, ["lang"], "no `lang`, which a reward reads"),
    ],
)
def test_prompts_that_cannot_be_answered_are_refused(row, columns, message):
    with pytest.raises(ValueError, match=message):
        require_prompt_rows([row], columns)


def test_no_more_rows_are_read_than_are_checked_and_none_is_an_error():
    read = []
    require_prompt_rows({"prompt": "a"} for _ in range(1000) if not read.append(1))
    assert len(read) == NUM_CHECKED
    with pytest.raises(ValueError, match="holds no row"):
        require_prompt_rows([])


@pytest.mark.parametrize(("run", "message"), [(sft, "none of messages"), (grpo, "no `prompt`")])
def test_the_scripts_check_before_they_load_a_model(run, message, tmp_path):
    data = tmp_path / "data.jsonl"
    data.write_text(json.dumps({"question": "a"}) + "\n")
    arguments = ["--model_name_or_path", "no/such-model", "--dataset_name", str(data), "--use_cpu", "true"]
    arguments += ["--output_dir", str(tmp_path / "out"), "--bf16", "false", "--features", "none.safetensors"]
    if run is grpo:
        arguments += ["--reward_funcs", "sae_posttrain.measure.loops.find_loop"]
    with pytest.raises(ValueError, match=message):
        run(arguments)
