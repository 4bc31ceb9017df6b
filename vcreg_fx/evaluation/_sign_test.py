"""Whether two classifiers differ by more than chance on the same samples."""

from __future__ import annotations

from math import comb


def sign_test(wins: int, losses: int) -> float:
    """Return the two-sided p-value of the exact sign test (McNemar's test for two classifiers).

    **Arguments:**

    - `wins`: samples that only the first classifier gets right.
    - `losses`: samples that only the second gets right.

    **Returns:** the probability of a split at least as uneven if both were equally good.
    """
    count = wins + losses
    tail = sum(comb(count, k) for k in range(min(wins, losses) + 1))
    return min(1.0, float(2 * tail / 2**count))
