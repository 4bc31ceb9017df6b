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
    return correlations_of(covariance(features.double()))


def mean_correlation(features: Tensor) -> float:
    """Return the mean absolute correlation of two different features, between 0 and 1.

    Features that never change have no correlation, and are left out; NaN if fewer than two remain.

    **Arguments:**

    - `features`: shape (n, d).
    """
    return float(off_diagonal(correlation_matrix(features)).abs().nanmean())


def squared_correlation(features: Tensor, other: Tensor | None = None) -> float:
    """Return VICReg's average correlation coefficient: the mean squared correlation (its Eq. 9).

    Eq. 9 averages over the two views that self-supervised learning has; with one set of features
    it is 1/(d(d−1)) Σ_{i≠j} C(Y)²_ij of the standardized features Y. Features that never change are
    left out; NaN if fewer than two remain.

    **Arguments:**

    - `features`: shape (n, d).
    - `other`: the features of a second view, shape (n, d).
    """
    views = [features] if other is None else [features, other]
    means = [off_diagonal(correlation_matrix(view)).square().nanmean() for view in views]
    return float(torch.stack(means).mean())


def correlations_of(c: Tensor) -> Tensor:
    """Return the correlation matrix that belongs to a covariance matrix, shape (d, d)."""
    std = c.diagonal().sqrt()
    std = torch.where(std > 0, std, torch.nan)
    return (c / std / std[:, None]).clamp(-1, 1)


def off_diagonal(matrix: Tensor) -> Tensor:
    """Return the entries beside the diagonal, shape (d(d−1),)."""
    others = ~torch.eye(len(matrix), dtype=torch.bool, device=matrix.device)
    return matrix[others]
