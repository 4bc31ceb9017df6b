"""The nearest class-center classifier (VCReg's Eq. 12)."""

from __future__ import annotations

import torch
from torch import Tensor

from ._classes import check_labelled, class_moments


def nearest_center(train_features: Tensor, train_labels: Tensor, features: Tensor) -> Tensor:
    """Return the class whose mean is nearest: argmin_c ‖f(x) − µ_f(S_c)‖ (VCReg's Eq. 12).

    **Arguments:**

    - `train_features`, `train_labels`: what the centers are computed from, (n, d) and (n,).
    - `features`: shape (m, d).

    **Returns:** labels, shape (m,).
    """
    moments = class_moments(train_features, train_labels)
    return nearest_of(features, moments.means, moments.classes)


def nearest_center_accuracy(
    train_features: Tensor, train_labels: Tensor, features: Tensor, labels: Tensor
) -> float:
    """Return the share of samples whose nearest class center is their own (VCReg, table 6).

    Towards 1 on the data that the model was trained on, the representation has collapsed to its
    class means.

    **Arguments:** as for `nearest_center`, with the true `labels`, shape (m,).

    **Raises:** `ValueError` if the shapes do not fit.
    """
    check_labelled(features, labels)
    predicted = nearest_center(train_features, train_labels, features)
    return float((predicted == labels).double().mean())


def nearest_of(features: Tensor, centers: Tensor, classes: Tensor) -> Tensor:
    """Return the label of the nearest center, shape (m,)."""
    distances = torch.cdist(
        features.to(centers.dtype), centers, compute_mode="donot_use_mm_for_euclid_dist"
    )
    return classes[distances.argmin(dim=1)]
