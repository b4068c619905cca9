import random

import pytest

from sae_posttrain.measure.faults import scripts
from sae_posttrain.measure.faults.scripts import (
    OWN_SCRIPTS,
    SCRIPTS,
    ScannedText,
    can_measure,
    count_scripts,
    same_language,
)
from sae_posttrain.measure.faults.switching import find_switches, right_language


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
    for own in OWN_SCRIPTS.values():
        assert set(own) <= set(SCRIPTS)


@pytest.mark.parametrize("seed", range(5))
def test_runs_by_table_are_those_of_the_pattern(seed):
    """Any characters: those that count, marks that do not, lone surrogates, planes without a script."""
    drawn = random.Random(seed)
    everything = [chr(code) for code in range(0x110000)]
    pools = ["abc é ñ", "中文，。、々", "한국어 가", "русский", "ひらカタナー漢", "\u0301\u0300", "0123 .", everything]
    for _ in range(300):
        text = "".join(drawn.choice(drawn.choice(pools)) for _ in range(drawn.randrange(12)))
        runs = list(scripts._runs_with_marks(text))
        assert ScannedText(text).runs(frozenset({*SCRIPTS, "Other"})) == runs, ascii(text)
        assert count_scripts(text) == scripts._sum_by_script(runs), ascii(text)
        some = frozenset(drawn.sample(SCRIPTS, 3))
        assert ScannedText(text).runs(some) == [run for run in runs if run[2] in some], ascii(text)


def test_every_name_of_a_language_is_measured_alike():
    names = ["kor_Hang", "Korean", "KO ", "ko-KR"]
    assert all(can_measure(name, "Chinese") and can_measure(name, "zho_Hant") for name in names)
    assert all(same_language(name, "ko") for name in names)
    assert not can_measure("cmn", "zh-TW")
    assert right_language("파일을 엽니다", lang="Korean")


def test_the_script_of_a_code_decides_what_is_right_and_what_is_a_switch():
    cyrillic, latin = "Файлни очинг ва сақланг.", "Faylni oching va saqlang."
    assert right_language(cyrillic, lang="uz-Cyrl")
    assert not right_language(cyrillic, lang="uz")
    assert right_language(latin, lang="uz")
    assert not right_language(latin, lang="uz_Cyrl")
    assert same_language("uz", "uz-Cyrl")
    assert can_measure("ru-Latn", "ru")
    assert find_switches("Sokhranite файл.", lang="ru-Latn", target_lang="ru").unexpected
    assert find_switches("فائل کھولیں", lang="pa", target_lang="pa-Arab").unexpected
    assert not can_measure("pa-PK", "ur")
