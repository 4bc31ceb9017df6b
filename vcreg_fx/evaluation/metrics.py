"""Measurements as torchmetrics metrics: fed batch by batch, joined over ranks.

They need the package torchmetrics (``pip install "vcreg-fx[evaluation]"``).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

from ..functional import correlations_of, off_diagonal
from . import _classes, _covariance
from ._classes import ClassMoments


class ClassDistanceNormalizedVariance(Metric):
    """VCReg's Eq. 11, averaged over pairs of classes; see `vcreg_fx.evaluation.cdnv`.

    **Arguments:**

    - `features`: d.
    - `classes`: the number of labels, 0 to classes − 1.

    `update` takes features of shape (n, d) and labels of shape (n,). `moments` returns the classes'
    means, which `NearestClassCenterAccuracy` takes as centers.
    """

    is_differentiable = False
    full_state_update = False
    counts: Tensor
    totals: Tensor
    squares: Tensor

    def __init__(self, features: int, classes: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.features, self.classes = features, classes
        zeros = torch.zeros(classes, dtype=torch.float64)
        self.add_state("counts", zeros, dist_reduce_fx="sum")
        self.add_state("totals", zeros.new_zeros(classes, features), dist_reduce_fx="sum")
        self.add_state("squares", zeros.clone(), dist_reduce_fx="sum")

    def update(self, features: Tensor, labels: Tensor) -> None:
        """Add features with their labels.

        **Raises:** `ValueError` if shapes do not fit or a label is out of range.
        """
        _classes.check_labelled(features, labels)
        if labels.min() < 0 or labels.max() >= self.classes:
            raise ValueError(
                f"labels go from {int(labels.min())} to {int(labels.max())}; the metric was made "
                f"for 0 to {self.classes - 1}."
            )
        z = features.detach().double()
        self.counts += torch.bincount(labels, minlength=self.classes)
        self.totals.index_add_(0, labels, z)
        self.squares.index_add_(0, labels, z.square().sum(dim=1))

    def moments(self) -> ClassMoments:
        """Return mean and variance of each class that was added on this rank."""
        seen = self.counts > 0
        counts = self.counts[seen]
        means = self.totals[seen] / counts[:, None]
        variances = (self.squares[seen] / counts - means.square().sum(dim=1)).clamp(min=0)
        return ClassMoments(seen.nonzero()[:, 0], counts, means, variances)

    def compute(self) -> Tensor:
        """Return the average of Eq. 11 over pairs of classes.

        **Raises:** `ValueError` if fewer than two classes have samples.
        """
        return _classes.cdnv_of(self.moments())


class NearestClassCenterAccuracy(Metric):
    """The accuracy of VCReg's Eq. 12; see `vcreg_fx.evaluation.nearest_center_accuracy`.

    **Arguments:**

    - `centers`: the classes' means, as `ClassDistanceNormalizedVariance.moments` or
      `vcreg_fx.evaluation.class_moments` return them.

    `update` takes features of shape (n, d) and labels of shape (n,).
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False
    right: Tensor
    count: Tensor

    def __init__(self, centers: ClassMoments, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.register_buffer("centers", centers.means)
        self.register_buffer("labels", centers.classes)
        self.add_state("right", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("count", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, features: Tensor, labels: Tensor) -> None:
        """Add features with their labels.

        **Raises:** `ValueError` if the shapes do not fit.
        """
        _classes.check_labelled(features, labels)
        predicted = _classes.nearest_of(
            features.detach(), self.get_buffer("centers"), self.get_buffer("labels")
        )
        self.right += (predicted == labels).sum()
        self.count += len(labels)

    def compute(self) -> Tensor:
        """Return the share that is right."""
        return self.right / self.count


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
        spectrum = _covariance.spectrum_of(c)
        return {
            "std": std.mean(),
            "share_below": (std < self.threshold).double().mean(),
            "correlation": correlations.abs().nanmean(),
            "squared_correlation": correlations.square().nanmean(),
            "effective_rank": _covariance.rank_of(spectrum),
            "spectrum": spectrum,
        }
