"""VCReg's gradient in closed form (design: d penalty / dz = (z − μ) G).

With C the covariance matrix and ρ' (x) = 2 clamp(x, −δ, δ) the slope of Eq. 10,

    G_ij = 4β / (d(d−1)(n−1)) · clamp(C_ij, −δ, δ)            for i ≠ j
    G_ii = −α / (d(n−1)) / √(C_ii + ε)                        where √(C_ii + ε) < γ, else 0.

With ``sync``, n, μ and C are those of the batches of all ranks, and G is multiplied by the number
of ranks, because DistributedDataParallel divides the sum of their gradients by it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from placement_rules import Layout

from .._config import VCRegConfig
from .._distributed import group_of, group_size, group_sum
from ._products import add_product, moments, working_dtype


class Statistics(NamedTuple):
    """What one step saw at a site: numbers on the device, nothing synchronized.

    **Attributes:**

    - `variances`: C_ii + ε, shape (d,).
    - `covariance_loss`: Eq. 4 or Eq. 10; the value of a regularizer that acts instead of VCReg. A
      0-d tensor.
    - `samples`: n, a number or a 0-d tensor.
    """

    variances: Tensor
    covariance_loss: Tensor
    samples: int | Tensor


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
    if config.convention == "algorithm1":
        return _as_printed(h, axis, alpha, beta, config)
    c, total, n, ranks = _moments_of_all(h, axis, mean, config)
    shift = total / n  # what rounding left of the mean
    c.sub_(torch.outer(shift, total)).div_(n - 1)
    variances = c.diagonal() + config.eps
    slope = torch.where(variances < config.gamma**2, variances.rsqrt(), 0)
    clamped = c if config.delta is None else c.clamp(-config.delta, config.delta)
    covariance_loss = _off_diagonal_loss(c, clamped)
    g = clamped * (beta * (4 * ranks / max(d * (d - 1), 1) / (n - 1)))
    g.diagonal().copy_(slope * (alpha * (-ranks / d / (n - 1))))
    return Direction(g, mean, shift, Statistics(variances, covariance_loss, n))


def _as_printed(
    h: Tensor, axis: int, alpha: Tensor, beta: Tensor, config: VCRegConfig
) -> Direction:
    """Algorithm 1 of Appendix B: no centring, no δ, and no 1/(n−1) in the covariance term."""
    d = h.shape[axis]
    c, _, n, ranks = _moments_of_all(h, axis, None, config)
    c.div_(n - 1)
    variances = c.diagonal() + config.eps
    slope = torch.where(variances < config.gamma**2, variances.rsqrt(), 0)
    covariance_loss = _off_diagonal_loss(c, c)
    g = c * (beta * (4 * ranks / max(d * (d - 1), 1)))
    g.diagonal().copy_(slope * (alpha * (-ranks / d / (n - 1))))
    return Direction(g, None, None, Statistics(variances, covariance_loss, n))


def _moments_of_all(
    h: Tensor, axis: int, mean: Tensor | None, config: VCRegConfig
) -> tuple[Tensor, Tensor, int | Tensor, int]:
    """Return Σ x xᵀ, Σ x, n over all ranks, and the number of ranks."""
    c, total = moments(h, axis, mean)
    d = h.shape[axis]
    n = h.numel() // d
    group = group_of(config.sync)
    if group is None:
        return c, total, n, 1
    summed = group_sum(torch.cat([c.flatten(), total, total.new_full((1,), n)]), group)
    return summed[: d * d].view(d, d), summed[d * d : -1], summed[-1], group_size(group)


def apply_direction(
    grad: Tensor, h: Tensor, axis: int, found: Direction, scale: Tensor | None
) -> Tensor:
    """Return ``grad + scale · d penalty / dh`` as a new tensor."""
    g = found.g if scale is None else found.g * scale
    return add_product(grad, h, axis, found.mean, found.shift, g)


def penalty_gradient(
    h: Tensor, layout: Layout, config: VCRegConfig
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradient of the penalty at a site, with what it was made from.

    **Arguments:**

    - `h`: the activation, detached.
    - `layout`: its layout.
    - `config`: the coefficients and the convention.

    **Returns:** the gradient, of the shape of `h`; C_ii + ε, shape (d,); and ℓ_cov.
    """
    mean = h.mean(layout.sample_axes, dtype=working_dtype(h))
    alpha, beta = (
        torch.tensor(value, dtype=torch.float64) for value in (config.alpha, config.beta)
    )
    found = direction(h, layout.axis, mean, alpha, beta, config)
    zero = torch.zeros((), dtype=mean.dtype, device=h.device).expand(h.shape)
    gradient = apply_direction(zero, h, layout.axis, found, None)
    return gradient, found.statistics.variances, found.statistics.covariance_loss


def _off_diagonal_loss(c: Tensor, clamped: Tensor) -> Tensor:
    """Return Σ_{i≠j} ρ(C_ij) / (d(d−1)), by ρ(x) = 2 x k − k² with k = clamp(x, −δ, δ)."""
    d = c.shape[0]
    flat, k = c.reshape(-1), clamped.reshape(-1)
    total = 2 * torch.dot(flat, k) - torch.dot(k, k)
    diagonal, k = c.diagonal(), clamped.diagonal()
    total = total - (2 * torch.dot(diagonal, k) - torch.dot(k, k))
    return total / max(d * (d - 1), 1)
