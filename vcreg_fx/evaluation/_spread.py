"""How far features spread over the samples."""

from __future__ import annotations

from torch import Tensor


def share_below(features: Tensor, threshold: float = 1.0) -> float:
    """Return the share of features whose standard deviation is below a threshold.

    The variance loss asks for a standard deviation of γ = 1 (VCReg's Eq. 3).

    **Arguments:**

    - `features`: shape (n, d).
    - `threshold`: the standard deviation asked for.
    """
    return float((features.double().std(dim=0) < threshold).double().mean())


def mean_std(features: Tensor) -> float:
    """Return the standard deviation of each feature, averaged over features (VICReg's figure 4).

    **Arguments:**

    - `features`: shape (n, d), n ≥ 2.
    """
    return float(features.double().std(dim=0).mean())
