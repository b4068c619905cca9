"""Data of a recipe, from files and from streams."""

import json
from functools import partial

import pytest
from datasets import Dataset

from sae_posttrain.training.data import checked, load_file
from sae_posttrain.training.gate import ROWS_READ_FROM_A_STREAM, require_training_rows


def test_a_column_of_several_types_is_said(tmp_path):
    file = tmp_path / "train.jsonl"
    rows = [{"text": "a", "more": 1}, {"text": "b", "more": "x"}, {"text": "c", "more": [1]}]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    loaded = load_file(str(file), "train", require_training_rows)
    assert [row["text"] for row in loaded["train"]] == ["a", "b", "c"]


def test_a_file_can_be_streamed(tmp_path):
    file = tmp_path / "train.jsonl"
    turns = [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]
    for rows in ([{"text": "a"}, {"text": "b"}], [{"conversations": turns}] * 2):
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
        loaded = list(load_file(str(file), "train", require_training_rows, streaming=True)["train"])
        assert len(loaded) == 2 and ("text" in loaded[0] or loaded[0]["messages"][1]["role"] == "assistant")


def test_rows_of_a_stream_are_checked_as_they_are_read():
    rows = [{"text": f"{i}", "lang": "en"} for i in range(ROWS_READ_FROM_A_STREAM + 5)]
    rows.append({"text": "x", "lang": "fr"})

    def check_group(group):
        if group == "fr":
            raise ValueError("no statistics of fr")

    check = partial(require_training_rows, check_group=check_group)
    stream = checked(Dataset.from_list(rows).to_iterable_dataset(), "owner/data", check)
    with pytest.raises(ValueError, match=f"Row {len(rows)} of owner/data: no statistics of fr"):
        list(stream)
    with pytest.raises(ValueError, match=f"Row {len(rows)} of owner/data: no statistics of fr"):
        checked(Dataset.from_list(rows), "owner/data", check)
