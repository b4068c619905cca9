import pytest
import torch

from sae_posttrain.penalty.groups import GROUP_IDS, NO_GROUP, GroupCollator, GroupTable
from sae_posttrain.penalty.script_detector import script_detector


def table(make_features, **kwargs) -> GroupTable:
    return GroupTable.for_features(
        make_features(), kwargs.pop("targets", ["zh"]), kwargs.pop("unknown_group", "error")
    )


def test_group_without_statistics_is_an_error_that_names_the_ways_out(make_features):
    groups = table(make_features)
    assert [groups.number(name) for name in ("zh", "ko", "en")] == [0, 1, 2]
    with pytest.raises(ValueError, match=r"'ru' occurs in the data.*zh, ko, en only.*unknown_group='mean'"):
        groups.number("ru")
    with pytest.raises(ValueError, match="group must be a text, got None"):
        groups.number(None)


def test_unknown_groups_read_the_mean_of_the_penalised_groups(make_features):
    features = make_features()
    groups = table(make_features, unknown_group="mean")
    assert groups.number("ru") == 3
    levels = groups.table(features, features.mean)
    assert torch.allclose(levels[3], features.mean[:, 1:].mean(dim=1))  # zh is the target
    assert torch.equal(levels[1], features.mean[:, 1])
    assert groups.is_penalised(torch.tensor([3, 0, -1, 2])).tolist() == [True, False, False, True]


def test_several_target_groups_are_left_out(make_features):
    groups = table(make_features, targets=["zh", "en"])
    assert groups.penalised == ("ko",)
    assert groups.is_penalised(torch.tensor([0, 1, 2])).tolist() == [False, True, False]


@pytest.mark.parametrize(
    ("tokens", "name", "refused"),
    [
        ("zh", "yue", True),
        ("zh", "Japanese", True),
        ("zh", "zh-TW", False),
        ("zh", "ko", False),
        ("zh", "loop", False),
        ("ja", "zh", False),  # only kana stand for Japanese
        ("ru", "uk", True),
        ("ru", "sr-Latn", False),
    ],
)
def test_a_language_written_with_the_penalised_tokens_must_be_a_target(tokens, name, refused):
    groups = GroupTable.for_tokens([tokens], tokens)
    if refused:
        with pytest.raises(ValueError, match="its own words would be penalised"):
            groups.number(name)
    else:
        assert groups.number(name) in (0, 1)
    assert GroupTable.for_tokens([tokens, name], tokens).number(name) in (0, 1)


def test_a_group_of_the_features_is_refused_too_where_its_script_is_penalised(make_features):
    groups = GroupTable.for_features(make_features(groups=("zh", "ja", "en")), ["zh"], "error", "zh")
    assert groups.number("en") == 2
    with pytest.raises(ValueError, match="'ja' occurs in the data"):
        groups.number("ja")


def test_absent_target_is_an_error(make_features):
    with pytest.raises(ValueError, match="The target group 'fr' is not in the feature set"):
        table(make_features, targets=["fr"])
    with pytest.raises(ValueError, match="Set `target_group`"):
        table(make_features, targets=[])


def test_script_tells_the_language_of_an_answer_with_foreign_names_in_it():
    detect = script_detector(["zh", "ko", "en"])
    assert detect("Microsoft Excel 파일을 여는 방법은 다음과 같습니다.") == "ko"
    assert detect("使用 LibreOffice 打开文件") == "zh"
    assert detect("The Chinese word for file is 文件, which is short.") == "en"
    assert detect("1234 !!") is None
    with pytest.raises(ValueError, match="cannot be told from its script: 'файл' is in Cyrillic, .*zh, ko, en"):
        detect("файл")
    assert script_detector(["zh", "ko", "en"], others=True)("файл") == "other"


def test_groups_that_share_a_script_need_a_column():
    with pytest.raises(ValueError, match=r"'en' and 'es' share the script Latin.*`group_column`"):
        script_detector(["zh", "en", "es"])
    with pytest.raises(ValueError, match="'zh' and 'ja' share the script Han"):
        script_detector(["zh", "ja"])
    with pytest.raises(ValueError, match="'bad' is no language"):
        script_detector(["bad", "good"])


def collate(examples, rows=2):
    width = max(len(e["input_ids"]) for e in examples)
    if rows == 1:
        return {"labels": torch.zeros(1, sum(len(e["input_ids"]) for e in examples))}
    assert all(GROUP_IDS not in e for e in examples)
    return {"labels": torch.zeros(len(examples), width + 1)}  # padded to a multiple


def test_collated_groups_follow_their_tokens():
    examples = [{"input_ids": [1, 2, 3], GROUP_IDS: [0, 0, 0]}, {"input_ids": [4], GROUP_IDS: [2]}]
    assert GroupCollator(collate)(examples)[GROUP_IDS].tolist() == [[0, 0, 0, -1], [2, -1, -1, -1]]
    flat = GroupCollator(lambda examples: collate(examples, rows=1))(examples)
    assert flat[GROUP_IDS].tolist() == [[0, 0, 0, 2]]


def test_collated_groups_follow_their_tokens_where_the_collator_pads_on_the_left_or_packs():
    examples = [{"labels": [1, 2], GROUP_IDS: [0, 0]}, {"labels": [4], GROUP_IDS: [2]}]
    left = {"labels": torch.tensor([[1, 2], [-100, 4]]), "attention_mask": torch.tensor([[1, 1], [0, 1]])}
    assert GroupCollator(lambda examples: left)(examples)[GROUP_IDS].tolist() == [[0, 0], [-1, 2]]
    packed = {"labels": torch.tensor([[1, 2, 4, -100]])}
    assert GroupCollator(lambda examples: packed)([examples])[GROUP_IDS].tolist() == [[0, 0, 2, -1]]


def test_collator_that_loses_tokens_is_an_error():
    examples = [{"input_ids": [1, 2], GROUP_IDS: [0, 0]}, {"input_ids": [4], GROUP_IDS: [2]}]
    with pytest.raises(ValueError, match="the group of each token is lost"):
        GroupCollator(lambda examples: {"labels": torch.zeros(2, 1)})(examples)


@pytest.mark.parametrize("unknown_group", ["error", "mean"])
def test_a_language_is_the_same_group_whatever_it_is_called(make_features, unknown_group):
    groups = table(make_features, unknown_group=unknown_group)
    assert [groups.number(name) for name in ("zh-CN", "zho_Hans", "Chinese", "cmn", " ZH")] == [0] * 5
    assert [groups.number(name) for name in ("kor_Hang", "KO ", "Korean")] == [1] * 3
    named = table(lambda: make_features(groups=("zho_Hans", "kor_Hang"), targets=("zho_Hans",)), targets=["zh-CN"])
    assert named.targets == ("zho_Hans",) and named.number("zh") == 0 and named.number("ko") == 1


def test_script_of_a_group_decides_which_it_is(make_features):
    groups = table(make_features, unknown_group="mean")
    assert groups.number("zh-Latn") == 3  # pinyin is not what the statistics of Chinese are of
    with pytest.raises(ValueError, match="'zh-Latn' occurs in the data.*Did you mean 'zh'"):
        table(make_features).number("zh-Latn")
    both = table(lambda: make_features(groups=("sr", "sr-Latn"), targets=("sr-Latn",)), targets=["sr-Latn"])
    assert both.is_penalised(torch.tensor([both.number("srp_Latn"), both.number("sr-Cyrl")])).tolist() == [False, True]


def test_several_groups_of_one_language_are_told_apart_by_their_own_names_only(make_features):
    regions = lambda: make_features(groups=("zh-CN", "zh-TW", "en"), targets=("zh-TW",))  # noqa: E731
    groups = table(regions, targets=["zh-TW"], unknown_group="mean")
    assert [groups.number(name) for name in ("zh-CN", "zh-TW", "en-GB")] == [0, 1, 2]
    with pytest.raises(ValueError, match="'zh-HK' may be any of the groups 'zh-CN', 'zh-TW'"):
        groups.number("zh-HK")
    assert table(regions, targets=["zh-TW", "zh-CN"]).number("zh-HK") == 0  # a target in any case
    with pytest.raises(ValueError, match="'zh' may be any of the groups"):
        table(regions, targets=["zh"])


def test_misspelt_target_is_not_penalised_as_an_unknown_group(make_features):
    groups = table(make_features, unknown_group="mean")
    for name in ("cn", "chinesse"):
        with pytest.raises(ValueError, match=f"The group '{name}'.*would be penalised. Did you mean the target 'zh'"):
            groups.number(name)
    assert [groups.number(name) for name in ("ru", "zh-mixed", "register", "fr")] == [3] * 4
    with pytest.raises(ValueError, match="'cn' occurs in the data.*Did you mean 'zh'"):
        table(make_features).number("cn")


def test_groups_that_are_no_languages_are_plain_names(make_features):
    groups = table(lambda: make_features(groups=("loop", "en-formal", "no")), targets=["loop"])
    assert [groups.number(name) for name in ("loop", "Loop ", "en-formal", "nor")] == [0, 0, 1, 2]
    with pytest.raises(ValueError, match="'en-casual' occurs in the data"):
        groups.number("en-casual")


def test_answer_without_letters_has_no_group(make_features):
    groups = table(make_features)
    assert [groups.number_of_text(text) for text in ("打开", "1 + 1 = 2", "👍", "")] == [
        0,
        NO_GROUP,
        NO_GROUP,
        NO_GROUP,
    ]
    assert not groups.is_penalised(torch.tensor([NO_GROUP])).any()
    assert groups.count([0, 0, NO_GROUP, 1, -1]) == {"ko": 1, "no letters": 1, "zh": 2}


def test_script_of_a_named_group_tells_it(make_features):
    detect = script_detector(["uz", "uz-Cyrl", "kor_Hang"])
    assert [detect(text) for text in ("Faylni oching", "Файлни очинг", "파일")] == ["uz", "uz-Cyrl", "kor_Hang"]
