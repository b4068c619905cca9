import pickle
import subprocess
import sys

import pytest

from sae_posttrain import EndlessRepetitionReward, LanguageConsistencyReward
from sae_posttrain.rl.blind_reward import sees_repetition
from sae_posttrain.rl.rewards import tell_template

END = 2
LOOP = [5, 6, 7, 8] * 20
TEXT = list(range(10, 90))
COUNTING = [token for number in range(100, 130) for token in (5, 6, 7, number)]  # three of four tokens repeat


def test_endless_loop_costs_one_and_anything_else_nothing():
    reward = EndlessRepetitionReward(END)
    answers = [LOOP, TEXT + LOOP, [*LOOP, END], TEXT, [*TEXT, END], LOOP + TEXT, LOOP[:60], []]
    assert reward(completion_ids=answers) == [-1, -1, 0, 0, 0, 0, 0, 0]


def test_loop_in_which_something_changes_costs_the_share_that_repeats_unless_it_ended():
    reward = EndlessRepetitionReward(END)
    line = list(range(5, 20))
    numbered = [token for number in range(100, 115) for token in (number, *line)]
    # 30 rounds of 4 tokens: of 120, 3 in each of 29 rounds repeat
    assert reward(completion_ids=[COUNTING]) == [pytest.approx(-29 * 3 / 120, abs=0.02)]
    # 15 rounds of 16 tokens: 15 in each of 14 rounds
    assert reward(completion_ids=[numbered]) == [pytest.approx(-14 * 15 / 240, abs=0.02)]
    assert reward(completion_ids=[[*COUNTING, END], [*numbered, END]]) == [0, 0]


def test_weight_of_inexact_loops_can_be_set():
    full, half, none = (EndlessRepetitionReward(END, inexact=weight) for weight in (1, 0.5, 0))
    answers = [COUNTING, LOOP]
    (graded, exact), (halved, same) = full(completion_ids=answers), half(completion_ids=answers)
    assert (halved, same, exact) == (graded / 2, -1, -1)
    assert none(completion_ids=answers) == [0, -1]
    by_share = EndlessRepetitionReward(END, kind="share")(completion_ids=[TEXT + COUNTING])
    assert by_share == [pytest.approx(graded * 120 / 200, abs=0.01)]
    for weight in (-0.1, 1.5, float("nan")):
        with pytest.raises(ValueError, match="`inexact` is the weight of loops .* from 0 to 1; got"):
            EndlessRepetitionReward(END, inexact=weight)


def test_any_of_several_end_tokens_ends_an_answer():
    reward = EndlessRepetitionReward([3, END])
    assert reward(completion_ids=[[*LOOP, 3], [*LOOP, END], LOOP]) == [0, 0, -1]


def test_share_counts_the_loop_at_the_end_whether_ended_or_not():
    reward = EndlessRepetitionReward(END, kind="share")
    # 80 tokens of text, then 80 of loop: half of the answer
    assert reward(completion_ids=[TEXT + LOOP, [*TEXT, *LOOP, END], LOOP, LOOP + TEXT, TEXT]) == [-0.5, -0.5, -1, 0, 0]


def test_thresholds_of_the_loop_can_be_set():
    short = LOOP[:32]
    assert EndlessRepetitionReward(END)(completion_ids=[short]) == [0]
    assert EndlessRepetitionReward(END, min_tokens=32)(completion_ids=[short]) == [-1]
    assert EndlessRepetitionReward(END, min_tokens=32, min_periods=9)(completion_ids=[short]) == [0]


@pytest.mark.parametrize("nothing", [None, [], [None], "</s>", True])
def test_reward_without_end_tokens_is_refused_and_says_what_to_pass(nothing):
    with pytest.raises(ValueError, match="which token ids end an answer, got .* Pass `tokenizer.eos_token_id`"):
        EndlessRepetitionReward(nothing)


def test_endless_reward_refuses_settings_out_of_range():
    with pytest.raises(ValueError, match="`kind` must be one of 'endless', 'share', got 'any'"):
        EndlessRepetitionReward(END, kind="any")
    with pytest.raises(ValueError, match="`min_periods` of 3 or more"):
        EndlessRepetitionReward(END, min_periods=2)


def test_answer_in_its_language_earns_one_and_a_switch_or_another_language_none():
    reward = LanguageConsistencyReward()
    answers = ["파일을 엽니다", "파일을 打开", "打开文件", "Откройте файл", "Откройте 파일"]
    langs = ["ko", "ko", "ko", "ru", "ru"]
    assert reward(prompts=["?"] * 5, completions=answers, lang=langs) == [1, 0, 0, 1, 0]


def test_only_switches_into_the_target_count_but_a_wrong_language_does_too():
    reward = LanguageConsistencyReward(target_lang="zh")
    answers = ["파일을 저장 файл", "파일을 저장 文件", "Откройте файл", "打开文件", "打开 파일 文件 文件"]
    langs = ["ko", "ko", "ko", "zh", "zh"]
    assert reward(prompts=["?"] * 5, completions=answers, lang=langs) == [1, 0, 0, 1, 1]


def test_what_the_prompt_holds_is_no_switch_in_messages_and_in_text():
    reward = LanguageConsistencyReward()
    answer = "그 단추는 打开 라고 합니다"
    assert reward(prompts=["打开 는?", "?"], completions=[answer] * 2, lang=["ko", "ko"]) == [1, 0]
    asked = [{"role": "user", "content": [{"type": "text", "text": "打开 는?"}, {"type": "image"}]}]
    told = [{"role": "assistant", "content": None}, {"role": "tool", "content": "打开文件"}]
    told += [{"role": "assistant", "content": answer}]
    plain = [{"role": "user", "content": "?"}]
    assert reward(prompts=[asked, plain], completions=[told, told], lang=["ko", "ko"]) == [1, 0]


def test_no_reward_where_the_language_cannot_be_told():
    reward = LanguageConsistencyReward(target_lang="ru")
    answers = ["123", "", "파일을 엽니다", "Відкрийте файл", "打开文件"]
    langs = ["ko", "ko", None, "uk", "uk"]  # Ukrainian and Russian share their script; Chinese is wrong in any case
    assert reward(prompts=["?"] * 5, completions=answers, lang=langs) == [None, None, None, None, 0]


def test_no_reward_for_thinking_that_was_cut():
    cut, whole = "用户想要打开文件", "用户想要打开文件</think>파일을 엽니다"
    question = [{"role": "user", "content": "?"}]
    rows = {"completions": [cut, whole], "lang": ["ko", "ko"]}
    # by the prompt's end, if it is text; by the template, if it is messages
    assert LanguageConsistencyReward()(prompts=["<|user|>?<|assistant|><think>\n"] * 2, **rows) == [None, 1]
    reward = LanguageConsistencyReward()
    assert reward(prompts=[question] * 2, **rows) == [0, 1]
    template = type("Tokenizer", (), {"chat_template": "…", "apply_chat_template": lambda *_, **__: "…<think>\n"})()
    tell_template([print, reward], template, None, {})
    assert reward(prompts=[question] * 2, **rows) == [None, 1]
    assert reward(prompts=["?"] * 2, **rows) == [0, 1]  # text goes past the template
    assert LanguageConsistencyReward(think_opened=True)(prompts=["?"] * 2, **rows) == [None, 1]


def test_names_and_addresses_do_not_make_an_answer_foreign():
    answers = ["请在 iPad 上打开 Google Maps。", "Click Save", "写信给 me@example.com。", "me@example.com"]
    rewards = LanguageConsistencyReward()(prompts=["?"] * 4, completions=answers, lang=["zh"] * 4)
    assert rewards == [1, 0, 1, None]


def test_missing_language_column_is_an_error_that_names_those_there_are():
    given = {"completion_ids": [[1]], "language": ["ko"], "id": [1], "trainer_state": None, "log_metric": print}
    with pytest.raises(ValueError, match="no column 'lang' .* are: language, id. Name the right one by `lang_column`"):
        LanguageConsistencyReward()(prompts=["?"], completions=["파일"], **given)
    assert LanguageConsistencyReward(lang_column="language")(prompts=["?"], completions=["파일"], **given) == [1]


def test_language_reward_refuses_languages_it_cannot_see():
    with pytest.raises(ValueError, match="A switch into 'en' cannot be seen"):
        LanguageConsistencyReward(target_lang="en")
    with pytest.raises(ValueError, match="Unknown language 'xx'"):
        LanguageConsistencyReward(target_lang="xx")
    with pytest.raises(ValueError, match="Unknown language 'Koraen'.*Did you mean 'ko'"):
        LanguageConsistencyReward()(prompts=["?"], completions=["파일"], lang=["Koraen"])


def test_rewards_can_be_pickled_and_are_named_for_the_logs():
    reward = pickle.loads(pickle.dumps(EndlessRepetitionReward([END], kind="share")))
    assert reward(completion_ids=[LOOP]) == [-1]
    assert reward.__name__ == "endless_repetition_reward"
    language = pickle.loads(pickle.dumps(LanguageConsistencyReward(target_lang="zh")))
    assert language(prompts=["?"], completions=["파일"], lang=["ko"]) == [1]
    assert language.__name__ == "language_consistency_reward"


def test_trainer_knows_which_of_them_sees_repetition():
    assert sees_repetition(EndlessRepetitionReward(END))
    assert not sees_repetition(LanguageConsistencyReward())


def test_rewards_need_neither_torch_nor_trl():
    code = "import sae_posttrain.rl.rewards, sys; print(sorted({'torch', 'trl', 'transformers'} & set(sys.modules)))"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "[]"
