"""Class-distance normalized variance: how tightly classes cluster (VCReg's Eq. 11)."""

from __future__ import annotations

import torch
from torch import Tensor

from ._classes import ClassMoments, class_moments


def cdnv(features: Tensor, labels: Tensor) -> float:
    """Return the class-distance normalized variance, averaged over pairs of classes.

    For classes S₁ and S₂ it is (σ²(S₁) + σ²(S₂)) / (2 ‖µ(S₁) − µ(S₂)‖²), VCReg's Eq. 11, where µ is
    the mean and σ² the mean squared distance to it. Towards 0 the classes collapse to their means.
    Infinite where two classes have one mean.

    **Arguments:**

    - `features`: shape (n, d).
    - `labels`: whole numbers, shape (n,), of two classes or more.

    **Raises:** `ValueError` for one class only, or shapes that do not fit.
    """
    return float(cdnv_of(class_moments(features, labels)))


def cdnv_of(moments: ClassMoments) -> Tensor:
    """Return the average of Eq. 11 over pairs of classes as a 0-d tensor."""
    if len(moments.classes) < 2:
        raise ValueError(
            "Class-distance normalized variance compares classes, and only "
            f"{len(moments.classes)} has samples. Give the features of two classes or more."
        )
    distances = torch.cdist(
        moments.means, moments.means, compute_mode="donot_use_mm_for_euclid_dist"
    ).square()
    spreads = (moments.variances + moments.variances[:, None]) / 2
    first, second = torch.triu_indices(len(spreads), len(spreads), offset=1).to(spreads.device)
    return (spreads[first, second] / distances[first, second]).mean()
