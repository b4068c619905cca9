from itertools import combinations

import numpy as np
import pytest

from sae_posttrain.analysis import coverage, overlap, redundancy, select
from sae_posttrain.analysis.covered import coverage_curve

from .synthetic import PLACES, make_activations

TABLE = np.array([[1, 1, 0, 0, 0], [1, 0, 1, 0, 0], [1, 0, 0, 0, 0], [1, 1, 0, 1, 0]])
"""Four examples; features fire on 4, 2, 1, 1 and 0 of them."""


def expected_by_counting(table: np.ndarray) -> list[float]:
    """`c_n` as defined: the mean over all subsets of n examples of the share of `F(D)` they cover."""
    all_features = (table > 0).any(axis=0).sum()
    return [
        float(np.mean([(table[list(rows)] > 0).any(axis=0).sum() for rows in combinations(range(len(table)), n)]))
        / all_features
        for n in range(1, len(table) + 1)
    ]


def test_curve_is_the_mean_over_all_subsets():
    counts = np.array([4, 2, 1, 1])
    np.testing.assert_allclose(coverage_curve(counts, 4, [1, 2, 3, 4]), expected_by_counting(TABLE))
    random = np.random.default_rng(0).random((7, 12)) < 0.3
    counts = random.sum(axis=0)[random.any(axis=0)]
    np.testing.assert_allclose(coverage_curve(counts, 7, range(1, 8)), expected_by_counting(random))


def test_curve_of_many_examples_stays_within_bounds():
    curve = coverage_curve(np.array([1, 50_000, 99_999]), 100_000, [0, 1, 50_000, 100_000])
    assert curve[0] == pytest.approx(0) and curve[-1] == pytest.approx(1)
    # half of the examples: the rare feature is covered half of the time, the others always
    assert curve[2] == pytest.approx((0.5 + 1 + 1) / 3)


def test_redundancy_is_the_published_sum_without_a_curve():
    read = make_activations({PLACES[0]: TABLE}, groups=["a"] * 4)
    curve = expected_by_counting(TABLE)
    assert redundancy(read)["a"] == pytest.approx(sum(curve) / 4)
    each = coverage(read).sets["a"]
    assert (each.num_examples, each.num_features) == (4, 4)
    assert each.sizes == (1, 2, 3, 4) and each.shares == pytest.approx(curve)
    assert each.mean_share == pytest.approx(sum(curve) / 4)
    assert each.redundancy == pytest.approx(each.mean_share * 4 / 4)
    assert coverage(read).untouched == (4,)


def test_size_corrected_redundancy_does_not_grow_with_copies_of_the_data_as_the_published_one_does():
    rng = np.random.default_rng(0)
    rates = rng.random(60) * 0.4
    small, large = rng.random((40, 60)) < rates, rng.random((400, 60)) < rates
    read = make_activations({PLACES[0]: np.r_[small, large]}, groups=["small"] * 40 + ["large"] * 400)
    sets = coverage(read).sets
    assert sets["large"].redundancy > 5 * sets["small"].redundancy  # it holds N
    assert sets["large"].redundancy_at_equal_size == pytest.approx(sets["small"].redundancy_at_equal_size, rel=0.1)
    assert sets["large"].equal_size == 40
    assert sets["small"].redundancy_at_equal_size == pytest.approx(sets["small"].redundancy)


def test_at_equal_size_a_set_is_compared_by_its_random_subsets():
    """Against sampling: the sums of expectations over random subsets of the smaller size."""
    rng = np.random.default_rng(1)
    large = rng.random((30, 20)) < rng.random(20) * 0.3
    read = make_activations({PLACES[0]: np.r_[large, large[:5]]}, groups=["large"] * 30 + ["small"] * 5)
    sampled = np.mean(
        [
            [(large[order[:n]]).any(axis=0).sum() for n in range(1, 6)]
            for order in (rng.permutation(30) for _ in range(4000))
        ],
        axis=0,
    )
    found = coverage(read).sets["large"]
    assert found.redundancy_at_equal_size == pytest.approx(sampled.sum() / sampled[-1] ** 2, rel=0.02)
    assert found.mean_share_at_equal_size == pytest.approx(sampled.sum() / (5 * sampled[-1]), rel=0.02)


def test_sets_may_be_given_by_name():
    one, other = (make_activations({PLACES[0]: TABLE[rows]}) for rows in ([0, 1], [2, 3]))
    assert list(coverage({"one": one, "other": other}).sets) == ["one", "other"]
    assert coverage({"one": one}).untouched == (3, 4)


def test_overlap_is_directed_and_normalised_by_the_smaller():
    tables = [[1, 1, 1, 1, 0, 0]], [[1, 1, 0, 0, 0, 1]], [[0, 0, 0, 0, 1, 0]]
    sets = {name: make_activations({PLACES[0]: table}) for name, table in zip("abc", tables)}
    found = overlap(sets, num_resamples=100)
    assert found.names == ("a", "b", "c") and found.num_features == (4, 3, 1)
    np.testing.assert_allclose(found.directed, [[1, 2 / 4, 0], [2 / 3, 1, 0], [0, 0, 1]])
    np.testing.assert_allclose(found.minimum, [[1, 2 / 3, 0], [2 / 3, 1, 0], [0, 0, 1]])
    assert found.jaccard[0, 1] == pytest.approx(2 / 5)
    assert found.nearest("a")[0][0] == "b" and found.pairs()[0] == ("a", "b")
    assert sorted(found.order) == [0, 1, 2] and abs(found.order.index(0) - found.order.index(1)) == 1


def test_overlap_has_intervals_around_the_estimate_that_shrink_with_examples():
    rng = np.random.default_rng(0)
    rates = rng.random((2, 80)) * 0.1

    def width(num: int) -> float:
        sets = {name: make_activations({PLACES[0]: rng.random((num, 80)) < rates[i]}) for i, name in enumerate("ab")}
        found = overlap(sets)
        assert found.directed_low[0, 1] <= found.directed[0, 1] <= found.directed_high[0, 1]
        return float(found.directed_high[0, 1] - found.directed_low[0, 1])

    assert 0 < width(300) < width(20)


def test_sets_that_share_what_others_have_not_are_nearest():
    rng = np.random.default_rng(0)
    everywhere = np.full(30, 0.8)  # features of any text: they tell nothing
    own = {name: (np.arange(60) // 20 == i) * 0.3 for i, name in enumerate(["sums", "tales", "maps"])}
    sets = {
        f"{name}-{copy}": make_activations({PLACES[0]: rng.random((60, 90)) < np.r_[everywhere, rates]})
        for name, rates in own.items()
        for copy in (1, 2)
    }
    found = overlap(sets, num_resamples=100)
    for name in own:
        assert found.nearest(f"{name}-1")[0][0] == f"{name}-2"
    assert {frozenset(pair) for pair in found.pairs(3)} == {frozenset((f"{n}-1", f"{n}-2")) for n in own}


def best_by_trying(table: np.ndarray, n: int) -> int:
    return max(int((table[list(rows)] > 0).any(axis=0).sum()) for rows in combinations(range(len(table)), n))


def test_select_takes_what_adds_most_and_keeps_its_bound():
    read = make_activations({PLACES[0]: TABLE})
    chosen = select(read, 2)
    assert chosen.rows.tolist() == [3, 1]  # three features, then the one that is left
    np.testing.assert_allclose(chosen.covered, [3 / 4, 1])
    assert chosen.expected == pytest.approx(expected_by_counting(TABLE)[1])
    rng = np.random.default_rng(0)
    for _ in range(20):
        table = rng.random((9, 25)) < 0.2
        total, best = int(table.any(axis=0).sum()), best_by_trying(table, 3)
        chosen = select(make_activations({PLACES[0]: table}), 3)
        assert (1 - 1 / np.e) * best / total <= chosen.covered[-1] <= best / total <= chosen.bound + 1e-9
        assert chosen.covered[-1] == pytest.approx(table[chosen.rows].any(axis=0).sum() / total)


def plain_greedy(table: np.ndarray, n: int) -> list[int]:
    covered, rows = np.zeros(table.shape[1], dtype=bool), []
    for _ in range(n):
        gains = [-1 if i in rows else int((table[i] & ~covered).sum()) for i in range(len(table))]
        rows.append(int(np.argmax(gains)))
        covered |= table[rows[-1]]
    return rows


def test_lazy_choice_is_that_of_plain_greedy():
    table = np.random.default_rng(3).random((60, 300)) < 0.05
    chosen = select(make_activations({PLACES[0]: table}), 8)
    assert chosen.rows.tolist() == plain_greedy(table, 8)


def test_weights_say_what_a_feature_is_worth():
    read = make_activations({PLACES[0]: TABLE})
    assert select(read, 1, weights=[0, 0, 1, 0, 0]).rows.tolist() == [1]
    assert select(read, 1, weights=[0, 0, 1, 0, 0]).covered[0] == 1
    with pytest.raises(ValueError, match="one number of 0 or more for each of 5 features"):
        select(read, 1, weights=[1, 2])


def test_once_all_is_covered_it_is_covered_again():
    table = np.eye(3)[[0, 1, 2, 0, 1, 2, 0]]
    chosen = select(make_activations({PLACES[0]: table}), 7)
    assert sorted(chosen.rows) == list(range(7))
    assert {tuple(sorted(table[chosen.rows[i : i + 3]].argmax(axis=1))) for i in (0, 3)} == {(0, 1, 2)}
    np.testing.assert_allclose(chosen.covered, [1 / 3, 2 / 3, 1, 1, 1, 1, 1])


@pytest.mark.parametrize("n", [0, 5])
def test_select_refuses_a_number_that_cannot_be(n):
    with pytest.raises(ValueError, match="`n` must be from 1 to the number of examples, 4"):
        select(make_activations({PLACES[0]: TABLE}), n)


def test_sets_without_features_or_partners_are_refused():
    silent = make_activations({PLACES[0]: np.zeros((3, 4))})
    for call in (coverage, lambda read: select(read, 1)):
        with pytest.raises(ValueError, match="fires on"):
            call(silent)
    with pytest.raises(ValueError, match="No feature fires on the set 'a'"):
        overlap({"a": silent, "b": silent})
    with pytest.raises(ValueError, match="two sets or more"):
        overlap(make_activations({PLACES[0]: TABLE}))
    with pytest.raises(ValueError, match="read with different SAEs"):
        coverage({"a": silent, "b": make_activations({PLACES[0]: np.ones((2, 3))})})
