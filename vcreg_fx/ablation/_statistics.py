"""Means over seeds, and paired differences to the baseline."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


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


def summarize(values: Sequence[float]) -> Summary:
    """Return mean and standard deviation."""
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
    from scipy.stats import t

    found = summarize([a - b for a, b in zip(values, others, strict=True)])
    if found.count < 2:
        return Difference(found.mean, math.nan, math.nan, found.count)
    quantile = float(t.ppf((1 + confidence) / 2, found.count - 1))
    half = quantile * found.std / math.sqrt(found.count)
    return Difference(found.mean, found.mean - half, found.mean + half, found.count)
