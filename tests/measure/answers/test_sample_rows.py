from collections import Counter

import pytest

from sae_posttrain.measure.answers.sample_rows import stratified

GROUPS = ["en"] * 60 + ["ko"] * 30 + ["ru"] * 9 + ["es"]


@pytest.mark.parametrize(
    ("limit", "drawn"),
    [
        (20, {"en": 12, "ko": 6, "ru": 1, "es": 1}),  # 12, 6, 1.8 and 0.2 of 20
        (10, {"en": 5, "ko": 3, "ru": 1, "es": 1}),  # 6, 3, 0.9 and 0.1: the largest gives one up
        (4, {"en": 1, "ko": 1, "ru": 1, "es": 1}),
        (2, {"en": 1, "ko": 1}),
        (100, {"en": 60, "ko": 30, "ru": 9, "es": 1}),
        (None, {"en": 60, "ko": 30, "ru": 9, "es": 1}),
    ],
)
def test_every_group_has_its_share(limit, drawn):
    rows = stratified(GROUPS, limit, seed=0)
    assert Counter(GROUPS[row] for row in rows) == drawn
    assert rows == sorted(set(rows))


def test_draw_follows_the_seed():
    assert stratified(GROUPS, 20, seed=3) == stratified(GROUPS, 20, seed=3) != stratified(GROUPS, 20, seed=4)
