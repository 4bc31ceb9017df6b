"""Numbers by seed: means, paired differences with their intervals, the sign test."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

BySeed = Mapping[Any, Mapping[str, float]]  # seed → metric → value


@dataclass(frozen=True)
class Summary:
    """Some numbers in short.

    **Attributes:**

    - `mean`: NaN of no numbers.
    - `std`: the sample standard deviation (n − 1); NaN of fewer than two numbers.
    - `count`: how many there are.
    """

    mean: float
    std: float
    count: int


@dataclass(frozen=True)
class Difference:
    """A mean difference of pairs, with its confidence interval.

    **Attributes:**

    - `mean`: of the differences.
    - `low`, `high`: the ends of the interval; NaN of fewer than two pairs.
    - `count`: how many pairs there are.
    """

    mean: float
    low: float
    high: float
    count: int

    @property
    def is_clear(self) -> bool:
        """Whether the interval leaves 0 out, and is one."""
        return self.has_spread and (self.low > 0 or self.high < 0)

    @property
    def has_spread(self) -> bool:
        """Whether the differences are not all equal, of which there is no interval."""
        return self.high - self.low > 1e-9 * abs(self.mean)


def finite_values(by_seed: BySeed, metric: str) -> dict[Any, float]:
    """Return seed → value of a metric, where it is a finite number."""
    found = {seed: metrics.get(metric) for seed, metrics in by_seed.items()}
    return {seed: v for seed, v in found.items() if v is not None and math.isfinite(v)}


def summarize(values: Sequence[float]) -> Summary:
    """Return mean and standard deviation."""
    import numpy as np

    mean = float(np.mean(values)) if len(values) else math.nan
    std = float(np.std(values, ddof=1)) if len(values) > 1 else math.nan
    return Summary(mean, std, len(values))


def paired_difference(
    values: Sequence[float], others: Sequence[float], confidence: float = 0.95
) -> Difference:
    """Return the mean of ``values − others`` with the interval of the paired t-test.

    **Arguments:**

    - `values`, `others`: equally many; the i-th of both belong together (the same seed).
    - `confidence`: how often such an interval covers the true difference, if differences are
      normal.
    """
    found = summarize([a - b for a, b in zip(values, others, strict=True)])
    if found.count < 2:
        return Difference(found.mean, math.nan, math.nan, found.count)
    half = _quantile((1 + confidence) / 2, found.count - 1) * found.std / math.sqrt(found.count)
    return Difference(found.mean, found.mean - half, found.mean + half, found.count)


@lru_cache
def _quantile(share: float, freedom: int) -> float:
    """Return a quantile of the t distribution."""
    from scipy.stats import t

    return float(t.ppf(share, freedom))


def summary_of(by_seed: BySeed, metric: str) -> Summary:
    """Return mean and standard deviation of a metric over seeds."""
    return summarize([*finite_values(by_seed, metric).values()])


def difference_of(by_seed: BySeed, others: BySeed, metric: str) -> Difference:
    """Return the mean difference of a metric over the seeds that both have."""
    values, bases = finite_values(by_seed, metric), finite_values(others, metric)
    seeds = [seed for seed in values if seed in bases]
    return paired_difference([values[s] for s in seeds], [bases[s] for s in seeds])


def wilson_interval(share: float, count: int, confidence: float = 0.95) -> tuple[float, float]:
    """Return Wilson's interval of a probability of which a share of trials was found.

    **Arguments:**

    - `share`: of `count` trials.
    - `confidence`: how often such an interval covers the probability.
    """
    from scipy.stats import binomtest

    found = binomtest(round(share * count), count).proportion_ci(confidence, method="wilson")
    return float(found.low), float(found.high)


def sign_test(wins: int, losses: int) -> float:
    """Return the two-sided p-value of the exact sign test (McNemar's test for two classifiers).

    **Arguments:**

    - `wins`: samples that only the first classifier gets right.
    - `losses`: samples that only the second gets right.

    **Returns:** the probability of a split at least as uneven if both were equally good.
    """
    count = wins + losses
    tail = sum(math.comb(count, k) for k in range(min(wins, losses) + 1))
    return min(1.0, float(2 * tail / 2**count))
