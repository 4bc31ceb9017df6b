"""Correlation between features."""

from __future__ import annotations

import torch
from torch import Tensor

from ..functional import covariance


def correlation_matrix(features: Tensor) -> Tensor:
    """Return C_ij / √(C_ii C_jj) in float64.

    **Arguments:**

    - `features`: shape (n, d).

    **Returns:** shape (d, d); rows and columns of features that never change are NaN.
    """
    c = covariance(features.double())
    std = c.diagonal().sqrt()
    std = torch.where(std > 0, std, torch.nan)
    return (c / std / std[:, None]).clamp(-1, 1)


def mean_correlation(features: Tensor) -> float:
    """Return the mean absolute correlation of two different features, between 0 and 1.

    Features that never change have no correlation, and are left out; NaN if fewer than two remain.

    **Arguments:**

    - `features`: shape (n, d).
    """
    matrix = correlation_matrix(features)
    others = ~torch.eye(len(matrix), dtype=torch.bool, device=matrix.device)
    return float(matrix[others].abs().nanmean())
