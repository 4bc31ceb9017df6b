"""The features of each class: count, mean, variance."""

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
