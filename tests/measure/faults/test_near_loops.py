"""Loops in which a little changes: seen at the end of a cut answer, in whatever way they change, and nowhere else."""

import random

import numpy as np
import pytest

from sae_posttrain import find_loop
from sae_posttrain.measure.faults.near_loops import near_loop_at_end

DRAWN = random.Random(0)
COLON, COMMA, BREAK, EQUALS, PLUS, BAR = range(1, 7)
DIGIT = 20  # tokens 20 to 29
TEXT = np.minimum(np.random.default_rng(0).zipf(1.3, 3000) + 100, 8000).tolist()  # as frequent as words, in no order


def digits(number):
    return [DIGIT + int(digit) for digit in str(number)]


def name():
    """A word that the tokenizer splits into one to three tokens."""
    return [DRAWN.randrange(10_000, 60_000) for _ in range(DRAWN.randint(1, 3))]


def lines(make, num=60):
    return [token for k in range(1, num + 1) for token in make(k)]


SENTENCE = list(range(200, 212))
CHANGING = {
    "counting": lines(lambda k: [*digits(100 + k), COMMA], 90),
    "counting down": lines(lambda k: [*digits(900 - k), COMMA], 90),
    "counting, one token a number": lines(lambda k: [BAR, 9000 + k, COMMA], 90),
    "number before a sentence": lines(lambda k: [*digits(k), COLON, *SENTENCE, BREAK], 20),
    "random number in a sentence": lines(lambda k: [*SENTENCE[:5], *digits(DRAWN.randrange(10**6)), *SENTENCE[5:]]),
    "a name": lines(lambda k: [*name(), *SENTENCE]),
    "two names": lines(lambda k: [*SENTENCE[:3], *name(), *SENTENCE[3:9], *name(), *SENTENCE[9:]]),
    "table rows": lines(lambda k: [BAR, *digits(k), BAR, 300, *digits(k), BAR, *digits(10 * k), BAR, BREAK]),
    "x2 = x1 + 1": lines(lambda k: [400, *digits(k + 1), EQUALS, 400, *digits(k), PLUS, DIGIT + 1, BREAK]),
    "lines that grow": lines(lambda k: [*range(500, 500 + k), BREAK], 24),
    "a word more each time": lines(lambda k: [*SENTENCE[:4], *[600] * k, *SENTENCE[4:], BREAK], 14),
    "two lines in turn": lines(lambda k: [*digits(k), *(SENTENCE if k % 2 else range(220, 230)), BREAK]),
    "long passages with a number": lines(lambda k: [*digits(k), *range(1000, 1150)], 5),
}

STRUCTURE = {
    "yes and no": lines(
        lambda k: [BAR, *name(), BAR, DRAWN.choice([30, 31]), BAR, DRAWN.choice([30, 31]), BAR, BREAK]
    ),
    "unit matrix": lines(lambda k: [*(token for c in range(12) for token in (21 if c == k else 20, BAR)), BREAK], 12),
    "objects": lines(lambda k: [*SENTENCE[:6], *name(), *SENTENCE[6:], *digits(k), BREAK], 30),
    "calendar": lines(lambda k: [*digits(k), 700, COLON, DRAWN.randrange(710, 716), 716, BREAK], 31),
    "chorus": [*TEXT[:100], *[*range(800, 860), *TEXT[100:130]] * 3],
}


@pytest.mark.parametrize("kind", CHANGING)
def test_cut_in_a_loop_that_changes_is_a_near_loop(kind):
    loop = find_loop([*TEXT[:60], *CHANGING[kind]], finished=False)
    assert loop.near_loop and not loop.endless
    assert 0.35 < loop.tail_repetition < 1
    assert loop.near_span > 0.8 * len(CHANGING[kind])


@pytest.mark.parametrize("kind", CHANGING)
def test_near_loop_is_seen_wherever_it_is_cut(kind):
    ids = CHANGING[kind]
    cut = sum(find_loop([*TEXT[:60], *ids[: len(ids) - num]], finished=False).near_loop for num in range(16))
    assert cut == 16


@pytest.mark.parametrize("kind", [*CHANGING, *STRUCTURE])
def test_answer_that_came_to_its_end_is_no_near_loop(kind):
    ids = {**CHANGING, **STRUCTURE}[kind]
    for before in ([], TEXT[:60]):
        loop = find_loop([*before, *ids], finished=True)
        assert not loop.near_loop and (loop.near_span, loop.tail_repetition) == (0, 0)


@pytest.mark.parametrize(
    "run", [[BAR] * 130, [COMMA, BAR] * 80, list(range(40, 60)) * 5], ids=["rule", "zeros", "lines"]
)
def test_exact_run_before_it_does_not_hide_the_loop_at_the_end(run):
    for kind, ids in CHANGING.items():
        loop = find_loop([*run, *TEXT[:5], *ids], finished=False)
        assert loop.loop_any and loop.near_loop, kind


def test_near_loop_that_the_answer_leaves_is_forgotten():
    for kind, ids in CHANGING.items():
        assert not find_loop([*ids, *TEXT[500:560]], finished=False).near_loop, kind


def test_rule_of_dashes_before_the_last_words_is_no_near_loop():
    assert not find_loop([*TEXT[:100], *[BAR] * 200, *TEXT[200:230]], finished=False).near_loop


def test_ordinary_text_that_was_cut_is_no_near_loop():
    rng = np.random.default_rng(1)
    for _ in range(100):
        start, num = rng.integers(0, 1000), rng.integers(1, 2000)
        assert not find_loop(TEXT[start : start + num], finished=False).near_loop


@pytest.mark.parametrize("period", [90, 400, 900])  # the last is longer than the cycles in which something may change
def test_long_passage_counts_from_its_fourth_copy_on(period):
    passage = list(range(20_000, 20_000 + period))
    for copies, near in [(2.9, False), (3.0, False), (3.4, True), (3.9, True)]:
        loop = find_loop([*TEXT[:80], *(passage * 4)[: int(copies * period)]], finished=False)
        assert (loop.near_loop, loop.endless) == (near, False), copies
    assert loop.near_span == int(3.9 * period)
    assert loop.tail_repetition == pytest.approx(2.9 / 3.9, abs=0.01)
    assert find_loop([*TEXT[:80], *passage * 4], finished=False).endless


def test_the_more_changes_the_less_repeats():
    shares = []
    for length in (30, 12, 6, 4, 3):
        ids = lines(lambda k, length=length: [9000 + k, *range(200, 199 + length)], 600 // length)
        loop = find_loop(ids, finished=False)
        assert loop.tail_repetition == pytest.approx((1 - 1 / length) * (1 - length / 600), abs=0.01)
        shares.append(loop.tail_repetition)
    assert shares == sorted(shares, reverse=True)


def test_numbering_of_the_tokens_does_not_matter():
    for ids in CHANGING.values():
        again = np.random.default_rng(2).permutation(70_000)[np.array(ids)]
        assert near_loop_at_end(np.array(ids), 4, 64) == near_loop_at_end(again, 4, 64)


def test_least_near_loop_follows_the_settings():
    ids = lines(lambda k: [9000 + k, *range(200, 207)], 7)  # 56 tokens
    assert not find_loop(ids, finished=False).near_loop
    assert find_loop(ids, finished=False, min_tokens=32).near_loop
    assert not find_loop(ids, finished=False, min_tokens=32, min_periods=9).near_loop
    assert find_loop([*SENTENCE, 1, *SENTENCE, 2, *SENTENCE], finished=False, min_tokens=16, min_periods=3).near_span
