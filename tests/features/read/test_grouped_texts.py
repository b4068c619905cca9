import pytest

from sae_posttrain.features.read.grouped_texts import read_group_rows


def rows(*groups):
    return [{"lang": group, "text": "…"} for group in groups]


def groups_of(texts, targets):
    return [row["lang"] for row in read_group_rows(texts, targets)]


def test_texts_of_the_target_language_are_the_targets_whatever_they_are_called(caplog):
    assert groups_of(rows("zh-CN", "ko"), ["zh"]) == ["zh", "ko"]
    assert groups_of(rows("zh", "zho_Hans", "Chinese", "en-GB"), ["zh"]) == ["zh", "zh", "zh", "en-GB"]
    assert groups_of(rows("kor_Hang", "en"), ["Korean"]) == ["Korean", "en"]
    assert groups_of(rows("zh-CN", "zh-TW", "en"), ["zh"]) == ["zh", "zh", "en"]
    assert not caplog.text


def test_regions_that_the_texts_tell_apart_stay_apart_and_it_is_said(caplog):
    assert groups_of(rows("zh-CN", "zh-TW", "en"), ["zh-TW"]) == ["zh-CN", "zh-TW", "en"]
    assert "The texts have 'zh-CN' beside the target group 'zh-TW'" in caplog.text


def test_script_makes_another_group_and_plain_names_stay_as_they_are():
    assert groups_of(rows("uz", "uz-Cyrl"), ["uz-Cyrl"]) == ["uz", "uz-Cyrl"]
    assert groups_of(rows("loop", "benign"), ["loop"]) == ["loop", "benign"]
    with pytest.raises(ValueError, match="No text belongs to the target group 'ru'"):
        read_group_rows(rows("ru-Latn", "en"), ["ru"])
