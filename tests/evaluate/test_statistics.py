"""Statistics against published figures and against plain counting."""

from __future__ import annotations

import itertools
import random

import pytest

from workbench.errors import InputError
from workbench.evaluate.statistics import (
    bootstrap_difference,
    holm,
    mcnemar,
    paired,
    spread,
    verdict,
    wilson,
)


@pytest.mark.parametrize(
    ("right", "total", "low", "high"),
    [  # Newcombe (1998), Statistics in Medicine 17:857-872, table I, method 3
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0000, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_wilson_gives_the_published_intervals(
    right: int, total: int, low: float, high: float
) -> None:
    interval = wilson(right, total)
    assert interval.estimate == right / total
    assert interval.low == pytest.approx(low, abs=5e-5)
    assert interval.high == pytest.approx(high, abs=5e-5)
    mirrored = wilson(total - right, total)
    assert mirrored.low == pytest.approx(1 - interval.high)


def test_wilson_of_all_right_is_not_certain() -> None:
    interval = wilson(20, 20)
    assert interval.high == 1.0
    assert interval.low == pytest.approx(1 - 0.1611, abs=5e-5)
    narrower = wilson(20, 20, level=0.5)
    assert narrower.low > interval.low


def test_wilson_refuses_what_is_no_share() -> None:
    for right, total in ((1, 0), (3, 2), (-1, 2)):
        with pytest.raises(InputError, match="no share"):
            wilson(right, total)


def enumerated(lost: int, won: int) -> float:
    """Return the exact p-value by listing every way in which the discordant pairs can fall."""
    trials = lost + won
    seen = abs(lost - won)
    outcomes = list(itertools.product((0, 1), repeat=trials))
    extreme = sum(abs(trials - 2 * sum(outcome)) >= seen for outcome in outcomes)
    return extreme / len(outcomes)


@pytest.mark.parametrize(("lost", "won"), [(0, 0), (1, 0), (1, 5), (3, 3), (7, 2), (0, 12)])
def test_mcnemar_is_what_counting_every_outcome_gives(lost: int, won: int) -> None:
    assert mcnemar(lost, won) == pytest.approx(enumerated(lost, won))
    assert mcnemar(lost, won) == mcnemar(won, lost)


def test_mcnemar_gives_the_published_p_value() -> None:
    # Airway responsiveness before and after transplantation: Fagerland et al. (2013), table 3.
    assert mcnemar(1, 7) == pytest.approx(0.0703, abs=5e-5)
    # Approval of a prime minister in two polls: Agresti, Categorical Data Analysis, table 10.1.
    assert mcnemar(150, 86) == pytest.approx(3.7e-5, rel=0.01)
    with pytest.raises(InputError):
        mcnemar(-1, 2)


def test_the_bootstrap_agrees_with_plain_resampling_of_pairs() -> None:
    generator = random.Random(1)
    first = [float(generator.random() < 0.9) for _ in range(120)]
    second = [value if generator.random() < 0.9 else 1 - value for value in first]
    means = []
    for _ in range(4000):
        picks = [generator.randrange(120) for _ in range(120)]
        means.append(sum(second[i] - first[i] for i in picks) / 120)
    means.sort()
    interval = bootstrap_difference(first, second)
    assert interval.estimate == pytest.approx((sum(second) - sum(first)) / 120)
    assert interval.low == pytest.approx(means[100], abs=0.012)
    assert interval.high == pytest.approx(means[3900], abs=0.012)
    assert bootstrap_difference(first, second) == interval


def test_the_bootstrap_takes_any_values_and_refuses_unequal_lists() -> None:
    same = bootstrap_difference([1.0, 2.0, 7.5], [3.0, 4.0, 9.5])
    assert (same.low, same.estimate, same.high) == (2.0, 2.0, 2.0)
    with pytest.raises(InputError, match="3 and 2"):
        bootstrap_difference([1, 2, 3], [1, 2])
    with pytest.raises(InputError):
        bootstrap_difference([], [])


def test_holm_gives_the_known_adjustment() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.6, 0.7]) == [1.0, 1.0]
    assert holm([]) == []


def test_verdicts_say_what_was_measured_and_no_more() -> None:
    right, wrong = [True], [False]
    alike = paired(right * 30 + wrong * 10, right * 30 + wrong * 10)
    assert verdict(alike) == "no difference measured: all 40 prompts judged alike"
    small = paired(right * 40, right * 38 + wrong * 2)
    assert (small.lost, small.won, small.p_value) == (2, 0, 0.5)
    assert verdict(small).startswith("no difference measured (-5.0 points, 95 % CI -")
    worse = paired(right * 40, right * 30 + wrong * 10)
    assert verdict(worse).startswith("worse by 25.0 points (95 % CI -")
    assert "p = 0.002" in verdict(worse)
    assert verdict(worse, p_value=0.2).startswith("no difference measured")
    better = paired(right * 10 + wrong * 30, right * 40)
    assert verdict(better).startswith("better by 75.0 points")
    assert "p < 0.001" in verdict(better)


def test_spread_is_median_and_quartiles() -> None:
    result = spread([4, 1, 3, 2])
    assert result is not None
    assert (result.low, result.median, result.high, result.count) == (1.75, 2.5, 3.25, 4)
    one = spread([5.0])
    assert one is not None
    assert (one.low, one.median, one.high) == (5.0, 5.0, 5.0)
    assert spread([]) is None
