import gzip
import json

import pytest
import torch

from sae_posttrain.features.read.text_options import TextOptions
from sae_posttrain.features.read.texts import Text, batches, read_rows, split_held_out, tokenize

ROWS = [{"lang": "zh", "text": "好"}, {"lang": "en", "text": "ok"}]


def counted_string(text: Text, tokenizer) -> str:
    return tokenizer.decode([token for token, counts in zip(text.ids, text.counted) if counts])


def write_jsonl(path, rows):
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    path.write_bytes(gzip.compress(lines.encode(), mtime=0) if path.suffix == ".gz" else lines.encode())
    return path


def test_every_token_of_a_plain_text_counts_except_the_first(tokenizer):
    [text] = tokenize([{"lang": "en", "text": "hello"}], tokenizer)
    assert text.group == "en"
    assert tokenizer.decode(text.ids) == "hello"
    assert text.counted == (False, True, True, True, True)


def test_special_tokens_do_not_count(tokenizer):
    [text] = tokenize([{"lang": "en", "text": "a<|user|>b<|end|>c"}], tokenizer)
    assert text.counted == (False, False, True, False, True)


def test_only_the_last_answer_of_a_chat_counts(tokenizer):
    turns = [("user", "Hi?"), ("assistant", "first"), ("user", "And?"), ("assistant", "second")]
    row = {"lang": "en", "messages": [{"role": role, "content": content} for role, content in turns]}
    [text] = tokenize([row], tokenizer)
    assert tokenizer.decode(text.ids) == (
        "<|user|>Hi?<|end|><|assistant|>first<|end|><|user|>And?<|end|><|assistant|>second<|end|>"
    )
    assert counted_string(text, tokenizer) == "second"


def test_only_the_completion_of_a_prompt_counts(tokenizer):
    [text] = tokenize([{"lang": "en", "prompt": "2+2=", "completion": "four"}], tokenizer)
    assert tokenizer.decode(text.ids) == "2+2=four"
    assert counted_string(text, tokenizer) == "four"


def test_first_token_does_not_count_even_with_an_empty_prompt(tokenizer):
    [text] = tokenize([{"lang": "en", "prompt": "", "completion": "four"}], tokenizer)
    assert counted_string(text, tokenizer) == "our"


def test_rows_of_different_forms_can_be_mixed(tokenizer):
    rows = [{"lang": "en", "text": "abc"}, {"lang": "zh", "prompt": "ab", "completion": "cd"}]
    assert [counted_string(text, tokenizer) for text in tokenize(rows, tokenizer)] == ["bc", "cd"]


def test_columns_can_have_other_names(tokenizer):
    rows = [{"label": "good", "answer": "yes"}]
    [text] = tokenize(rows, tokenizer, TextOptions(group_column="label", text_column="answer"))
    assert (text.group, counted_string(text, tokenizer)) == ("good", "es")


def test_long_texts_are_cut(tokenizer):
    [text] = tokenize([{"lang": "en", "text": "abcdefgh"}], tokenizer, TextOptions(max_length=5))
    assert (tokenizer.decode(text.ids), len(text.counted)) == ("abcde", 5)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"text": "a"}, "Row 2 of the texts has no group column `lang`; it has text. Name the right one with"),
        ({"lang": 3, "text": "a"}, "Row 2 of the texts: `lang` must be a text that is not empty, got 3"),
        (
            {"lang": "en", "body": "a"},
            "Row 2 of the texts has no text in the column `text`, nor `messages`.*body, lang.*`text_column`",
        ),
        ({"lang": "en", "text": ["a"]}, "Row 2 of the texts has no text in the column `text`"),
        ({"lang": "en", "prompt": "a"}, "nor `prompt` and `completion`"),
        (
            {"lang": "en", "messages": [{"role": "assistant", "content": "a"}]},
            "Row 2 of the texts: .* answer alone. Add the turn",
        ),
        ({"lang": "en", "messages": []}, "Row 2 of the texts: `messages` must be a list of messages, got"),
        (
            {"lang": "en", "messages": [{"role": "user", "content": "a"}]},
            "Row 2 of the texts: the last message of `messages` is the user's",
        ),
    ],
)
def test_row_that_cannot_be_read_is_named_with_its_columns(tokenizer, row, message):
    with pytest.raises(ValueError, match=message):
        tokenize([ROWS[0], row], tokenizer)


def test_no_rows_are_an_error(tokenizer):
    with pytest.raises(ValueError, match="There are no texts"):
        tokenize([], tokenizer)


@pytest.mark.parametrize("name", ["texts.jsonl", "texts.jsonl.gz"])
def test_rows_are_read_from_a_file(tmp_path, name):
    file = write_jsonl(tmp_path / name, ROWS)
    assert list(read_rows(file)) == ROWS
    assert list(read_rows(str(file))) == ROWS


def test_rows_are_read_from_all_jsonl_files_of_a_folder(tmp_path):
    write_jsonl(tmp_path / "b.jsonl.gz", ROWS[1:])
    write_jsonl(tmp_path / "a.jsonl", ROWS[:1])
    (tmp_path / "README.md").write_text("no rows")
    assert list(read_rows(tmp_path)) == ROWS


def test_empty_lines_are_skipped(tmp_path):
    file = tmp_path / "texts.jsonl"
    file.write_text('{"lang": "en"}\n\n{"lang": "zh"}\n')
    assert [row["lang"] for row in read_rows(file)] == ["en", "zh"]


def test_anything_that_yields_rows_will_do():
    assert list(read_rows(row for row in ROWS)) == ROWS


def test_bad_line_is_named_by_file_and_number(tmp_path):
    file = tmp_path / "texts.jsonl"
    file.write_text('{"lang": "en"}\n{"lang": \n')
    with pytest.raises(ValueError, match=r"Row 2 of .*texts\.jsonl: not JSON"):
        read_rows(file)
    file.write_text('{"lang": "en"}\n["en"]\n')
    with pytest.raises(ValueError, match=r"Row 2 of .*texts\.jsonl must be a JSON object, got list"):
        read_rows(file)


def test_missing_file_and_empty_folder_are_an_error(tmp_path):
    for missing in (tmp_path / "gone.jsonl", str(tmp_path / "gone.jsonl"), "gone.jsonl", "./gone", "gone"):
        with pytest.raises(FileNotFoundError, match="gone"):
            read_rows(missing)
    with pytest.raises(FileNotFoundError, match=r"holds no .*\.jsonl"):
        read_rows(tmp_path)


def numbered_texts(**num_per_group: int) -> list[Text]:
    groups = [group for group, num in num_per_group.items() for _ in range(num)]
    return [Text(group, (7, i), (False, True)) for i, group in enumerate(groups)]


def test_the_same_share_of_every_group_is_held_out():
    texts = numbered_texts(zh=10, en=50, ko=2)
    kept, held_out = split_held_out(texts, 0.2, None, seed=0)
    num = {group: [sum(text.group == group for text in part) for part in (kept, held_out)] for group in ("zh", "en")}
    assert num == {"zh": [8, 2], "en": [40, 10]}
    # round(0.2 · 2) = 0, but each side gets one
    assert sum(text.group == "ko" for text in kept) == sum(text.group == "ko" for text in held_out) == 1
    assert sorted(text.ids for text in kept + held_out) == sorted(text.ids for text in texts)


def test_split_depends_on_the_seed_alone():
    texts = numbered_texts(zh=20, en=20)
    assert split_held_out(texts, 0.5, None, seed=3) == split_held_out(texts, 0.5, None, seed=3)
    assert split_held_out(texts, 0.5, None, seed=3) != split_held_out(texts, 0.5, None, seed=4)


def test_no_more_texts_than_asked_are_taken_of_a_group():
    kept, held_out = split_held_out(numbered_texts(zh=10, en=3), 0.25, 4, seed=0)
    assert [sum(text.group == group for text in kept + held_out) for group in ("zh", "en")] == [4, 3]


def test_too_few_texts_are_an_error():
    with pytest.raises(ValueError, match="'en' has 1 text with a token that counts.*two or more are needed"):
        split_held_out(numbered_texts(zh=3, en=1), 0.2, None, seed=0)
    with pytest.raises(ValueError, match="`max_texts` must be 2 or more.*Got 1"):
        split_held_out(numbered_texts(zh=3, en=3), 0.2, 1, seed=0)


def test_group_without_a_token_that_counts_is_an_error_and_not_forgotten():
    empty = [Text("en", (7,), (False,))] * 5
    with pytest.raises(ValueError, match="'en' has 0 texts with a token that counts"):
        split_held_out(numbered_texts(zh=3) + empty, 0.2, None, seed=0)


def test_batches_go_from_long_to_short_and_are_padded_on_the_right():
    texts = [
        Text("zh", (5, 6), (False, True)),
        Text("en", (1, 2, 3, 4), (False, True, False, True)),
        Text("ko", (8, 8, 9), (False, False, True)),
    ]
    first, second = batches(texts, ["en", "ko", "zh"], batch_size=2)
    assert first.input_ids.tolist() == [[1, 2, 3, 4], [8, 8, 9, 0]]
    assert first.attention_mask.tolist() == [[1, 1, 1, 1], [1, 1, 1, 0]]
    assert first.counted.tolist() == [[False, True, False, True], [False, False, True, False]]
    assert first.groups.tolist() == [0, 1]
    assert second.input_ids.tolist() == [[5, 6]]
    assert second.groups.tolist() == [2]
    assert first.input_ids.dtype == torch.long and first.counted.dtype == torch.bool


def test_variables_reach_the_template_of_texts_that_are_messages(tokenizer, monkeypatch):
    monkeypatch.setattr(tokenizer, "chat_template", tokenizer.chat_template + "{% if brief is defined %}!{% endif %}")
    rows = [{"lang": "en", "messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}]
    plain, brief = (
        tokenize(rows, tokenizer)[0],
        tokenize(rows, tokenizer, TextOptions(chat_template_kwargs={"brief": True}))[0],
    )
    assert (*plain.ids, *tokenizer("!")["input_ids"]) == brief.ids


def test_row_that_the_template_refuses_is_named(tokenizer, monkeypatch):
    refusing = "{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    monkeypatch.setattr(tokenizer, "chat_template", refusing + tokenizer.chat_template)
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    rows = [
        {"lang": "en", "messages": turns},
        {"lang": "en", "messages": [{"role": "system", "content": "c"}, *turns]},
    ]
    with pytest.raises(ValueError, match="Row 2 of the texts .* is refused by the chat template: System role not"):
        tokenize(rows, tokenizer)


@pytest.mark.parametrize(
    "row",
    [
        {"text": "cut \ud83d"},
        {"prompt": "a", "completion": "\ud83d"},
        {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "\ude00"}]},
    ],
)
def test_half_of_a_character_names_the_row(row, tokenizer):
    with pytest.raises(ValueError, match=r"Row 2.* holds half of a character \(U\+D"):
        tokenize([{"lang": "en", "text": "fine \U0001f600"}, {"lang": "en", **row}], tokenizer)


def test_positions_choose_prompt_answer_both_or_the_last_token(tokenizer):
    row = {"lang": "en", "prompt": "2+2=", "completion": "four"}
    counted = {
        positions: counted_string(tokenize([row], tokenizer, positions=positions)[0], tokenizer)
        for positions in ("response", "prompt", "all", "last")
    }
    assert counted == {"response": "four", "prompt": "+2=", "all": "+2=four", "last": "r"}
    with pytest.raises(ValueError, match="Row 4 of the texts has no prompt"):
        tokenize([{"lang": "en", "text": "four"}], tokenizer, positions="prompt", first_row=4)


def test_a_text_says_whether_it_was_cut(tokenizer):
    rows = [{"lang": "en", "text": "four"}, {"lang": "en", "text": "fo"}]
    assert [text.cut for text in tokenize(rows, tokenizer, TextOptions(max_length=3))] == [True, False]
