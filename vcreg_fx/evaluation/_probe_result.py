"""What a probe found."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from ._classes import check_labelled


@dataclass(frozen=True)
class ProbeResult:
    """What a probe of frozen features found.

    **Attributes:**

    - `predictions`: labels of the test samples, shape (m,).
    - `accuracy`: the share of them that is right.
    - `details`: numbers that the kind of probe adds, such as the strength of regularization.
    """

    predictions: Tensor = field(repr=False)
    accuracy: float
    details: dict[str, float] = field(default_factory=dict)

    @classmethod
    def of(cls, predictions: Tensor, labels: Tensor, **details: float) -> ProbeResult:
        """Return the result of comparing predictions with the true labels."""
        right = predictions.cpu() == labels.cpu()
        return cls(predictions, float(right.double().mean()), details)


def check_probe(
    train_features: Tensor, train_labels: Tensor, features: Tensor, labels: Tensor
) -> None:
    """Refuse what a probe cannot be trained or tested on.

    **Raises:** `ValueError` with the shapes or the values that do not fit.
    """
    check_labelled(train_features, train_labels)
    check_labelled(features, labels)
    if train_features.shape[1] != features.shape[1]:
        raise ValueError(
            f"The probe is trained on {train_features.shape[1]} features and tested on "
            f"{features.shape[1]}; extract both at the same site."
        )
    if len(train_labels.unique()) < 2:
        raise ValueError("The training labels have one class only; a probe needs two.")
    for name, values in (("train_features", train_features), ("features", features)):
        if not bool(torch.isfinite(values).all()):
            raise ValueError(f"{name} holds NaN or infinite values: the model has diverged.")
