"""The checked-in cases hold every pair of values that can be combined."""

import json

from axes import AXES, all_pairs, pairs_of, reason_against
from pairs import FILE, covering_set

CASES = json.loads(FILE.read_text())


def test_every_pair_is_in_a_case_or_excluded_with_a_reason():
    covered = set().union(*(pairs_of(case) for case in CASES))
    assert [pair for pair in all_pairs() if pair not in covered and not reason_against(dict(pair))] == []


def test_no_case_holds_what_is_excluded():
    for case in CASES:
        assert list(case) == list(AXES)
        assert reason_against(case) is None, case


def test_the_cases_are_those_the_generator_makes():
    assert covering_set() == CASES
