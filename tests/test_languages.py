import subprocess
import sys

import pytest

from sae_posttrain.languages import (
    OWN_SCRIPTS,
    canonical_language,
    language_key,
    named_group,
    names_of_targets,
    nearest_language,
    scripts_of,
)
from sae_posttrain.measure.faults.scripts import SCRIPTS


@pytest.mark.parametrize(
    ("code", "names"),
    [
        ("zh", ["zh", "zh-CN", "zho_Hans", "zh_Hant_TW", "cmn", "chi", "Chinese", "Chinese (Simplified)", " ZH\n"]),
        ("ko", ["KO ", "kor_Hang", "Korean", "ko-KR", "ko-Kore"]),
        ("ja", ["jpn", "ja_Jpan", "JAPANESE"]),
        ("yue", ["yue", "yue_Hant", "zh-yue", "zh-yue-HK", "Cantonese"]),
        ("ar", ["arb_Arab", "ar-EG", "Modern Standard Arabic"]),
        ("sr", ["sr", "srp_Cyrl", "sr-RS"]),
        ("nb", ["nob_Latn", "Norwegian Bokmål"]),
        ("no", ["nor", "no"]),
        ("es", ["es-419", "spa_Latn"]),
        ("de", ["de-1996", "ger", "de-AT"]),
        ("uz-Cyrl", ["uz-Cyrl", "uzb_Cyrl", "uz_Cyrl_UZ", "Uzbek (Cyrillic)"]),
        ("pa-Arab", ["pa-Arab", "pnb", "pa-PK", "pa-Arab-PK"]),
        ("pa", ["pan_Guru", "pa-Guru-PK"]),
        ("az-Arab", ["azb_Arab", "az-IR"]),
        ("ru-Latn", ["ru-Latn", "rus_latn"]),
        ("sr-Latn", ["sr-Latn", "serbian_latin"]),
        ("zh-Latn", ["zh-Latn"]),
    ],
)
def test_names_of_one_language_have_one_code(code, names):
    assert {name: canonical_language(name) for name in names} == dict.fromkeys(names, code)


def test_every_code_of_the_table_stands_for_itself_and_its_scripts_are_known():
    for code, scripts in OWN_SCRIPTS.items():
        assert canonical_language(code) == code
        assert scripts_of(code) == scripts
        assert set(scripts) <= set(SCRIPTS)


def test_the_script_behind_a_code_decides():
    assert scripts_of("uz") == ("Latin",)
    assert scripts_of("uzn_Cyrl") == ("Cyrillic",)
    assert scripts_of("sr") == ("Cyrillic", "Latin")
    assert scripts_of("sr-Latn") == ("Latin",)
    assert scripts_of("ja-Jpan") == ("Hiragana", "Katakana", "Han")
    assert scripts_of("ja-Hrkt") == ("Hiragana", "Katakana")


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("cn", "zh"),
        ("jp", "ja"),
        ("kr", "ko"),
        ("Koraen", "ko"),
        ("chinesse", "zh"),
        ("en-formal", "en"),
        ("zh-Qaaa", "zh"),
    ],
)
def test_unknown_language_is_answered_with_the_nearest(name, near):
    assert nearest_language(name) == near
    with pytest.raises(ValueError, match=f"Unknown language '{name}'.*Did you mean '{near}'"):
        canonical_language(name)


@pytest.mark.parametrize("name", ["xx", "", "loop", "register", "other", "-", "en-zh", 3, None])
def test_what_is_no_language_is_refused(name):
    with pytest.raises(ValueError, match="Unknown language"):
        canonical_language(name)


def test_groups_that_are_no_languages_are_plain_names():
    assert language_key("Loop ") == "loop"
    assert language_key("en-formal") != language_key("en-casual")  # styles, whatever their language
    assert named_group("loop ", ["loop", "benign"]) == "loop"
    assert named_group("register", ["loop", "benign"]) is None


def test_a_group_is_named_exactly_or_by_its_language():
    assert named_group("zh-CN", ["zh", "en"]) == "zh"
    assert named_group("zh", ["cmn_Hans", "en"]) == "cmn_Hans"
    assert named_group("zh-TW", ["zh-CN", "zh-TW"]) == "zh-TW"
    assert named_group("ru-Latn", ["ru", "en"]) is None
    with pytest.raises(ValueError, match="'zh' may be any of the groups 'zh-CN', 'zh-TW'"):
        named_group("zh", ["zh-CN", "zh-TW"])


def test_languages_need_neither_numpy_nor_torch():
    code = "import sae_posttrain.languages, sys; print({'torch', 'trl', 'numpy', 'regex'} & set(sys.modules))"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "set()"


def test_other_names_of_a_target_are_told_from_regions_that_the_data_tell_apart():
    assert names_of_targets({"zh-CN", "zho_Hans", "en"}, ["zh"]) == {"zh-CN": "zh", "zho_Hans": "zh"}
    assert names_of_targets({"zh-CN", "zh-TW", "en"}, ["zh-TW"]) == {}
    assert names_of_targets({"zh", "en"}, ["zh-TW"]) == {"zh": "zh-TW"}
