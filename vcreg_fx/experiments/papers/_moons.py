"""Two moons with a gap between them, and the network that tells them apart."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn


def moons(count: int, noise: float, gap: float, seed: int) -> tuple[Tensor, Tensor]:
    """Return points, shape (n, 2), and labels 0 (upper moon) and 1, shape (n,).

    Scikit-learn's two moons, of which the upper one is moved up and the lower one down by half of
    the gap. With a gap of more than 0.5, a horizontal line separates them.
    """
    from sklearn.datasets import make_moons

    points, labels = make_moons(count, noise=noise or None, random_state=seed)
    points[:, 1] += np.where(labels == 0, gap / 2, -gap / 2)
    return torch.from_numpy(points).float(), torch.from_numpy(labels).long()


def largest_margin(gap: float) -> float:
    """Return half of the distance between the two moons without noise: no margin is larger."""
    points, labels = moons(4000, 0.0, gap, 0)
    return float(torch.cdist(points[labels == 0], points[labels == 1]).min()) / 2


class Hidden(nn.Module):
    """A hidden layer: linear, norm, ReLU, dropout; the last and the second are off at first."""

    def __init__(self, before: int, width: int) -> None:
        super().__init__()
        self.linear = nn.Linear(before, width)
        self.norm: nn.Module = nn.Identity()
        self.dropout = nn.Dropout(0.0)

    def forward(self, x: Tensor) -> Tensor:
        """Return the representation, shape (n, width)."""
        out: Tensor = self.dropout(torch.relu(self.norm(self.linear(x))))
        return out


class ThreeLayers(nn.Module):
    """A network of three layers for points in the plane.

    **Arguments:**

    - `width`: of its two hidden layers.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.hidden1 = Hidden(2, width)
        self.hidden2 = Hidden(width, width)
        self.head = nn.Linear(width, 2)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits, shape (n, 2)."""
        logits: Tensor = self.head(self.hidden2(self.hidden1(x)))
        return logits

    def regularize(self, dropout: float, batch_norm: bool) -> None:
        """Switch on dropout and batch norm in the hidden layers."""
        for layer in (self.hidden1, self.hidden2):
            layer.dropout.p = dropout
            if batch_norm:
                layer.norm = nn.BatchNorm1d(layer.linear.out_features)
