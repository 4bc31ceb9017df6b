"""Measure a trained model on images it has never seen."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..evaluation import (
    covariance_spectrum,
    effective_rank,
    head_features,
    linear_probe,
    mean_correlation,
    share_below,
)
from ._digits import Split


@dataclass(frozen=True)
class Measurements:
    """What was measured on the test images; features are the head's input.

    **Attributes:**

    - `coarse_accuracy`: of the model itself, on the labelling it was trained on.
    - `probe_accuracy`: of a linear classifier of all ten digits, trained on the features of the
      training images.
    - `low_spread`: the share of features with a standard deviation below 1.
    - `correlation`: the mean absolute correlation of two different features.
    - `rank`: the effective rank of the features' covariance.
    - `train_loss`: the classification loss of the last training step.
    - `seconds`: of training.
    - `spectrum`: the eigenvalues of the features' covariance, the largest first.
    - `probe_right`: for which test images the linear classifier was right.
    """

    coarse_accuracy: float
    probe_accuracy: float
    low_spread: float
    correlation: float
    rank: float
    train_loss: float
    seconds: float
    spectrum: Tensor
    probe_right: Tensor

    def to_dict(self) -> dict[str, Any]:
        """Return the numbers as plain data."""
        numbers = {k: v for k, v in vars(self).items() if not isinstance(v, Tensor)}
        return {**numbers, "spectrum": self.spectrum.tolist()}


def measure_classifier(
    model: nn.Module, train: Split, test: Split, train_loss: float, seconds: float
) -> Measurements:
    """Freeze a model and measure it on the test images.

    **Arguments:**

    - `train`: what the model was trained on; the linear probe is trained on the same images.
    - `test`: images that neither was trained on.
    - `train_loss`, `seconds`: of the training, to be kept with the rest.
    """
    model.eval()
    with torch.no_grad():
        logits = torch.cat([model(batch) for batch in test.images.split(256)])
    features = head_features(model, test.images)
    known = head_features(model, train.images)
    probe = linear_probe(known, train.digits, features, test.digits)
    return Measurements(
        coarse_accuracy=float((logits.argmax(dim=1) == test.groups).double().mean()),
        probe_accuracy=probe.accuracy,
        low_spread=share_below(features, 1.0),
        correlation=mean_correlation(features),
        rank=effective_rank(features),
        train_loss=train_loss,
        seconds=seconds,
        spectrum=covariance_spectrum(features),
        probe_right=probe.predictions == test.digits,
    )
