import json

import pytest

from sae_posttrain.measure.answers.summary import answer_key, compare_answers, format_evaluation, summarise
from sae_posttrain.measure.statistics.intervals import mcnemar, wilson


def test_rates_count_what_the_answers_hold(run, answer_with):
    answer_with(
        {
            "저장": "먼저 保存 버튼",  # 2 unexpected Han
            "파일 열기": "`文件`을 엽니다",  # 2 Han, excused as code
            "Файл": "",
            "保存": "请点击保存",
            "Open a file": "Yes 然后点击保存",  # 6 unexpected Han, and 3 letters of its own
        }
    )
    result = run()
    overall, ko = result["overall"], result["groups"]["ko"]
    # 4 answers could switch into Chinese, the Chinese one could not
    assert (overall["num_answers"], overall["num_measured"]) == (5, 4)
    assert [overall["any"][t]["count"] for t in ("1", "2", "5")] == [3, 3, 1]
    assert [overall["unexpected"][t]["count"] for t in ("1", "2", "5")] == [2, 2, 1]
    low, high = wilson(2, 4)
    assert overall["unexpected"]["1"] == {"count": 2, "n": 4, "rate": 0.5, "low": low, "high": high}
    assert (ko["any"]["1"]["rate"], ko["unexpected"]["1"]["rate"]) == (1.0, 0.5)
    assert result["groups"]["zh"]["any"] is None
    assert result["groups"]["zh"]["right_language"]["rate"] == 1
    # the empty answer has no language, the English one is mostly Han
    assert (overall["right_language"]["count"], overall["right_language"]["n"]) == (3, 4)
    assert overall["empty"]["count"] == 1
    assert overall["truncated"]["count"] == 0
    # one token per byte: 먼저 保存 버튼 6+1+6+1+6 = 20; `文件`을 엽니다 8+3+1+9 = 21; 0; 5 * 3 = 15; 4+18 = 22
    assert overall["mean_tokens"] == pytest.approx((20 + 21 + 0 + 15 + 22) / 5)


def test_truncated_answers_are_counted(run, answer_with, prompt_rows):
    answer_with({row["prompt"]: "x" for row in prompt_rows}, finished=False)
    assert run()["overall"]["truncated"]["rate"] == 1


LOOP = "click OK, " * 9  # 90 tokens, one a byte
COUNTER = "".join(f"{letter} is the next line. " for letter in "abcdefghijklmnopqr")


def test_loops_are_counted(run, answer_with):
    answers = {
        "저장": LOOP,
        "파일 열기": f"{LOOP}and then it says what nobody has read so far",
        "Файл": COUNTER,
        "保存": "请点击保存",
        "Open a file": LOOP,
    }
    answer_with(answers, finished=False)
    result = run(max_new_tokens=128)
    overall = result["overall"]
    low, high = wilson(2, 5)
    assert overall["endless"] == {"count": 2, "n": 5, "rate": 0.4, "low": low, "high": high}
    assert (overall["loop_any"]["count"], overall["near_loop"]["count"]) == (3, 1)
    ko, zh = result["groups"]["ko"], result["groups"]["zh"]
    assert (ko["endless"]["rate"], ko["loop_any"]["rate"], ko["near_loop"]["rate"]) == (0.5, 1, 0)
    assert zh["endless"]["n"] == 1  # every language can loop, the target too
    table = format_evaluation(result)
    assert "a loop anywhere: 60.0 % of all, cut in a loop in which something changes: 20.0 %." in table
    assert "40.00 [11.76, 76.93]" in next(line for line in table.splitlines() if line.startswith("all"))

    answer_with(answers, finished=True)
    ended = run(folder="ended")["overall"]
    assert (ended["endless"]["count"], ended["loop_any"]["count"], ended["near_loop"]["count"]) == (0, 3, 0)


def test_table_says_when_answers_are_too_short_to_loop(run):
    assert "no answer of 63 tokens can show it, a loop has 64 or more" in format_evaluation(run(max_new_tokens=63))
    table = format_evaluation(run(folder="longer", max_new_tokens=64))
    assert "a loop anywhere" in table and "in which something changes" in table


def test_comparison_pairs_endless_loops(run, answer_with, tmp_path, prompt_rows):
    answer_with({row["prompt"]: LOOP for row in prompt_rows}, finished=False)
    run(folder="before")
    answer_with({**{row["prompt"]: "x" for row in prompt_rows}, "저장": LOOP}, finished=False)
    result = run(folder="after", compare=tmp_path / "before")
    endless = result["comparison"]["overall"]["endless"]
    assert (endless["difference"], endless["n"]) == (-0.8, 5)
    assert endless["p_value"] == mcnemar(4, 0) == 0.125
    assert result["comparison"]["overall"]["loop_any"]["difference"] == -0.8
    assert result["comparison"]["overall"]["near_loop"]["difference"] == 0
    assert result["comparison"]["groups"]["ko"]["endless"]["difference"] == -0.5
    assert result["comparison"]["groups"]["zh"]["endless"]["difference"] == -1
    header = next(line for line in format_evaluation(result).splitlines() if line.startswith("lang  pairs"))
    assert header.split() == ["lang", "pairs", "unexpected", "p", "any", "p", "right", "language", "p", "endless", "p"]
    assert "-80.00 [" in format_evaluation(result)


def test_rates_follow_from_the_answers_alone(run, read_answers):
    result = run()
    answers = read_answers()
    assert summarise(answers) == {"overall": result["overall"], "groups": result["groups"]}
    assert summarise(answers[::-1]) == summarise(answers)


def test_target_none_counts_every_foreign_script(run, answer_with, prompt_rows):
    answer_with({row["prompt"]: "кнопка 保存" for row in prompt_rows})
    result = run(target_lang=None)
    # ru: only Han is foreign; zh: only Cyrillic
    assert result["overall"]["num_measured"] == 5
    assert {lang: group["any"]["5"]["rate"] for lang, group in result["groups"].items()} == {
        "ko": 1,
        "en": 1,
        "zh": 1,
        "ru": 0,
    }


def test_language_with_the_script_of_the_target_is_left_out(run, answer_with):
    rows = [{"lang": "uk", "prompt": "Файл"}, {"lang": "ko", "prompt": "저장"}]
    answer_with({"Файл": "кнопка", "저장": "кнопка"})
    result = run(data=rows, target_lang="ru")
    assert result["groups"]["uk"]["any"] is None
    assert result["overall"]["any"]["1"]["rate"] == 1
    assert "does not show in the script of uk" in format_evaluation(result)


def test_comparison_pairs_the_same_prompts(run, answer_with, tmp_path, prompt_rows):
    answer_with({row["prompt"]: "保存" for row in prompt_rows})
    run(folder="before")
    answer_with({**{row["prompt"]: "x" for row in prompt_rows}, "Файл": "보 保存"})
    result = run(folder="after", compare=tmp_path / "before")
    unexpected = result["comparison"]["overall"]["unexpected"]
    # the 4 answers that are not Chinese: 3 healed, 1 as before. 1/4 - 4/4
    assert (unexpected["difference"], unexpected["n"]) == (-0.75, 4)
    assert unexpected["p_value"] == mcnemar(3, 0) == 0.25
    assert result["comparison"]["groups"]["ko"]["any"]["difference"] == -1
    assert result["comparison"]["groups"]["zh"]["any"] is None
    # the Chinese answer is no longer Chinese
    assert result["comparison"]["groups"]["zh"]["right_language"]["difference"] == -1
    assert result["comparison"]["different_settings"] == []
    table = format_evaluation(result)
    assert "-75.00 [" in table
    assert "0.25" in table
    assert "comparison" not in json.loads((tmp_path / "after" / "evaluation.json").read_text(encoding="utf-8"))


def test_comparison_does_not_depend_on_the_order(run, read_answers):
    run(folder="before")
    run(folder="after", seed=1, batch_size=5)
    before, after = read_answers("before"), read_answers("after")
    assert {answer_key(answer) for answer in before} == {answer_key(answer) for answer in after}
    assert compare_answers(before[::-1], after) == compare_answers(before, after)


def test_comparison_of_several_samples_resamples_prompts(run, answer_with, tmp_path):
    rows = [{"lang": "ko", "prompt": f"질문 {i}"} for i in range(6)]
    answer_with({row["prompt"]: ["保存", "x"] for row in rows})
    run(folder="before", data=rows, num_samples=2)
    answer_with(
        {row["prompt"]: ["x", "x"] for row in rows[:3]} | {row["prompt"]: ["保存", "保存"] for row in rows[3:]}
    )
    result = run(folder="after", data=rows, num_samples=2, compare=tmp_path / "before")
    any_ = result["comparison"]["overall"]["any"]
    # one of two before, none of two or two of two after
    assert (any_["difference"], any_["n"], any_["num_clusters"], any_["p_value"]) == (0, 12, 6, None)
    assert "count as independent" in format_evaluation(result)


def test_table_names_every_language(run, answer_with, prompt_rows):
    answer_with({row["prompt"]: "保存" for row in prompt_rows})
    table = format_evaluation(run())
    assert "code-switching into zh, and endless repetition" in table
    lines = {line.split()[0]: line for line in table.splitlines() if line}
    # ko: 2 of 2 answers, interval from 2/(2 + 3.84) = 34.24 %
    assert "100.00 [34.24, 100.00]" in lines["ko"]
    assert lines["zh"].split()[:4] == ["zh", "1", "-", "-"]
    assert lines["all"].split()[1] == "5"
