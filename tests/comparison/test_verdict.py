"""The verdict: copies are noise, a cripple is worse, nothing wins inside the spread, few seeds say nothing."""

import math

import numpy as np
import pytest
from scipy import stats

from updetr_d2.comparison.verdict import (
    BETTER,
    NOISE,
    TOO_FEW,
    WORSE,
    Scores,
    judge,
    tukey_margin,
)


def scores(name: str, *ap: float, baseline: str = "base", seconds: float = 1.0) -> Scores:
    by_seed = dict(enumerate(ap, start=1))
    ap50 = {seed: min(100.0, 1.5 * value) for seed, value in by_seed.items()}
    return Scores(name, f"detector {name}", by_seed, ap50, seconds, baseline)


@pytest.mark.parametrize("count", [2, 3, 8])
def test_the_interval_is_that_of_a_paired_t_test(count):
    rng = np.random.default_rng(count)
    a, b = rng.normal(40, 5, (2, count))
    interval = stats.ttest_rel(a, b).confidence_interval(0.95)
    assert 2 * tukey_margin(np.stack([a, b])) == pytest.approx(interval.high - interval.low)
    comparison = judge([scores("base", *b), scores("other", *a)], iterations=1).comparisons[-1]
    assert comparison.first == "other" and comparison.mean == pytest.approx((a - b).mean())
    assert (comparison.low, comparison.high) == pytest.approx((interval.low, interval.high))


def test_the_interval_widens_with_the_number_of_contestants():
    """Of the same noise, so that the best of many is not taken for better by chance."""
    noise = np.array([[1.0, -1, 0], [-1, 1, 0]])
    margins = [tukey_margin(np.concatenate([noise] * pairs)) for pairs in (1, 2, 4)]
    per_noise = [
        margin / math.sqrt((2 * pairs * 2) / ((2 * pairs - 1) * 2))
        for margin, pairs in zip(margins, (1, 2, 4))
    ]
    quantiles = [stats.studentized_range.ppf(0.95, k, 2 * (k - 1)) / math.sqrt(3) for k in (2, 4, 8)]
    assert per_noise == pytest.approx(quantiles)


def test_the_interval_of_several_is_that_of_the_textbook():
    """Montgomery's vascular grafts, four pressures on six batches of resin: MSE 7.33, q(4, 15) = 4.08."""
    grafts = [
        [90.3, 89.2, 98.2, 93.9, 87.4, 97.9],
        [92.5, 89.5, 90.6, 94.7, 87.0, 95.8],
        [85.5, 90.8, 89.6, 86.2, 88.0, 93.4],
        [82.5, 89.5, 85.6, 87.4, 78.9, 90.7],
    ]
    assert tukey_margin(np.array(grafts)) == pytest.approx(4.08 * math.sqrt(7.33 / 6), rel=2e-3)


def test_two_that_differ_by_the_same_with_every_seed_are_not_certain_if_others_vary():
    """Three seeds agree by chance now and then; what all contestants show of the noise says how much it is."""
    noisy = [scores("other", 40, 45, 38), scores("third", 42, 38, 44)]
    verdict = judge([scores("base", 40, 41, 42), scores("better", 42, 43, 44), *noisy], iterations=300)
    comparison = next(c for c in verdict.comparisons if (c.first, c.second) == ("better", "base"))
    assert comparison.mean == pytest.approx(2) and comparison.outcome == NOISE


def test_copies_are_noise():
    verdict = judge([scores("base", 40, 44, 39), scores("copy", 41, 43, 40)], iterations=300)
    assert verdict.kind == "noise" and verdict.use == "base"
    assert "noise" in verdict.sentences[0] and "better" not in " ".join(verdict.sentences)
    exact = judge([scores("base", 40, 44, 39), scores("copy", 40, 44, 39)], iterations=300)
    assert exact.kind == "noise" and exact.use == "base"


def test_a_cripple_is_worse():
    verdict = judge(
        [scores("base", 40, 44, 39), scores("copy", 41, 43, 40), scores("cripple", 3, 1, 2)], iterations=300
    )
    assert verdict.kind == "noise" and verdict.use == "base"
    by_pair = {(c.first, c.second): c.outcome for c in verdict.comparisons}
    assert by_pair["cripple", "base"] == WORSE and by_pair["copy", "base"] == NOISE
    assert any("cripple is worse than detector base" in sentence for sentence in verdict.sentences)
    assert "cripple" not in verdict.sentences[0]


def test_a_clear_winner_is_named_with_its_interval():
    verdict = judge([scores("base", 40, 41, 42), scores("better", 50, 51.5, 51)], iterations=300)
    assert verdict.kind == "use" and verdict.use == "better"
    assert verdict.sentences[0].startswith("Use detector better: AP 50.8")
    assert "interval" in verdict.sentences[0] and "paired over 3 seeds" in verdict.sentences[0]


def test_nothing_is_said_twice():
    """Three contestants, the best of which is better than both others; one of them is its baseline."""
    verdict = judge(
        [scores("base", 40, 41, 42), scores("other", 44, 45.1, 46), scores("best", 50, 51.1, 52)],
        iterations=300,
    )
    told = " ".join(verdict.sentences)
    assert "detector best pays" in told
    assert "detector best is better than detector base" not in told


@pytest.mark.parametrize("seed", range(40))
def test_nothing_wins_inside_the_spread(seed):
    """Contestants with one and the same mean: whoever has won must have an interval without 0."""
    rng = np.random.default_rng(seed)
    field = [scores(name, *rng.normal(40, 3, 3)) for name in ("base", "a", "b", "c")]
    verdict = judge(field, iterations=300)
    if verdict.kind == "use":
        assert all(c.low > 0 for c in verdict.comparisons if c.first == verdict.use)
    for comparison in verdict.comparisons:
        assert (comparison.outcome in (BETTER, WORSE)) == (not comparison.low <= 0 <= comparison.high)


def test_false_winners_are_rare():
    rng = np.random.default_rng(0)
    wins = sum(
        judge([scores(n, *rng.normal(40, 3, 3)) for n in ("base", "a", "b", "c")], iterations=1).kind == "use"
        for _ in range(200)
    )
    assert wins <= 0.05 * 200


def test_a_difference_well_beyond_the_noise_is_found():
    rng = np.random.default_rng(0)
    found = 0
    for _ in range(50):
        seeds = rng.normal(0, 3, 3)  # of the choice of labels, the same for everyone
        field = [scores(n, *(40 + seeds + rng.normal(0, 1, 3))) for n in ("base", "a", "b", "c")]
        verdict = judge([*field, scores("better", *(45 + seeds + rng.normal(0, 1, 3)))], iterations=1)
        found += verdict.use == "better"
    assert found >= 40


@pytest.mark.parametrize("count", [1, 2])
def test_few_seeds_give_no_verdict(count):
    verdict = judge([scores("base", *[40.0] * count), scores("other", *[60.0, 61.0][:count])], iterations=300)
    assert verdict.kind == "too few seeds" and all(c.outcome == TOO_FEW for c in verdict.comparisons)
    assert "Too few seeds" in verdict.sentences[0]


def test_where_nothing_has_learned_nobody_wins():
    verdict = judge([scores("base", 0.1, 0.1, 0.1), scores("other", 2, 2.1, 2.2)], iterations=10)
    assert verdict.kind == "nothing has learned" and verdict.use == ""
    assert "AP50 3.2 after 10 iterations" in verdict.sentences[0]


def test_failed_trainings_are_told_and_not_paired():
    verdict = judge([scores("base", 40, 41, 42, 40), scores("other", math.nan, 50, 51.2, 50)], iterations=300)
    assert verdict.use == "other"
    assert any("1 of 4 trainings failed" in sentence for sentence in verdict.sentences)
    assert verdict.comparisons[0].seeds == 3 and verdict.comparisons[0].mean == pytest.approx(9.4)


def test_one_that_always_fails_takes_the_verdict_from_nobody():
    failing = scores("failing", *[math.nan] * 3)
    verdict = judge([scores("base", 40, 41, 42), scores("other", 50, 51.2, 52), failing], iterations=300)
    assert verdict.use == "other" and verdict.kind == "use"
    assert verdict.sentences[-1] == "detector failing: 3 of 3 trainings failed."


def test_a_contestant_alone_has_nobody_to_beat():
    assert "nothing to compare" in judge([scores("base", 40, 41, 42)], iterations=1).sentences[0]
