import json

import pytest

from sae_posttrain.measure.answers.prompts import Prompt, read_prompts


def read(data, **settings):
    return read_prompts(data, **{"group_column": "lang", "target_lang": "zh", **settings})


def test_text_is_a_prompt():
    rows = [{"lang": "ko", "prompt": "저장"}, {"lang": "ru", "prompt": "Файл", "id": "f", "reference": "保存"}]
    assert read(rows) == [Prompt(0, "ko", "저장", None, None), Prompt("f", "ru", "Файл", None, "保存")]


def test_conversation_ends_before_the_answer_that_serves_as_reference():
    turns = [{"role": "system", "content": "be"}, {"role": "user", "content": "Who?"}]
    answer = [{"role": "assistant", "content": "习近平"}]
    expected = [Prompt(0, "en", "be\nWho?", turns, "习近平")]
    assert read([{"lang": "en", "messages": turns + answer}]) == expected
    assert read([{"lang": "en", "prompt": turns, "completion": answer}]) == expected
    assert read([{"lang": "en", "prompt": turns, "completion": "习近平"}]) == expected


@pytest.mark.parametrize(
    "row",
    [
        {"conversations": [{"from": "human", "value": "Who?"}, {"from": "gpt", "value": "习近平"}]},
        {"messages": [{"role": "human", "content": "Who?"}, {"role": "gpt", "content": "习近平"}]},
        {"messages": [{"role": "user", "content": "Who?"}, {"role": "model", "content": "习近平"}]},
        {
            "messages": [
                {"role": "user", "content": [{"type": "text", "text": "Who?"}]},
                {"from": "gpt", "value": "习近平"},
            ]
        },
        {"prompt": [{"from": "human", "value": "Who?"}], "completion": [{"from": "gpt", "value": "习近平"}]},
    ],
)
def test_the_known_answer_is_never_sent(row):
    sent = [{"role": "user", "content": "Who?"}]
    assert read([{"lang": "en", **row}]) == [Prompt(0, "en", "Who?", sent, "习近平")]


def test_a_tool_call_without_content_is_taken_and_one_that_closes_is_no_reference():
    call = {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "f", "arguments": {}}}]}
    user, tool = {"role": "user", "content": "Who?"}, {"role": "tool", "content": "1"}
    assert read([{"lang": "en", "messages": [user, call, tool]}])[0].messages == [user, call, tool]
    assert read([{"lang": "en", "messages": [user, call]}]) == [Prompt(0, "en", "Who?", [user], None)]


def test_exact_copies_are_counted_and_said(caplog):
    read([{"lang": "ko", "prompt": "가", "id": i} for i in range(3)])
    assert "the data: 2 of 3 rows are exact copies" in caplog.text


def test_prompts_of_a_file(prompt_rows, tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(map(json.dumps, prompt_rows)) + "\nnot JSON", encoding="utf-8")
    prompts = read(path, limit=5)
    assert prompts == read(prompt_rows) == read(str(path), limit=5)
    assert read(path, limit=2) == prompts[:2]
    with pytest.raises(ValueError, match=r"Row 6 of .*rows\.jsonl: not JSON"):
        read(path)


def test_dataset_and_column_of_the_language(prompt_rows):
    datasets = pytest.importorskip("datasets", reason="rows of a datasets.Dataset")
    rows = [{"language": row["lang"], "prompt": row["prompt"]} for row in prompt_rows]
    prompts = read(datasets.Dataset.from_list(rows), group_column="language")
    assert [prompt.lang for prompt in prompts] == ["ko", "ko", "ru", "zh", "en"]


def test_one_id_in_several_languages_is_allowed():
    rows = [{"lang": lang, "prompt": "a", "id": 7} for lang in ("ko", "ru")]
    assert [prompt.id for prompt in read(rows)] == [7, 7]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ([], "No prompts in the data"),
        ([{"prompt": "a"}], "no column `lang`. It has: prompt. Name another column with `group_column`"),
        (
            [{"lang": "ko", "text": "a"}],
            r"a column `prompt` \(text or messages\) or `messages`. It has: lang, text",
        ),
        ([{"lang": "ko", "prompt": " "}], "Row 1 of the data has an empty prompt"),
        ([{"lang": None, "prompt": "a"}], "Row 1 of the data: `lang` is null"),
        ([{"lang": "tlh", "prompt": "a"}], "unknown language 'tlh' in `lang`. Known: .*zh"),
        ([{"lang": "ko", "prompt": "a", "id": 7}] * 2, "id 7 occurs twice with the language 'ko'"),
        (["text"], "Row 1 of the data is a str"),
        (
            [{"lang": "ko", "prompt": [{"role": "user", "content": [{"type": "image"}]}]}],
            "Row 1 of the data: message 1 of `prompt` has a part 1 of the type 'image'",
        ),
        ([{"lang": "ko", "prompt": [{"role": "user", "content": None}]}], "message 1 of `prompt` has no text"),
        (
            [{"lang": "ko", "prompt": [{"role": "narrator", "content": "a"}]}],
            "message 1 of `prompt` has the role 'narr",
        ),
        (
            [{"lang": "ko", "prompt": [{"role": "gpt", "content": "a"}]}],
            "the last message of `prompt` is the assistant's",
        ),
        ([{"lang": "ko", "messages": [{"role": "gpt", "content": "a"}]}], "nothing to answer.*the assistant's alone"),
        ("missing.jsonl", "no data file missing.jsonl"),
    ],
)
def test_wrong_data_is_refused(data, message):
    with pytest.raises(ValueError, match=message):
        read(data)


def test_target_that_no_prompt_can_show_is_refused(prompt_rows):
    with pytest.raises(
        ValueError, match=r"No row can show a switch into 'en'.*\(Latin\).*Latin is allowed everywhere"
    ):
        read(prompt_rows, target_lang="en")
    with pytest.raises(ValueError, match="Unknown language 'xx'"):
        read(prompt_rows, target_lang="xx")
