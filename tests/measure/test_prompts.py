import json

import pytest

from sae_posttrain.measure.prompts import Prompt, read_prompts


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


def test_prompts_of_a_file(prompt_rows, tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(map(json.dumps, prompt_rows)) + "\nnot JSON", encoding="utf-8")
    prompts = read(path, limit=5)
    assert prompts == read(prompt_rows) == read(str(path), limit=5)
    assert read(path, limit=2) == prompts[:2]
    with pytest.raises(ValueError, match=r"rows\.jsonl, line 6: not JSON"):
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
        ([{"lang": "ko", "prompt": " "}], "Row 0 of the data has an empty prompt"),
        ([{"lang": "tlh", "prompt": "a"}], "unknown language 'tlh' in `lang`. Known: .*zh"),
        ([{"lang": "ko", "prompt": "a", "id": 7}] * 2, "id 7 occurs twice with the language 'ko'"),
        (["text"], "Row 0 of the data is a str"),
        ([{"lang": "ko", "prompt": [{"role": "user", "content": [{"type": "image"}]}]}], "`content` is not text"),
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
