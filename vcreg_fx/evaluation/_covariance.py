"""Spread, correlation and spectrum of features: what their covariance matrix says."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from ..functional import correlations_of, covariance, off_diagonal


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


def covariance_spectrum(features: Tensor) -> Tensor:
    """Return the eigenvalues of the features' covariance matrix, the largest first, in float64.

    **Arguments:**

    - `features`: shape (n, d).

    **Returns:** shape (d,), none below zero.
    """
    return spectrum_of(covariance(features.double()))


def effective_rank(
    features: Tensor, kind: Literal["participation", "entropy"] = "participation"
) -> float:
    """Return in how many equally strong directions the features might vary.

    Between 1 (all features move together) and d (uncorrelated, all equally strong); 0 where
    nothing varies.

    **Arguments:**

    - `features`: shape (n, d).
    - `kind`: ``"participation"`` is (Σλ)² / Σλ², with λ the eigenvalues of the covariance matrix;
      ``"entropy"`` is exp(−Σ p log p) with p = λ / Σλ (Roy and Vetterli 2007, whose p are singular
      values of the data; here, variances).

    **Raises:** `ValueError` for another kind.
    """
    return float(rank_of(covariance_spectrum(features), kind))


def spectrum_of(c: Tensor) -> Tensor:
    """Return the eigenvalues of a covariance matrix, the largest first, none below zero."""
    eigenvalues: Tensor = torch.linalg.eigvalsh(c)
    return eigenvalues.flip(0).clamp(min=0)


def rank_of(spectrum: Tensor, kind: str = "participation") -> Tensor:
    """Return the effective rank of a spectrum as a 0-d tensor; see `effective_rank`."""
    if kind not in {"participation", "entropy"}:
        raise ValueError(f'kind={kind!r} must be "participation" or "entropy".')
    total = spectrum.sum()
    if not total > 0:
        return torch.zeros_like(total)
    p = spectrum / total
    if kind == "participation":
        return p.square().sum().reciprocal()
    entropy: Tensor = torch.special.entr(p).sum()
    return entropy.exp()
