"""The spectrum of the covariance matrix: in how many directions features vary."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from ..functional import covariance


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
