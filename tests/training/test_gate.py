"""Data that cannot be trained on is refused at its first row, in words, before a model is loaded."""

import json

import pytest
from datasets import Dataset
from trl import TrlParser

from sae_posttrain.rl import script as grpo
from sae_posttrain.sft import script as sft
from sae_posttrain.training.gate import ROWS_READ_FROM_A_STREAM, require_prompt_rows, require_training_rows

USER, ASSISTANT = {"role": "user", "content": "Hello?"}, {"role": "assistant", "content": "Yes."}
CALL = {"role": "assistant", "tool_calls": [{"type": "function", "function": {"name": "f", "arguments": {}}}]}


@pytest.mark.parametrize(
    "row",
    [
        {"messages": [USER, ASSISTANT], "lang": "en"},
        {"prompt": "Hello?", "completion": "Yes."},
        {"prompt": [USER], "completion": [ASSISTANT], "lang": "ko"},
        {"text": "Hello."},
        {"input_ids": [1, 2]},
        {"messages": [USER, CALL]},
        {"messages": [USER, CALL | {"content": None}, {"role": "tool", "content": "1"}, ASSISTANT]},
        {"messages": [{"role": "developer", "content": "Be brief."}, USER, ASSISTANT]},
    ],
    ids=lambda row: "-".join(row),
)
def test_layouts_of_trl_are_taken(row):
    assert require_training_rows([row], "lang") is False


@pytest.mark.parametrize(
    "row",
    [
        {"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}], "lang": "en"},
        {"messages": [USER, {"role": "model", "content": "b"}]},
        {"prompt": [USER], "completion": [{"role": "assistant", "content": [{"type": "text", "text": "b"}]}]},
    ],
)
def test_other_forms_are_taken_and_said_to_need_a_change(row):
    assert require_training_rows([row], "lang") is True


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"question": "a", "answer": "b"}, "has the columns lang, question, answer, and none of messages"),
        ({"prompt": "a", "lang": "en"}, "a `prompt` and no `completion`"),
        ({"messages": "Hello"}, "must be a list of messages, got 'Hello'"),
        ({"messages": []}, "must be a list of messages"),
        ({"messages": [{"role": "narrator", "content": "a"}]}, "message 1 of `messages` has the role 'narrator'"),
        ({"messages": [ASSISTANT, USER]}, "is the user's; it must be the assistant's"),
        ({"messages": [USER, ASSISTANT | {"content": " "}]}, "empty answer: message 2 of `messages`"),
        ({"messages": [USER, ASSISTANT | {"content": None}]}, "message 2 of `messages` has no text.*null"),
        ({"messages": [USER, {"role": "assistant"}]}, "message 2 of `messages` has no text.*missing"),
        ({"messages": [USER, ASSISTANT | {"content": [{"type": "image"}]}]}, "a part 1 of the type 'image'"),
        ({"prompt": "a", "completion": ""}, "empty answer: `completion` is ''"),
        ({"prompt": [USER], "completion": "Yes."}, "`prompt` is messages and `completion` is a text"),
        ({"text": None}, "`text` is null"),
        ({"text": ""}, "`text` must be a text that is not empty"),
        ({"text": "a", "lang": None}, "`lang` is null"),
        ({"text": "a", "lang": 3}, "`lang` must be a text that is not empty, got 3"),
        ({"text": "a"}, "has no group column `lang`"),
    ],
)
def test_rows_that_cannot_be_trained_on_are_refused(row, message):
    first = {name: None for name in row if name not in ("lang", "text")} | {"text": "a", "lang": "en"}
    given = {"lang": "en", **row} if row != {"text": "a"} else row
    with pytest.raises(ValueError, match=f"Row 3 of train.jsonl.*{message}"):
        require_training_rows([first, first | {"text": "b"}, given], "lang", source="train.jsonl")


def test_forms_are_not_mixed_and_groups_are_in_all_rows_or_in_none():
    with pytest.raises(ValueError, match="Row 2 of x holds `messages`, and Row 1 of x holds `text`"):
        require_training_rows([{"text": "a"}, {"messages": [USER, ASSISTANT]}], "lang", source="x")
    with pytest.raises(ValueError, match="Row 2 of x has a `lang`, and the rows before it have none"):
        require_training_rows([{"text": "a"}, {"text": "b", "lang": "en"}], "lang", source="x")


def test_every_row_is_checked_and_a_group_without_statistics_is_named_with_its_row():
    def check(group):
        if group == "fr":
            raise ValueError("no statistics of fr")

    rows = [{"text": f"{i}", "lang": "en"} for i in range(3000)] + [{"text": "x", "lang": "fr"}]
    with pytest.raises(ValueError, match="Row 3001 of x: no statistics of fr"):
        require_training_rows(rows, "lang", source="x", check_group=check)
    with pytest.raises(ValueError, match="Row 3001 of x: no statistics of fr"):
        require_training_rows(Dataset.from_list(rows), "lang", source="x", check_group=check)


def test_exact_copies_are_counted_and_said(caplog):
    rows = [{"text": "a"}, {"text": "b"}, {"text": "a"}, {"text": "a"}]
    require_training_rows(rows, source="train.jsonl")
    assert "train.jsonl: 2 of 4 rows are exact copies of an earlier row (the first: Row 3" in caplog.text


@pytest.mark.parametrize(
    ("row", "columns", "message"),
    [
        ({"question": "a"}, [], "and no `prompt`"),
        ({"prompt": " "}, [], "empty prompt: `prompt` must be a text that is not empty"),
        ({"prompt": None}, [], "`prompt` is null"),
        ({"prompt": [USER, ASSISTANT]}, [], "must be the user's or the tool's"),
        ({"prompt": [USER, {"role": "gpt", "content": "b"}]}, [], "must be the user's or the tool's"),
        ({"prompt": "a"}, ["lang"], "no `lang`, which a reward reads"),
        ({"prompt": "a", "lang": None}, ["lang"], "`lang` is null"),
    ],
)
def test_prompts_that_cannot_be_answered_are_refused(row, columns, message):
    with pytest.raises(ValueError, match=message):
        require_prompt_rows([row], columns)


def test_of_a_stream_the_first_rows_are_read_and_no_row_is_an_error():
    read = []

    def generate():
        for number in range(3 * ROWS_READ_FROM_A_STREAM):
            read.append(number)
            yield {"prompt": f"{number}"}

    class Stream:  # as `datasets.IterableDataset`
        map = None

        def __iter__(self):
            return generate()

    require_prompt_rows(Stream())
    assert len(read) == ROWS_READ_FROM_A_STREAM
    require_prompt_rows(generate())  # the rows of a file are all read
    assert len(read) == 4 * ROWS_READ_FROM_A_STREAM
    with pytest.raises(ValueError, match="holds no row"):
        require_prompt_rows([])


@pytest.mark.parametrize(("script", "message"), [(sft, "none of messages"), (grpo, "no `prompt`")])
def test_the_scripts_check_before_they_load_a_model(script, message, tmp_path):
    data = tmp_path / "data.jsonl"
    data.write_text(json.dumps({"question": "a"}) + "\n")
    arguments = ["--model_name_or_path", "no/such-model", "--dataset_name", str(data), "--use_cpu", "true"]
    arguments += ["--output_dir", str(tmp_path / "out"), "--bf16", "false", "--features", "none.safetensors"]
    if script is grpo:
        arguments += ["--reward_funcs", "sae_posttrain.measure.faults.loops.find_loop"]
    settings = TrlParser(script.ARGUMENTS).parse_args_and_config(args=arguments)
    with pytest.raises(ValueError, match=f"Row 1 of {data}.*{message}"):
        script.make_trainer(*settings)
