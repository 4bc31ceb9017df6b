"""The spectrum of the covariance matrix: in how many directions features vary."""

from __future__ import annotations

import torch
from torch import Tensor

from ..functional import covariance


def covariance_spectrum(features: Tensor) -> Tensor:
    """Return the eigenvalues of the features' covariance matrix, the largest first, in float64.

    **Arguments:**

    - `features`: shape (n, d).

    **Returns:** shape (d,), none below zero.
    """
    eigenvalues: Tensor = torch.linalg.eigvalsh(covariance(features.double()))
    return eigenvalues.flip(0).clamp(min=0)


def effective_rank(features: Tensor) -> float:
    """Return (Σλ)² / Σλ², the number of equally strong directions that vary as much.

    Between 1 (all features move together) and d (uncorrelated, all equally strong); 0 where
    nothing varies.

    **Arguments:**

    - `features`: shape (n, d).
    """
    spectrum = covariance_spectrum(features)
    squares = float(spectrum.square().sum())
    return float(spectrum.sum()) ** 2 / squares if squares > 0 else 0.0
