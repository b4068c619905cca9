"""The questions and answers that the embedded lab is made of."""

import hashlib
import os
import subprocess
import sys
from collections import Counter, defaultdict
from pathlib import Path

import pytest
import regex

LAB = Path(__file__).parents[1] / "benchmarks" / "lab"
LETTERS = {"en": r"\p{Latin}", "zh": r"\p{Han}", "ko": r"\p{Hangul}", "ru": r"\p{Cyrillic}"}


@pytest.fixture(scope="module")
def lab():
    sys.path.insert(0, str(LAB))
    try:
        import questions
    finally:
        sys.path.remove(str(LAB))
    return questions


@pytest.fixture(scope="module")
def text(lab):
    return sys.modules["topics.text"]


@pytest.fixture(scope="module")
def questions(lab):
    return lab.all_questions()


@pytest.fixture(scope="module")
def by_id(questions):
    grouped = defaultdict(dict)
    for question in questions:
        assert question.lang not in grouped[question.id], question.id
        grouped[question.id][question.lang] = question
    return grouped


def test_every_question_exists_in_all_four_languages(by_id):
    assert 2500 <= len(by_id) <= 6000
    for of_id in by_id.values():
        assert set(of_id) == {"en", "zh", "ko", "ru"}
        assert len({question.kind for question in of_id.values()}) == 1
        assert len({bool(question.check) for question in of_id.values()}) == 1


def test_another_process_makes_the_same_questions(questions):
    code = "import hashlib, questions; print(hashlib.sha256(repr(questions.all_questions()).encode()).hexdigest())"
    environment = os.environ | {"PYTHONHASHSEED": "1", "PYTHONIOENCODING": "utf-8"}
    made = subprocess.run(
        [sys.executable, "-c", code], cwd=LAB, env=environment, capture_output=True, text=True, check=True
    )
    assert made.stdout.strip() == hashlib.sha256(repr(questions).encode()).hexdigest()


def test_kinds_are_many_and_some_are_checkable_and_some_are_lists(by_id):
    english = [of_id["en"] for of_id in by_id.values()]
    assert len({question.kind for question in english}) >= 14
    assert len({question.kind for question in english if question.check}) >= 6
    lists = [question for question in english if question.answer.count("\n") >= 2]
    assert len({question.kind for question in lists}) >= 4
    assert len(lists) >= len(english) / 4


def test_answers_are_short(questions):
    assert all(question.prompt and question.answer for question in questions)
    assert max(len(question.answer) for question in questions) <= 320


@pytest.mark.parametrize("lang", ["en", "zh", "ko", "ru"])
def test_texts_are_written_in_the_letters_of_their_language(questions, lang):
    own = [q for q in questions if q.lang == lang and q.kind != "translate"]
    characters = set("".join(q.prompt + q.answer + q.check for q in own))
    foreign = {c for c in characters if regex.match(r"\p{L}", c) and not regex.match(LETTERS[lang], c)}
    assert not foreign, sorted(q.id for q in own if foreign & set(q.prompt + q.answer))[:5]


def test_no_markup_of_the_templates_is_left(questions):
    for question in questions:
        written = question.prompt + question.answer + question.check
        assert not regex.search(r"[\[\]{}~]|\([가-힣]|  ", written), question


def test_right_answers_pass_their_check_and_prompts_do_not(questions):
    for question in questions:
        if question.check:
            assert question.check.lower() in question.answer.lower(), question
            assert question.check.lower() not in question.prompt.lower(), question


def test_a_prompt_stands_once_in_a_language(questions):
    counts = Counter((question.lang, question.prompt) for question in questions)
    assert max(counts.values()) == 1


def test_swaps_stand_in_their_answer_and_are_chinese(questions):
    for question in questions:
        for word, chinese in question.swaps:
            assert word in question.answer, question
            assert regex.fullmatch(r"\p{Han}+", chinese), question
            # the first occurrence, which is the one that gets replaced, is a word and not a part of one
            start = question.answer.index(word)
            before, after = question.answer[:start][-1:], question.answer[start + len(word) :][:1]
            assert not regex.match(r"\p{L}", before), question
            assert question.lang == "ko" or not regex.match(r"\p{L}", after), question


@pytest.mark.parametrize("lang", ["en", "ko", "ru"])
def test_most_answers_have_words_to_swap(questions, lang):
    nums = [len(question.swaps) for question in questions if question.lang == lang]
    assert sum(num >= 1 for num in nums) >= 0.8 * len(nums)
    assert sum(num >= 2 for num in nums) >= 0.5 * len(nums)


def test_chinese_and_translations_have_nothing_to_swap(questions):
    assert not any(question.swaps for question in questions if question.lang == "zh" or question.kind == "translate")


@pytest.mark.parametrize(
    ("num", "form"),
    [(1, "яблоко"), (2, "яблока"), (5, "яблок"), (11, "яблок"), (14, "яблок"), (21, "яблоко"), (22, "яблока")],
)
def test_russian_nouns_agree_with_their_number(text, num, form):
    assert text.russian_number(num, "яблоко", "яблока", "яблок") == form


@pytest.mark.parametrize(
    ("written", "read"),
    [
        ("사과(을/를)", "사과를"),
        ("책(을/를)", "책을"),
        ("물(으로/로)", "물로"),
        ("손(으로/로)", "손으로"),
        ("차(으로/로)", "차로"),
        ("빵(이에요/예요)", "빵이에요"),
        ("우유(이에요/예요)", "우유예요"),
        ("[꽃~花](과/와) 나무", "[꽃~花]과 나무"),  # 꽃 decides, not the Chinese beside it
        ("'[비~雨]'(이라는/라는) 말", "'[비~雨]'라는 말"),
        ("12(은/는)", "12는"),
        ("13(은/는)", "13은"),
        ("7(으로/로)", "7로"),
    ],
)
def test_korean_particles_follow_the_sound_before_them(text, written, read):
    assert text.with_particles(written) == read


def test_numbers_of_russian_texts_agree(questions):
    last_digits = {"рубль": {1}, "рубля": {2, 3, 4}, "рублей": {0, 5, 6, 7, 8, 9}}
    last_digits |= {"книга": {1}, "книги": {2, 3, 4}, "книг": {0, 5, 6, 7, 8, 9}}
    found = Counter()
    for question in questions:
        if question.lang == "ru":
            for num, word in regex.findall(r"(\d+) (рубл\w+|книг\w*)", question.prompt + " " + question.answer):
                last = 5 if 11 <= int(num) % 100 <= 14 else int(num) % 10
                assert last in last_digits[word], question
                found[word] += 1
    assert {"рубль", "рубля", "рублей", "книги", "книг"} <= set(found)
