import logging

import pytest
from datasets import Dataset

from sae_posttrain.baselines.data_filter import drop_switched

CLEAN, SWITCHED, CYRILLIC = "파일을 엽니다", "파일을 打开", "파일을 откройте"


def completions(*rows: tuple[str, str]) -> Dataset:
    return Dataset.from_list(
        [{"id": i, "lang": lang, "prompt": "?", "completion": answer} for i, (lang, answer) in enumerate(rows)]
    )


def test_rows_with_a_switch_go_and_the_message_counts_them_by_language(caplog):
    data = completions(("ko", CLEAN), ("ko", SWITCHED), ("zh", "打开"), ("ru", "откройте 文件"), ("en", "open it"))
    with caplog.at_level(logging.WARNING):
        kept = drop_switched(data, target_lang="zh")
    assert kept["id"] == [0, 2, 4]
    assert kept.column_names == data.column_names
    assert "Dropped 2 of 5 rows with an unexpected switch into 'zh': ko 1 of 2, ru 1 of 1." in caplog.text


def test_without_a_target_every_foreign_script_counts():
    data = completions(("ko", CLEAN), ("ko", SWITCHED), ("ko", CYRILLIC))
    assert drop_switched(data)["id"] == [0]
    assert drop_switched(data, target_lang="zh")["id"] == [0, 2]


def test_all_three_kinds_of_rows_are_read():
    def conversation(answer):
        return [{"role": "user", "content": "?"}, {"role": "assistant", "content": answer}]

    answers = [CLEAN, SWITCHED]
    kinds = [
        [{"messages": conversation(answer)} for answer in answers],
        [{"prompt": conversation(answer)[:1], "completion": conversation(answer)[1:]} for answer in answers],
        [{"prompt": "?", "completion": answer} for answer in answers],
        [{"text": answer} for answer in answers],
    ]
    for rows in kinds:
        data = Dataset.from_list([{**row, "language": "ko", "id": i} for i, row in enumerate(rows)])
        assert drop_switched(data, group_column="language")["id"] == [0]


def test_what_was_asked_before_an_answer_excuses_it_and_each_answer_counts():
    asked = {"role": "user", "content": "打开 는?"}
    clean, switched = ({"role": "assistant", "content": text} for text in (CLEAN, SWITCHED))
    rows = [[asked, switched], [switched, asked, clean], [asked, clean, switched]]
    data = Dataset.from_list([{"messages": row, "lang": "ko", "id": i} for i, row in enumerate(rows)])
    assert drop_switched(data)["id"] == [0, 2]


def test_short_switches_can_be_let_pass():
    data = completions(("ko", "파일을 开"), ("ko", SWITCHED))
    assert drop_switched(data, min_chars=2)["id"] == [0]


def test_clean_data_is_returned_as_it_is_and_said_to_be_clean(caplog):
    data = completions(("ko", CLEAN), ("zh", "打开"))
    with caplog.at_level(logging.WARNING):
        assert drop_switched(data, target_lang="zh") is data
    assert "No row of 2 holds an unexpected switch into 'zh' (it could show in 1)" in caplog.text


def test_filter_that_leaves_nothing_is_refused():
    with pytest.raises(ValueError, match="Every row of 2 .* Is `group_column='lang'` the language of the answer"):
        drop_switched(completions(("ko", SWITCHED), ("ko", SWITCHED)))


def test_filter_that_could_see_no_switch_is_refused():
    with pytest.raises(ValueError, match="No row of 2 can show a switch into 'en'; their languages are: es, ko"):
        drop_switched(completions(("ko", CLEAN), ("es", "abre")), target_lang="en")
    with pytest.raises(ValueError, match="No row of 0 can show a switch; their languages are: none"):
        drop_switched(Dataset.from_dict({"lang": [], "text": []}))


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (
            {"completion": CLEAN},
            "Row 1 of the dataset does not say the language .* no column `lang`. It has: completion",
        ),
        ({"completion": CLEAN, "lang": "kr"}, "Row 1 of the dataset has the unknown language 'kr'.*you mean 'ko'"),
        ({"prompt": "?", "lang": "ko"}, "Row 1 of the dataset holds no answer: it needs `messages`"),
        ({"messages": [{"role": "user", "content": "?"}], "lang": "ko"}, "none of its messages is the assistant's"),
        ({"messages": [{"role": "assistant", "content": [1]}], "lang": "ko"}, "only parts of text are read"),
    ],
)
def test_row_that_cannot_be_read_is_an_error_that_says_which(row, message):
    with pytest.raises(ValueError, match=message):
        drop_switched(Dataset.from_list([row]))


def test_streams_and_senseless_thresholds_are_refused():
    data = completions(("ko", CLEAN))
    with pytest.raises(ValueError, match="reads a `datasets.Dataset`, got IterableDataset"):
        drop_switched(data.to_iterable_dataset())
    with pytest.raises(ValueError, match="`min_chars` is a number of characters, 1 or more, got 0"):
        drop_switched(data, min_chars=0)
