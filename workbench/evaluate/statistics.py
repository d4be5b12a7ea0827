"""Intervals, paired comparisons and the words for what they show."""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections.abc import Sequence
from typing import Any

from workbench.errors import InputError

LEVEL = 0.05
"""Chance of calling a difference that is none; intervals cover 1 - LEVEL."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Interval:
    """An estimate with the bounds of its interval."""

    estimate: float
    low: float
    high: float


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Spread:
    """Repeated measurements of one value: median with first and third quartile, and how many."""

    median: float
    low: float
    high: float
    count: int


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Paired:
    """Two forms judged on the same prompts.

    Attributes:
        count: Prompts judged under both.
        lost: Right under the first form, wrong under the second.
        won: Wrong under the first form, right under the second.
        difference: Accuracy of the second minus the first, in [-1, 1], with its interval.
        p_value: Exact two-sided McNemar test of "no difference".
    """

    count: int
    lost: int
    won: int
    difference: Interval
    p_value: float

    def as_dict(self) -> dict[str, Any]:
        """Return plain data."""
        return dataclasses.asdict(self)


def wilson(right: int, total: int, *, level: float = LEVEL) -> Interval:
    """Return the Wilson score interval of a share.

    Unlike the normal approximation it stays inside [0, 1] and is not empty at 0 or ``total``.
    Wilson (1927), Probable inference, JASA 22:209-212; recommended for small samples by Brown,
    Cai and DasGupta (2001), Statistical Science 16:101-133.

    Args:
        right: Successes, 0 to ``total``.
        total: Trials, 1 or more.
        level: 0.05 gives the 95 % interval.

    Raises:
        InputError: The counts make no share.
    """
    if total < 1 or not 0 <= right <= total:
        raise InputError(f"{right} right of {total} is no share.")
    z = statistics.NormalDist().inv_cdf(1 - level / 2)
    share = right / total
    scale = 1 + z * z / total
    centre = (share + z * z / (2 * total)) / scale
    half = z / scale * math.sqrt(share * (1 - share) / total + z * z / (4 * total * total))
    low = 0.0 if right == 0 else max(0.0, centre - half)
    high = 1.0 if right == total else min(1.0, centre + half)
    return Interval(estimate=share, low=low, high=high)


def mcnemar(lost: int, won: int) -> float:
    """Return the exact two-sided p-value of McNemar's test from the two discordant counts.

    Under "no difference" each discordant pair falls either way with chance 1/2: twice the smaller
    binomial tail, at most 1. McNemar (1947), Psychometrika 12:153-157; exact form: Fagerland,
    Lydersen and Laake (2013), BMC Medical Research Methodology 13:91.

    Raises:
        InputError: A count is negative.
    """
    if lost < 0 or won < 0:
        raise InputError(f"Discordant counts must be 0 or more, not {lost} and {won}.")
    trials = lost + won
    tail = sum(math.comb(trials, k) for k in range(min(lost, won) + 1))
    return min(1.0, tail / 2 ** (trials - 1)) if trials else 1.0


def bootstrap_difference(
    first: Sequence[float],
    second: Sequence[float],
    *,
    resamples: int = 10_000,
    level: float = LEVEL,
    seed: int = 0,
) -> Interval:
    """Return mean(second) - mean(first) over pairs, with the percentile bootstrap interval.

    Pairs are resampled, so that what both share (an easy or a hard prompt) cancels.
    Efron and Tibshirani (1993), An Introduction to the Bootstrap, chapters 13 and 8.

    Args:
        first: One value a prompt.
        second: The values of the other form, same prompts in the same order.
        resamples: Bootstrap samples.
        level: 0.05 gives the 95 % interval.
        seed: Seed of the resampling; the same seed repeats the interval.

    Raises:
        InputError: The two are empty or of different length.
    """
    import numpy as np

    if len(first) != len(second) or not first:
        raise InputError(
            f"A paired comparison needs the same prompts, not {len(first)} and {len(second)}."
        )
    deltas = np.asarray(second, dtype=np.float64) - np.asarray(first, dtype=np.float64)
    values, counts = np.unique(deltas, return_counts=True)
    generator = np.random.default_rng(seed)
    # Drawing n pairs with replacement draws multinomial counts of the distinct differences.
    drawn = generator.multinomial(len(deltas), counts / len(deltas), size=resamples)
    means = drawn @ values / len(deltas)
    low, high = np.quantile(means, [level / 2, 1 - level / 2])
    return Interval(estimate=float(deltas.mean()), low=float(low), high=float(high))


def paired(first: Sequence[bool], second: Sequence[bool], *, level: float = LEVEL) -> Paired:
    """Compare two forms on the same prompts: exact McNemar and a bootstrap interval.

    Args:
        first: Right or wrong under the first form (the reference).
        second: Right or wrong under the second form, same prompts in the same order.
        level: 0.05 gives the 95 % interval.

    Raises:
        InputError: The two are empty or of different length.
    """
    difference = bootstrap_difference(
        [float(value) for value in first], [float(value) for value in second], level=level
    )
    lost = sum(a and not b for a, b in zip(first, second, strict=True))
    won = sum(b and not a for a, b in zip(first, second, strict=True))
    return Paired(
        count=len(first), lost=lost, won=won, difference=difference, p_value=mcnemar(lost, won)
    )


def holm(p_values: Sequence[float]) -> list[float]:
    """Return p-values adjusted for asking several questions at once, in the given order.

    Holm's step-down procedure: Holm (1979), Scandinavian Journal of Statistics 6:65-70.
    """
    order = sorted(range(len(p_values)), key=lambda index: p_values[index])
    adjusted = [1.0] * len(p_values)
    running = 0.0
    for rank, index in enumerate(order):
        running = max(running, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = running
    return adjusted


def verdict(result: Paired, *, p_value: float | None = None, level: float = LEVEL) -> str:
    """Return in words what a paired comparison shows, without claiming more.

    Args:
        result: The comparison.
        p_value: Adjusted p-value to judge by, where several comparisons were made.
        level: Below it a difference counts as measured.
    """
    judged = result.p_value if p_value is None else p_value
    points = result.difference.estimate * 100
    low, high = result.difference.low * 100, result.difference.high * 100
    if result.lost == result.won == 0:
        return f"no difference measured: all {result.count} prompts judged alike"
    bounds = f"{100 * (1 - level):g} % CI {low:+.1f} to {high:+.1f}, p {_p(judged)}"
    if judged >= level:
        return f"no difference measured ({points:+.1f} points, {bounds})"
    word = "worse" if points < 0 else "better"
    return f"{word} by {abs(points):.1f} points ({bounds})"


def _p(value: float) -> str:
    return f"= {value:.3f}" if value >= 0.001 else "< 0.001"


def spread(values: Sequence[float]) -> Spread | None:
    """Return median and quartiles of repeated measurements; None when there is none.

    Quartiles by linear interpolation between the order statistics (type 7 of Hyndman and Fan
    (1996), The American Statistician 50:361-365), as numpy and R do by default.
    """
    if not values:
        return None
    if len(values) == 1:
        return Spread(median=values[0], low=values[0], high=values[0], count=1)
    low, median, high = statistics.quantiles(values, n=4, method="inclusive")
    return Spread(median=median, low=low, high=high, count=len(values))
