"""The language of an answer: given, of the row, or of the prompt's script."""

import pytest

from sae_posttrain.steering.questions import as_rows, guess_language, read_asked


@pytest.mark.parametrize(
    ("text", "lang"),
    [
        ("How do I save?", "en"),
        ("如何保存文件？", "zh"),
        ("파일을 저장하는 방법", "ko"),
        ("ファイルを保存する", "ja"),
        ("Как сохранить файл?", "ru"),
        ("كيف أحفظ الملف؟", "ar"),
        ("1 + 1 = ?", "en"),
    ],
)
def test_a_language_is_guessed_from_the_script(text, lang):
    assert guess_language(text) == lang


def test_typed_text_is_a_users_turn_where_there_is_a_template(tokenizer):
    assert as_rows(["Hi"], tokenizer) == [{"prompt": [{"role": "user", "content": "Hi"}]}]
    assert as_rows(["Hi"], tokenizer, plain=True) == [{"prompt": "Hi"}]


def test_a_rows_own_language_goes_before_the_guess(tokenizer):
    rows = [{"prompt": "저장"}, {"prompt": "How?", "lang": "es"}]
    assert [question.source.lang for question in read_asked(rows, tokenizer)] == ["ko", "es"]
    assert [question.source.lang for question in read_asked(rows, tokenizer, lang="ru")] == ["ru", "ru"]
