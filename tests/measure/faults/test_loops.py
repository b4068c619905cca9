import random
import subprocess
import sys
import time

import numpy as np
import pytest

from sae_posttrain import find_loop


def prose(num_tokens, seed=0):
    """Tokens as frequent as words are, in no order: nothing longer than a few of them comes twice."""
    return np.minimum(np.random.default_rng(seed).zipf(1.3, num_tokens), 8000).tolist()


def lines(num_lines, template, vary):
    """One template over and over, with `vary` new tokens in the middle of each line."""
    half = len(template) // 2
    return [
        token
        for i in range(num_lines)
        for token in [*template[:half], *(10_000 + vary * i + j for j in range(vary)), *template[half:]]
    ]


ORDINARY = {
    "empty": [],
    "one token": [5],
    "prose": prose(800),
    "table": lines(40, template=[1, 2, 1, 3], vary=8),  # | name | value | value |
    "list": lines(30, template=[7, 8], vary=14),
    "rule of 40 tokens": [*prose(300), *[9] * 40, *prose(300, seed=1)],
    "rule of 40 tokens at the end": [*prose(300), *[9] * 40],
    "chorus three times": [*prose(100), *prose(60, seed=1) * 3],
    "chorus three times in between": [*prose(100), *prose(60, seed=1) * 3, *prose(200, seed=2)],
    "four short sentences": [*prose(200), *[11, 12, 13, 14, 15] * 4],
}

# tokens, then onset, period and span
LOOPING = {
    "period 37": ([*prose(200), *list(range(50_000, 50_037)) * 7], 200, 37, 37 * 7),
    "single token": ([*prose(200), *[50_000] * 70], 200, 1, 70),
    "period 400, four times": ([*prose(100), *[token + 50_000 for token in prose(400, seed=1)] * 4], 100, 400, 1600),
    "last cycle cut": ([*prose(100), *(list(range(50_000, 50_030)) * 5)[:-11]], 100, 30, 139),
    "all of it": (list(range(20)) * 4, 0, 20, 80),
}


@pytest.mark.parametrize("name", ORDINARY)
def test_ordinary_repetition_is_no_loop(name):
    for finished in (True, False):
        loop = find_loop(ORDINARY[name], finished=finished)
        assert not (loop.endless or loop.loop_tail or loop.loop_any or loop.near_loop)
        assert (loop.onset, loop.period, loop.span, loop.share) == (None, None, 0, 0.0)
        assert loop.num_tokens == len(ORDINARY[name])


@pytest.mark.parametrize("name", LOOPING)
def test_loop_at_the_end_of_a_cut_answer_is_endless(name):
    ids, onset, period, span = LOOPING[name]
    loop = find_loop(ids, finished=False)
    assert loop.endless and loop.loop_tail and loop.loop_any and not loop.near_loop
    assert loop.near_span == 0 and loop.tail_repetition == (span - period) / span
    assert (loop.onset, loop.period, loop.span) == (onset, period, span)
    assert loop.onset + loop.span == len(ids)
    assert loop.share == span / len(ids)


@pytest.mark.parametrize("name", LOOPING)
def test_loop_that_ends_with_an_end_token_is_not_endless(name):
    ids, onset, _, _ = LOOPING[name]
    loop = find_loop(ids, finished=True)
    assert loop.loop_tail and loop.loop_any and loop.onset == onset
    assert not loop.endless


@pytest.mark.parametrize("name", LOOPING)
@pytest.mark.parametrize("num_after", [1, 200])
def test_loop_that_the_answer_leaves_is_found_but_not_endless(name, num_after):
    ids, onset, period, span = LOOPING[name]
    loop = find_loop([*ids, *range(90_000, 90_000 + num_after)], finished=False)
    assert loop.loop_any and not loop.loop_tail and not loop.endless
    assert loop.near_loop == (num_after == 1)  # one strange token is a change within a loop
    assert (loop.onset, loop.period, loop.span) == (onset, period, span)


def test_least_loop_is_four_periods_and_sixty_four_tokens():
    before = prose(100)
    for period, least in [(1, 64), (2, 64), (15, 64), (16, 64), (17, 68), (100, 400), (600, 2400)]:
        cycle = list(range(50_000, 50_000 + period))
        ids = [*before, *(cycle * 70)[:least]]
        assert find_loop(ids, finished=False).endless, period
        assert not find_loop(ids[:-1], finished=False).loop_tail, period
        # the same within an answer
        assert find_loop([*ids, 1, 2, 3], finished=False).loop_any, period
        assert not find_loop([*ids[:-1], 1, 2, 3], finished=False).loop_any, period


def test_least_loop_can_be_set():
    ids = [*prose(50), *[1, 2, 3] * 11]
    assert not find_loop(ids, finished=False).endless
    assert find_loop(ids, finished=False, min_tokens=32).span == 33
    assert not find_loop([*prose(50), *range(40), *range(40), *range(40)], finished=False).endless
    assert find_loop([*prose(50), *range(40), *range(40), *range(40)], finished=False, min_periods=3).period == 40


def test_longest_loop_is_reported_and_the_one_at_the_end_before_it():
    short, long = list(range(100, 120)) * 5, list(range(200, 230)) * 9
    assert find_loop([*short, 1, 2, *long, 1, 2], finished=False).period == 30
    assert find_loop([*long, 1, 2, *short, 1, 2], finished=False).period == 30
    ended_short = find_loop([*long, 1, 2, *short], finished=False)
    assert (ended_short.period, ended_short.onset, ended_short.span) == (20, 272, 100)


def test_detector_agrees_with_the_definition():
    rng = random.Random(0)
    num_loops = 0
    for _ in range(1500):
        letters = rng.choice([1, 2, 2, 3, 5])
        ids = []
        while len(ids) < 40:
            piece = [rng.randrange(letters) for _ in range(rng.randint(1, 7))]
            ids += piece * rng.choice([1, 1, 2, 3, 4, 5])
        ids = ids[: rng.randint(0, 40)]
        min_periods, min_tokens = rng.randint(3, 5), rng.choice([1, 5, 8, 12, 16])
        expected_tail, expected = longest_loops(ids, min_periods, min_tokens)
        loop = find_loop(ids, finished=False, min_periods=min_periods, min_tokens=min_tokens)
        assert (loop.loop_tail, loop.loop_any) == (expected_tail > 0, expected > 0), (ids, min_periods, min_tokens)
        assert loop.span == (expected_tail or expected)
        if loop.loop_any:
            num_loops += 1
            end = loop.onset + loop.span
            assert all(ids[i] == ids[i - loop.period] for i in range(loop.onset + loop.period, end))
            assert loop.span >= max(min_periods * loop.period, min_tokens)
    assert 300 < num_loops < 1200


def longest_loops(ids, min_periods, min_tokens):
    """Spans of the longest loop at the end and of the longest anywhere, by trying every onset and period."""
    tail = anywhere = 0
    for onset in range(len(ids)):
        for period in range(1, (len(ids) - onset) // min_periods + 1):
            end = onset + period
            while end < len(ids) and ids[end] == ids[end - period]:
                end += 1
            span = end - onset
            if span >= max(min_periods * period, min_tokens):
                anywhere = max(anywhere, span)
                tail = max(tail, span if end == len(ids) else 0)
    return tail, anywhere


@pytest.mark.parametrize(
    "make",
    [
        prose,
        lambda num: [7] * num,
        lambda num: [*[7] * (num - 1), 8],
        lambda num: [*(list(range(37)) * num)[: num - 9], *range(50, 59)],
        lambda num: [*(prose(num // 5) * 5), 9000],
        lambda num: np.random.default_rng(0).integers(0, 2, num).tolist(),
        lambda num: [int(bit) for bit in fibonacci_word(num)],
        lambda num: lines(num // 16, template=list(range(15)), vary=1),
        lambda num: lines(num // 600, template=prose(598), vary=2),
    ],
    ids=[
        "prose",
        "one token",
        "one token, left",
        "loop, left",
        "long period, left",
        "two tokens",
        "Fibonacci word",
        "counter",
        "counter in long lines",
    ],
)
def test_time_grows_like_the_answer(make):
    # eight times the tokens: linear is 8, the sorting makes it 10 to 20, comparing all pairs would make it 64
    assert best_time(make(32_768)) < 40 * best_time(make(4096))


def best_time(ids):
    seconds = []
    for _ in range(5):
        started = time.process_time()
        find_loop(ids, finished=False)
        seconds.append(time.process_time() - started)
    return min(seconds)


def fibonacci_word(num):
    """The text with the most repetition that has no long loop."""
    last, word = "0", "01"
    while len(word) < num:
        last, word = word, word + last
    return word[:num]


@pytest.mark.parametrize(
    "ids", [np.arange(300, dtype=np.uint16) % 20, tuple(range(20)) * 15], ids=["array of small integers", "tuple"]
)
def test_tokens_can_be_any_sequence_of_integers(ids):
    assert find_loop(ids, finished=False).period == 20


def test_tokens_can_be_a_tensor():
    torch = pytest.importorskip("torch")
    assert find_loop(torch.arange(300) % 20, finished=False).period == 20


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        ("a text", r"got shape \(\) and type <U6\. Tokenize text first"),
        ([[1, 2], [3, 4]], r"got shape \(2, 2\)"),
        ([0.5, 1.0], "type float64"),
        (["a", "b"], "Tokenize text first"),
    ],
)
def test_what_is_not_the_tokens_of_one_answer_is_refused(ids, message):
    with pytest.raises(ValueError, match=message):
        find_loop(ids, finished=False)


@pytest.mark.parametrize("settings", [{"min_periods": 2}, {"min_tokens": 0}])
def test_minimum_that_every_text_meets_is_refused(settings):
    with pytest.raises(ValueError, match="`min_periods` of 3 or more and `min_tokens` of 1 or more, got"):
        find_loop([1, 2, 3], finished=False, **settings)


def test_detector_loads_no_torch():
    code = "import sys, sae_posttrain; sae_posttrain.find_loop([1], finished=True); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
