"""Numbers of a report: values by seed, means, paired differences."""

from __future__ import annotations

import math
from typing import Any

from ...ablation._statistics import Difference, Summary, paired_difference, summarize


def values_of(row: dict[str, Any], metric: str) -> dict[str, float]:
    """Return seed → value, where it is a finite number."""
    found = {seed: metrics.get(metric) for seed, metrics in row["by_seed"].items()}
    return {seed: v for seed, v in found.items() if v is not None and math.isfinite(v)}


def summary_of(row: dict[str, Any], metric: str) -> Summary:
    """Return mean and standard deviation over seeds."""
    return summarize(list(values_of(row, metric).values()))


def difference_of(row: dict[str, Any], first: dict[str, Any], metric: str) -> Difference:
    """Return the difference to another row, paired by seed, with its 95 % interval."""
    ours, theirs = values_of(row, metric), values_of(first, metric)
    seeds = [seed for seed in ours if seed in theirs]
    return paired_difference([ours[s] for s in seeds], [theirs[s] for s in seeds])
