"""Conversations of every common form come out as TRL's messages, and what is no text is refused with its place."""

import copy
import json

import pytest
from datasets import Dataset

from sae_posttrain.conversations import read_messages, read_row, with_messages

USER, ASSISTANT = {"role": "user", "content": "What?"}, {"role": "assistant", "content": "That."}
EXPECTED = [USER, ASSISTANT]
CALL = {"type": "function", "function": {"name": "look", "arguments": {"at": "it"}}}


@pytest.mark.parametrize(
    "messages",
    [
        [{"from": "human", "value": "What?"}, {"from": "gpt", "value": "That."}],
        [{"from": "user", "value": "What?"}, {"from": "assistant", "value": "That."}],
        [{"role": "human", "content": "What?"}, {"role": "gpt", "content": "That."}],
        [{"role": "user", "content": "What?"}, {"role": "model", "content": "That."}],
        [{"role": "User", "content": "What?"}, {"role": "Assistant", "content": "That."}],
        [{"role": "user", "parts": [{"text": "What?"}]}, {"role": "model", "parts": ["That."]}],
        [{"role": "user", "content": [{"type": "text", "text": "What?"}]}, ASSISTANT],
        [USER, {"role": "assistant", "content": [{"type": "output_text", "text": "That.", "annotations": None}]}],
        [{"role": "user", "content": "What?", "from": None, "value": None}, ASSISTANT],
        json.dumps([{"from": "human", "value": "What?"}, {"from": "gpt", "value": "That."}]),
    ],
)
def test_every_common_form_is_read(messages):
    given = copy.deepcopy(messages)
    assert [{key: message[key] for key in ("role", "content")} for message in read_messages(messages, "", "m")] == (
        EXPECTED
    )
    assert messages == given  # nothing is changed in place


def test_parts_of_text_are_joined_line_by_line():
    parts = [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]
    assert read_messages([{"role": "user", "content": parts}], "", "m") == [{"role": "user", "content": "one\ntwo"}]


def test_what_trl_takes_is_returned_as_it_is():
    for messages in (
        EXPECTED,
        [USER, {"role": "assistant", "tool_calls": [CALL]}, {"role": "tool", "content": "1", "name": "look"}],
        [USER, {"role": "assistant", "content": None, "tool_calls": [CALL]}],
        [{"role": "developer", "content": "Be brief."}, USER | {"tool_calls": None}],
    ):
        assert read_messages(messages, "", "messages") is messages
        row = {"messages": messages, "lang": "en"}
        assert read_row(row, "Row 1") is row


def test_calls_of_other_conventions_become_tool_calls():
    called = json.dumps({"name": "look", "arguments": {"at": "it"}})
    expected = [{"role": "assistant", "content": None, "tool_calls": [CALL]}]
    assert read_messages([{"from": "function_call", "value": called}], "", "m") == expected
    openai = {"role": "assistant", "content": None, "function_call": {"name": "look", "arguments": {"at": "it"}}}
    assert read_messages([openai], "", "m") == expected
    for role in ("function", "observation"):
        assert read_messages([{"role": role, "content": "1"}], "", "m") == [{"role": "tool", "content": "1"}]


def test_sharegpt_rows_become_messages_with_their_system_text():
    turns = [{"from": "human", "value": "What?"}, {"from": "gpt", "value": "That."}]
    assert read_row({"conversations": turns, "lang": "en"}, "Row 1") == {"messages": EXPECTED, "lang": "en"}
    system = {"role": "system", "content": "Be brief."}
    assert read_row({"conversations": turns, "system": "Be brief."}, "Row 1")["messages"] == [system, *EXPECTED]


@pytest.mark.parametrize(
    ("message", "said"),
    [
        ({"role": "narrator", "content": "a"}, "message 2 of `messages` has the role 'narrator'; known are system, "),
        ({"role": "user", "content": None}, "message 2 of `messages` has no text: its `content` is null"),
        ({"role": "user"}, "message 2 of `messages` has no text: its `content` is missing"),
        ({"role": "assistant", "content": None, "tool_calls": []}, "message 2 of `messages` has no text"),
        ({"content": "a"}, "message 2 of `messages` says no role"),
        ({"role": "user", "content": 3}, "message 2 of `messages` must have a text as its content, got 3"),
        (
            {"role": "user", "content": [{"type": "image_url", "image_url": "u"}]},
            "message 2 of .* a part 1 of the type 'image_url'",
        ),
        (
            {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "audio"}]},
            "message 2 of .* a part 2 of the type 'audio'",
        ),
        ({"from": "function_call", "value": "look(it)"}, "message 2 of `messages` should hold JSON and does not"),
        ("text", "message 2 of `messages` must be"),
    ],
)
def test_what_is_no_text_is_refused_with_row_and_message(message, said):
    with pytest.raises(ValueError, match=f"^Row 7 of train.jsonl: {said}"):
        read_row({"messages": [USER, message]}, "Row 7 of train.jsonl")


def test_a_dataset_is_converted_and_one_in_trls_form_is_the_same_object():
    plain = Dataset.from_list([{"messages": EXPECTED, "lang": "en"}] * 2)
    assert with_messages(plain, "x") is plain
    parts = [USER | {"content": [{"type": "text", "text": "What?"}]}, ASSISTANT | {"content": [{"text": "That."}]}]
    for messages in ({"messages": parts}, {"conversations": [{"from": "human", "value": "What?"}]}):
        converted = with_messages(Dataset.from_list([messages | {"lang": "en"}] * 2), "x")
        assert converted[1]["messages"][0] == USER
        assert set(converted.column_names) == {"messages", "lang"}
    stream = Dataset.from_list([{"messages": parts}] * 2).to_iterable_dataset()
    assert [row["messages"] for row in with_messages(stream, "x")] == [EXPECTED] * 2


def test_a_row_behind_the_first_is_refused_in_a_dataset_and_in_a_stream():
    rows = [{"messages": EXPECTED}, {"messages": [USER, {"role": "narrator", "content": "a"}]}]
    with pytest.raises(ValueError, match="Row 2 of the train dataset: message 2 of `messages`"):
        with_messages(Dataset.from_list(rows), "the train dataset")
    stream = with_messages(Dataset.from_list(rows).to_iterable_dataset(), "the train dataset")
    with pytest.raises(ValueError, match="Row 2 of the train dataset: message 2 of `messages`"):
        list(stream)
