"""VCReg's gradient in closed form (design: d penalty / dz = (z − μ) G).

With C the covariance matrix and ρ' (x) = 2 clamp(x, −δ, δ) the slope of Eq. 10,

    G_ij = 4β / (d(d−1)(n−1)) · clamp(C_ij, −δ, δ)            for i ≠ j
    G_ii = −α / (d(n−1)) / √(C_ii + ε)                        where √(C_ii + ε) < γ, else 0.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .._config import VCRegConfig
from ._products import add_product, moments


@dataclass(frozen=True)
class Statistics:
    """What one backward pass saw at a site: numbers on the device, nothing synchronized.

    **Attributes:**

    - `samples`: n.
    - `variances`: C_ii + ε, shape (d,).
    - `covariance_loss`: Eq. 4 or Eq. 10, a 0-d tensor.
    - `other`: the value of the regularizer that acted instead of VCReg, a 0-d tensor.
    """

    samples: int
    variances: Tensor
    covariance_loss: Tensor
    other: Tensor | None = None


@dataclass(frozen=True)
class Direction:
    """The penalty's gradient as a matrix: d penalty / dz = (z − μ − shift) G.

    The mean is None where nothing is to be subtracted.
    """

    g: Tensor
    mean: Tensor | None
    shift: Tensor | None
    statistics: Statistics


def direction(
    h: Tensor, axis: int, mean: Tensor | None, alpha: Tensor, beta: Tensor, config: VCRegConfig
) -> Direction:
    """Return the gradient of the penalty of Eq. 5 as a matrix.

    **Arguments:**

    - `h`: the activation, its channels at `axis`, with n ≥ 2 samples.
    - `mean`: the batch mean, shape (d,), or None if `h` has been demeaned.
    - `alpha`, `beta`: 0-d tensors.
    - `config`: γ, ε, δ and the convention.
    """
    d = h.shape[axis]
    n = h.numel() // d
    if config.convention == "algorithm1":
        return _as_printed(h, axis, alpha, beta, config)
    c, total = moments(h, axis, mean)
    shift = total / n  # what rounding left of the mean
    c.sub_(torch.outer(shift, total)).div_(n - 1)
    variances = c.diagonal() + config.eps
    slope = torch.where(variances < config.gamma**2, variances.rsqrt(), 0)
    clamped = c if config.delta is None else c.clamp(-config.delta, config.delta)
    covariance_loss = _off_diagonal_loss(c, clamped)
    g = clamped * (beta * (4 / max(d * (d - 1), 1) / (n - 1)))
    g.diagonal().copy_(slope * (alpha * (-1 / d / (n - 1))))
    return Direction(g, mean, shift, Statistics(n, variances, covariance_loss))


def _as_printed(
    h: Tensor, axis: int, alpha: Tensor, beta: Tensor, config: VCRegConfig
) -> Direction:
    """Algorithm 1 of Appendix B: no centring, no δ, and no 1/(n−1) in the covariance term."""
    d = h.shape[axis]
    n = h.numel() // d
    c = moments(h, axis, None)[0].div_(n - 1)
    variances = c.diagonal() + config.eps
    slope = torch.where(variances < config.gamma**2, variances.rsqrt(), 0)
    covariance_loss = _off_diagonal_loss(c, c)
    g = c * (beta * (4 / max(d * (d - 1), 1)))
    g.diagonal().copy_(slope * (alpha * (-1 / d / (n - 1))))
    return Direction(g, None, None, Statistics(n, variances, covariance_loss))


def apply_direction(
    grad: Tensor, h: Tensor, axis: int, found: Direction, scale: Tensor | None
) -> Tensor:
    """Return ``grad + scale · d penalty / dh`` as a new tensor."""
    g = found.g if scale is None else found.g * scale
    return add_product(grad, h, axis, found.mean, found.shift, g)


def _off_diagonal_loss(c: Tensor, clamped: Tensor) -> Tensor:
    """Return Σ_{i≠j} ρ(C_ij) / (d(d−1)), by ρ(x) = 2 x k − k² with k = clamp(x, −δ, δ)."""
    d = c.shape[0]
    flat, k = c.reshape(-1), clamped.reshape(-1)
    total = 2 * torch.dot(flat, k) - torch.dot(k, k)
    diagonal, k = c.diagonal(), clamped.diagonal()
    total = total - (2 * torch.dot(diagonal, k) - torch.dot(k, k))
    return total / max(d * (d - 1), 1)
