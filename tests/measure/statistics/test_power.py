import numpy as np
import pytest

from sae_posttrain.measure.statistics.power import design_effect, sample_size


@pytest.mark.parametrize(
    ("before", "needed", "needed_for_90_percent_power", "needed_paired"),
    [
        (0.3, 120, 161, (155, 102, 60)),
        (0.1, 434, 581, (469, 312, 186)),
        (0.03, 1_533, 2_052, (1_567, 1_044, 626)),
        (0.01, 4_673, 6_255, (4_707, 3_137, 1_881)),
        (0.008, 5_850, 7_831, (5_884, 3_922, 2_352)),
        (0.002, 23_510, 31_473, (23_544, 15_695, 9_416)),
    ],
)
def test_prompts_to_see_a_rate_halved(before, needed, needed_for_90_percent_power, needed_paired):
    assert sample_size(before, before / 2) == needed
    assert sample_size(before, before / 2, power=0.9) == needed_for_90_percent_power
    overlaps = (0, 0.5, 0.9)
    assert tuple(sample_size(before, before / 2, paired=True, overlap=o) for o in overlaps) == needed_paired


def test_independent_arms_agree_with_power_prop_test_of_r():
    # its help page: power.prop.test(p1 = .50, p2 = .75, power = .90) gives n = 76.7
    assert sample_size(0.5, 0.75, power=0.9) == 77


def test_power_is_as_promised():
    rng = np.random.default_rng(0)
    n = sample_size(0.03, 0.015)
    before, after = rng.binomial(n, 0.03, 20_000) / n, rng.binomial(n, 0.015, 20_000) / n
    pooled = (before + after) / 2
    z = (before - after) / np.sqrt(2 * pooled * (1 - pooled) / n)
    assert np.mean(np.abs(z) > 1.96) == pytest.approx(0.8, abs=0.02)
    # on the same prompts: 1.5 % of them fail before only, 0.75 % after only or in both
    n = sample_size(0.03, 0.015, paired=True, overlap=0.5)
    b, c, _ = rng.multinomial(n, [0.0225, 0.0075, 0.97], size=20_000).T
    assert np.mean((b - c) ** 2 > 1.96**2 * (b + c)) == pytest.approx(0.8, abs=0.03)


def test_several_answers_to_a_prompt_save_prompts_but_not_as_many():
    # 8 answers of correlation 0.3 weigh as much as 8 / (1 + 7 * 0.3) = 2.58 independent ones: 1,533 / 2.58
    assert sample_size(0.03, 0.015, answers_per_prompt=8, icc=0.3) == 594
    assert sample_size(0.03, 0.015, answers_per_prompt=8, icc=1) == 1_533
    assert sample_size(0.03, 0.015, answers_per_prompt=8, icc=0) == 192
    assert [design_effect(8, icc) for icc in (0.1, 0.3, 0.5)] == pytest.approx([1.7, 3.1, 4.5])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"before": 3, "after": 1.5}, "got 3 before and 1.5 after; 3 % is 0.03"),
        ({"before": float("nan"), "after": 0.1}, "Rates are from 0 to 1"),
        ({"before": 0.1, "after": 0.1}, "Both rates are 0.1"),
        ({"before": 0.1, "after": 0.05, "power": 80}, "got 0.05 and 80"),
        ({"before": 0.1, "after": 0.05, "overlap": 0.5}, "set `paired`"),
        ({"before": 0.1, "after": 0.2, "paired": True, "overlap": 0.9}, "change `overlap`"),
        ({"before": 0.1, "after": 0.05, "paired": True, "overlap": -0.1}, "change `overlap`"),
        ({"before": 0.1, "after": 0.05, "answers_per_prompt": 8}, "need their correlation `icc`"),
        ({"before": 0.1, "after": 0.05, "answers_per_prompt": 8, "icc": 2}, "from 0 to 1, got 2"),
        ({"before": 0.1, "after": 0.05, "icc": 0.3}, "leave it out"),
        ({"before": 0.1, "after": 0.05, "answers_per_prompt": 0}, "1 or more, got 0"),
    ],
)
def test_question_that_makes_no_sense_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        sample_size(**arguments)
