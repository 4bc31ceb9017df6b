"""The features of each class: moments, how tightly they cluster, whose center is nearest."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class ClassMoments:
    """What is known of the classes that have samples.

    **Attributes:**

    - `classes`: the labels, shape (k,), in increasing order.
    - `counts`: samples of each, shape (k,).
    - `means`: μ_f(S), shape (k, d), float64.
    - `variances`: σ²_f(S), the mean squared distance to the mean, shape (k,), float64.
    """

    classes: Tensor
    counts: Tensor
    means: Tensor
    variances: Tensor


def class_moments(features: Tensor, labels: Tensor) -> ClassMoments:
    """Return the mean and variance of each class that occurs.

    **Arguments:**

    - `features`: shape (n, d).
    - `labels`: whole numbers, shape (n,).

    **Raises:** `ValueError` if the shapes do not fit.
    """
    check_labelled(features, labels)
    classes, index = labels.unique(return_inverse=True)
    z = features.double()
    counts = torch.bincount(index, minlength=len(classes))
    means = z.new_zeros(len(classes), z.shape[1]).index_add_(0, index, z) / counts[:, None]
    distances = (z - means[index]).square().sum(dim=1)
    variances = z.new_zeros(len(classes)).index_add_(0, index, distances) / counts
    return ClassMoments(classes, counts, means, variances)


def check_labelled(features: Tensor, labels: Tensor) -> None:
    """Refuse features and labels that do not belong together.

    **Raises:** `ValueError` that gives both shapes.
    """
    if features.ndim != 2 or labels.shape != features.shape[:1] or len(labels) == 0:
        raise ValueError(
            f"features of shape {tuple(features.shape)} and labels of shape {tuple(labels.shape)} "
            "do not fit: give features of shape (n, d) and n labels, n ≥ 1."
        )
    if labels.is_floating_point():
        raise ValueError(f"labels are {labels.dtype}; give whole numbers, one a class.")


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
