"""Time grows with the length of an answer, whatever opens, nests, alternates or never closes in it."""

import time

import pytest

from sae_posttrain import LanguageConsistencyReward
from sae_posttrain.measure.faults.switching import find_switches, right_language

PIECES = [
    *[
        '"文"',
        '"文',
        "“文”",
        "“文",
        "文”",
        "„文“",
        "「文」",
        "「文",
        "«文» “",
        "‘文’",
        "'文'",
        "'文",
        "＂文＂",
        "《文》〈",
    ],
    *[
        "(文)",
        "(文",
        "((文))",
        "文)",
        "（文）",
        "[文](",
        "[文]",
        "〔文〕",
        "【文",
        "(“文”)",
        "“(文”)",
        "「『《文》』」",
    ],
    *[
        "`文",
        "``文`",
        "$文 ",
        "$$文",
        "\\[文",
        "\\(文 ",
        "\\begin{a}文",
        "<think>文",
        "<think>文</think>",
        "</think>文",
    ],
    *[
        '<p lang="x">文',
        "<ruby>文",
        "<!-- 文",
        '<a b="文" ',
        "文@",
        "@文.",
        "a@文.",
        "#文",
        "https://文",
        "https://a.b/文",
    ],
    *["文.", "a.文", "文/", "/文/", "a\\文", "~/文", "C:\\文", "文.pdf", "(・文・)", "αβ", "我。", "あ我、", "文 "],
]
SHORT, LONG = 1_500, 6_000
TOO_SHORT_TO_TELL = 0.02  # seconds


def grows_linearly(judge, piece):
    """Four times the length may take nine times as long; of a quadratic rule it takes sixteen."""
    short, long = (piece * (length // len(piece)) for length in (SHORT, LONG))
    taken = seconds(judge, long)
    return taken < TOO_SHORT_TO_TELL or min(taken, seconds(judge, long)) < 9 * seconds(judge, short)


def seconds(judge, answer):
    started = time.process_time()
    judge(answer)
    return time.process_time() - started


@pytest.mark.parametrize("piece", PIECES)
def test_switches_are_found_in_linear_time(piece):
    assert grows_linearly(lambda answer: find_switches(answer, lang="en", prompt="文?"), piece)
    assert grows_linearly(lambda answer: find_switches(answer, lang="ja"), piece)
    assert grows_linearly(lambda answer: right_language(answer, lang="zh"), piece)


@pytest.mark.parametrize("piece", ['"文"', '"文', "“(文”)", "((文))", "<think>文</think>"])
def test_reward_takes_linear_time(piece):
    reward = LanguageConsistencyReward()
    assert grows_linearly(lambda answer: reward(prompts=["?"], completions=[f"시작 {answer}"], lang=["ko"]), piece)


def test_lines_are_read_in_linear_time_too():
    pytest.importorskip("py3langid", reason="languages of lines need py3langid: pip install 'sae_posttrain[lid]'")
    from sae_posttrain.measure.faults.line_language import line_languages

    def judge(answer):
        return line_languages(answer, lang="es", suspects=["en"])

    for piece in ["A. ", "- Open it\n", "THE A\n", "«The file is» ", "“a (b", " ", "\n", '"a', "'a' ", "Aa bb. Cc "]:
        assert grows_linearly(judge, piece)
