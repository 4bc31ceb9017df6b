"""Spread, correlation and spectrum of features, batch by batch."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

from .._correlation import correlations_of, off_diagonal
from .._spectrum import rank_of, spectrum_of


class FeatureStatistics(Metric):
    """The statistics of features that come batch by batch, on any number of ranks.

    Sums are kept in float64, so that the covariance loses nothing to large means.

    **Arguments:**

    - `features`: d.
    - `threshold`: the standard deviation asked for.

    `update` takes features of shape (n, d). `compute` returns ``std`` (averaged over features),
    ``share_below`` (of features whose standard deviation is below the threshold), ``correlation``
    (mean absolute), ``squared_correlation`` (VICReg's Eq. 9), ``effective_rank``, and ``spectrum``
    (the eigenvalues, shape (d,)); each as the function of that name does.
    """

    is_differentiable = False
    full_state_update = False
    count: Tensor
    total: Tensor
    products: Tensor

    def __init__(self, features: int, threshold: float = 1.0, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.features, self.threshold = features, threshold
        zeros = torch.zeros(features, dtype=torch.float64)
        self.add_state("count", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("total", zeros, dist_reduce_fx="sum")
        self.add_state("products", zeros.new_zeros(features, features), dist_reduce_fx="sum")

    def update(self, features: Tensor) -> None:
        """Add features of shape (n, d).

        **Raises:** `ValueError` for another shape.
        """
        if features.ndim != 2 or features.shape[1] != self.features:
            raise ValueError(
                f"features have shape {tuple(features.shape)}; give (n, {self.features})."
            )
        z = features.detach().double()
        self.count += len(z)
        self.total += z.sum(dim=0)
        self.products += z.T @ z

    def compute(self) -> dict[str, Tensor]:
        """Return the statistics of everything added so far.

        **Raises:** `ValueError` for fewer than two samples.
        """
        if self.count < 2:
            raise ValueError(f"{int(self.count)} samples have no variance; add two or more.")
        mean = self.total / self.count
        c = (self.products - torch.outer(mean, mean) * self.count) / (self.count - 1)
        # What is left of a constant feature is rounding, at most this share of its square.
        noise = 1e-14 * self.count * self.products.diagonal() / (self.count - 1)
        constant = c.diagonal() <= noise
        c[constant] = 0
        c[:, constant] = 0
        std = c.diagonal().sqrt()
        correlations = off_diagonal(correlations_of(c))
        spectrum = spectrum_of(c)
        return {
            "std": std.mean(),
            "share_below": (std < self.threshold).double().mean(),
            "correlation": correlations.abs().nanmean(),
            "squared_correlation": correlations.square().nanmean(),
            "effective_rank": rank_of(spectrum),
            "spectrum": spectrum,
        }
