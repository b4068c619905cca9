import pytest

from sae_posttrain.measure.scripts import OWN_SCRIPTS, SCRIPTS, can_measure, count_scripts, same_language


def test_scripts_of_any_text_are_counted_most_frequent_first():
    assert list(count_scripts("保存 파일을 Word!").items()) == [("Latin", 4), ("Hangul", 3), ("Han", 2)]
    assert count_scripts("12, …") == {}


def test_region_and_script_of_a_code_do_not_make_another_language():
    assert same_language("zh", "zh-TW")
    assert same_language("zh_Hant", "ZH")
    assert not same_language("zh", "yue")
    with pytest.raises(ValueError, match="Unknown language 'xx'"):
        same_language("zh", "xx")


def test_what_can_be_measured():
    assert all(can_measure(lang, target) for lang, target in [("ko", "zh"), ("ja", "zh"), ("zh", "ja"), ("ko", None)])


def test_every_script_name_is_one_of_unicode():
    assert len(set(SCRIPTS)) == len(SCRIPTS)
    for scripts in OWN_SCRIPTS.values():
        assert set(scripts) <= set(SCRIPTS)
