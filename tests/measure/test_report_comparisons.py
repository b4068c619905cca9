"""What the report compares with what, and that every difference it tells has an interval."""

import re
from html.parser import HTMLParser

import pytest

from sae_posttrain.measure.answers.summary import summarise
from sae_posttrain.measure.report.data import Arm, Section
from sae_posttrain.measure.report.page import write_report
from sae_posttrain.measure.statistics.intervals import paired_difference, unpaired_difference

NO_LOOP = {"endless": False, "loop_any": False, "near_loop": False, "onset": None, "period": None, "span": 0}
LOOP = NO_LOOP | {"endless": True, "loop_any": True, "onset": 0, "period": 4, "span": 80}


def make_arm(name, bad, checked=None, capability=None):
    """An arm whose answers with these numbers, of 60, loop endlessly."""
    answers = [
        {
            "id": id_, "sample": 0, "lang": "ko", "prompt": "?", "answer": "파일", "num_tokens": 80, "finished": True,
            "any": False, "unexpected": False, "num_any": 0, "num_unexpected": 0, "num_unexpected_in_think": 0,
            "num_replacement_chars": 0, "right_language": True, "spans": [], "loop": LOOP if id_ in bad else NO_LOOP,
        }
        for id_ in range(60)
    ]  # fmt: skip
    settings = {"target_lang": "zh", "max_new_tokens": 128}
    evaluation = {**summarise(answers), "settings": settings, "versions": {}}
    return Arm(name, evaluation=evaluation, answers=answers, checked=checked or {}, capability=capability)


def words(tmp_path, *sections, **options):
    """The text of the page, without its styles."""
    html = write_report(tmp_path / "report.html", sections, title="Page", **options).read_text("utf-8")
    parser = HTMLParser()
    pieces = []
    parser.handle_data = pieces.append
    parser.feed(re.sub(r"<style>.*?</style>", "", html, flags=re.DOTALL))
    return re.sub(r"\s+", " ", " ".join(pieces).replace("\u00a0", " "))


def pairs(*names, baseline=None):
    section = Section("S", [make_arm(name, ()) for name in names], "loops", baseline)
    return [(arm.name, reference.name) for arm, reference in section.pairs]


def test_last_arm_is_compared_with_each_of_the_others_and_the_others_with_the_baseline():
    assert pairs("before", "plain", "steered") == [("steered", "before"), ("steered", "plain"), ("plain", "before")]
    assert pairs("before", "plain", "steered", baseline="plain") == [
        ("steered", "plain"),
        ("steered", "before"),
        ("before", "plain"),
    ]
    assert pairs("before", "after") == [("after", "before")]
    assert pairs("before", "after", baseline="after") == [("before", "after")]
    assert pairs("only") == []


def test_of_many_arms_each_is_compared_with_the_baseline_only():
    assert pairs("a", "b", "c", "d", "e") == [("e", "a"), ("b", "a"), ("c", "a"), ("d", "a")]


def test_difference_between_two_trained_arms_has_a_paired_interval_whatever_the_baseline_is(tmp_path):
    plain, steered = set(range(7)), set(range(2, 10))
    arms = [make_arm("before", range(20)), make_arm("DAPO", plain), make_arm("steered", steered)]
    paired = paired_difference([id_ in plain for id_ in range(60)], [id_ in steered for id_ in range(60)])
    low, high = (f"{100 * bound:+.1f}".replace("-", "−") for bound in (paired.low, paired.high))
    for baseline in ("before", "DAPO"):
        text = words(tmp_path, Section("S", arms, "loops", baseline))
        assert "No clear difference between steered and DAPO" in text
        assert f"steered minus DAPO +1.7 {low} to {high}; not clear" in text
        assert "−20.0" in text, "steered against before"


def checked(right, num=40):
    """Questions in two languages each, those with these numbers answered right."""
    return {(id_, 0, lang): id_ in right for id_ in range(num // 2) for lang in ("en", "ko")}


def test_fewer_right_answers_are_told_with_an_interval_paired_by_question(tmp_path):
    arms = [make_arm("SFT", (), checked(range(18))), make_arm("SASFT", (), checked(range(9)))]
    text = words(tmp_path, Section("S", arms, "loops"))
    paired = paired_difference(
        [id_ < 18 for id_ in range(20)], [id_ < 9 for id_ in range(20)], list(range(20))
    )  # a question's two languages count once
    interval = " to ".join(f"{100 * bound:+.1f}".replace("-", "−") for bound in (paired.low, paired.high))
    told = "But fewer checked questions are answered right: 45.0 % against 90.0 %, −45.0 points (95 % interval "
    told += f"{interval})."
    assert told in text
    assert f"−45.0 {interval}" in text.split(told)[1], "the table of differences has it too"


def test_a_difference_in_right_answers_that_may_be_chance_is_called_so(tmp_path):
    arms = [make_arm("SFT", (), checked(range(10))), make_arm("SASFT", (), checked(range(1, 11)))]
    text = words(tmp_path, Section("S", arms, "loops"))
    assert re.search(r"Checked questions answered right: 50\.0 % against 50\.0 %, 0\.0 points \(95 % interval "
                     r"−[\d.]+ to \+[\d.]+, which includes 0\)", text)  # fmt: skip
    assert "But fewer" not in text


def test_counts_without_single_questions_have_an_interval_that_is_not_paired(tmp_path):
    arms = [make_arm("SFT", (), capability=(45, 50)), make_arm("SASFT", (), capability=(20, 50))]
    text = words(tmp_path, Section("S", arms, "loops"))
    assert "40.0 % against 90.0 %, −50.0 points (95 % interval −63.6 to −32.1, not paired)" in text


def test_unpaired_interval_is_that_of_the_source():
    # Newcombe 1998, table II, (a): 56 of 70 against 48 of 80, method 10: 0.0524 to 0.3339
    low, high = unpaired_difference((48, 80), (56, 70))
    assert (low, high) == (pytest.approx(0.0524, abs=5e-5), pytest.approx(0.3339, abs=5e-5))


def test_counts_that_contradict_the_single_questions_are_refused():
    with pytest.raises(ValueError, match=r"is \(3, 40\), but 20 of 40 of its `checked` questions are right"):
        make_arm("SFT", (), checked(range(10)), capability=(3, 40))
    assert make_arm("SFT", (), checked(range(10))).capability == (20, 40)


def test_notice_stands_above_the_first_figure(tmp_path):
    section = Section("Loops", [make_arm("a", range(9)), make_arm("b", ())], "loops")
    text = words(tmp_path, section, notice="Both faults were planted.\n\nNot <b>natural</b> ones.")
    assert text.index("Both faults were planted.") < text.index("Not <b>natural</b> ones.") < text.index("Loops")
    assert text.index("Both faults were planted.") < text.index("%")
