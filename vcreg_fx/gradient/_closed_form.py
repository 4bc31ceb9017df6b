"""VCReg's gradient in closed form (design: d penalty / dz = (z − μ) G).

With C the covariance matrix and ρ' (x) = 2 clamp(x, −δ, δ) the slope of Eq. 10,

    G_ij = 4β / (d(d−1)(n−1)) · clamp(C_ij, −δ, δ)            for i ≠ j
    G_ii = −α / (d(n−1)) / √(C_ii + ε)                        where √(C_ii + ε) < γ, else 0.

With ``sync``, n, μ and C are those of the batches of all ranks, and G is multiplied by the number
of ranks, because DistributedDataParallel divides the sum of their gradients by it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from placement_rules import Layout

from ._config import VCRegConfig
from ._moments import Moments, moments_of, present_sum
from ._precision import working_dtype
from ._products import add_product, add_small_product
from ._ratio import norm_of_product, strength


class Statistics(NamedTuple):
    """What one step saw at a site: numbers on the device, nothing synchronized.

    **Attributes:**

    - `variances`: C_ii + ε, shape (d,).
    - `sums`: 0-d tensors s, and t or None: Eq. 4 is s / `pairs`, Eq. 10 (2 s − t) / `pairs`. The
      value of a regularizer that acts instead of VCReg is s.
    - `samples`: n, a number or a 0-d tensor.
    - `factor`: with ``ratio``, what the penalty's gradient was multiplied by; None without.
    """

    variances: Tensor
    sums: tuple[Tensor, Tensor | None]
    samples: int | Tensor
    factor: Tensor | None = None
    pairs: int = 1

    @property
    def covariance_loss(self) -> Tensor:
        """ℓ_cov, or what another regularizer returned: worked out when it is asked for."""
        whole, less = self.sums
        return (whole if less is None else 2 * whole - less) / self.pairs


@dataclass(frozen=True)
class Direction:
    """The penalty's gradient as a matrix: d penalty / dz = (z − centre) G.

    The centre is None where nothing is to be subtracted, and `rest` is what it lacks in digits.
    `squared_norm` is that of the gradient; None without ``ratio``, where nobody asks for it.
    """

    g: Tensor
    centre: Tensor | None
    rest: Tensor | None
    statistics: Statistics
    squared_norm: Tensor | None

    def scaled_to(
        self, arriving: Tensor, alpha: Any, beta: Any, ranks: int, config: VCRegConfig
    ) -> Direction:
        """Return the same with G in the given ratio to an arriving gradient, if there is one."""
        if self.squared_norm is None:
            return self
        statistics, d = self.statistics, len(self.g)
        factor = strength(
            arriving, self.squared_norm, alpha, beta, statistics.samples, ranks, d, config
        )
        statistics = statistics._replace(factor=factor)
        return replace(self, g=self.g.mul_(factor), statistics=statistics)


def direction(found: Moments, alpha: Tensor, beta: Tensor, config: VCRegConfig) -> Direction:
    """Return the gradient of the penalty of Eq. 5 as a matrix.

    With ``convention="algorithm1"`` it is that of Appendix B: no centring, no δ, and no 1/(n−1) in
    the covariance term.

    **Arguments:**

    - `found`: the moments of the samples; their covariance matrix is written to. Where n is a
      tensor and less than 2, G is zero.
    - `alpha`, `beta`: 0-d tensors.
    - `config`: γ, ε, δ and the convention.
    """
    printed = config.convention == "algorithm1"
    delta = None if printed else config.number("delta")
    c, n = found.covariance, found.samples
    free = (n - 1).clamp_min(1) if isinstance(n, Tensor) else n - 1
    d = len(c)
    variances = c.diagonal() + config.number("eps")
    gamma, pairs = config.number("gamma"), max(d * (d - 1), 1)
    whole = None if config.ratio is None else c.clone()
    slope = torch.threshold(variances.rsqrt(), 1 / gamma if gamma else math.inf, 0)
    c.diagonal().zero_()  # Eq. 4 and Eq. 10 leave it out
    clamped = c if delta is None else c.clamp(-delta, delta)
    sums = _huber_sums(c, clamped)
    alpha, beta = number(alpha), number(beta)
    of_variance = alpha * (-found.ranks / d / free)
    g = clamped.mul_(
        _unless_infinite(beta * (4 * found.ranks / pairs / (1 if printed else free)), variances)
    )
    if isinstance(of_variance, Tensor):
        g.diagonal().copy_(slope.mul_(of_variance))
    else:
        torch.mul(slope, of_variance, out=g.diagonal())
    if d == 1:  # no covariance, which would tell of an infinite variance
        g += variances * 0
    if isinstance(n, Tensor):
        g.masked_fill_(n < 2, 0)
    statistics = Statistics(variances, sums, n, None, pairs)
    norm = None if whole is None else norm_of_product(whole, g, n)
    return Direction(g, found.centre, found.rest, statistics, norm)


def add_gradient(  # noqa: PLR0913, PLR0917 (what a step is made of)
    grad: Tensor,
    h: Tensor,
    axis: int,
    found: Moments,
    alpha: Tensor,
    beta: Tensor,
    weight: Tensor | float | None,
    config: VCRegConfig,
    dtype: torch.dtype,
    arriving: Tensor | None = None,
    absent: Tensor | None = None,
) -> tuple[Tensor, Statistics]:
    """Return ``grad + weight · d penalty / dh`` as a new tensor, and what the step saw.

    **Arguments:** as for `direction` and `add_product`; `weight` None is 1. `arriving` is what the
    penalty's gradient is compared with, where ``ratio`` is given; `grad` itself by default.
    """
    alpha, beta = number(alpha), number(beta)
    way = direction(found, alpha, beta, config)
    way = way.scaled_to(grad if arriving is None else arriving, alpha, beta, found.ranks, config)
    g = way.g if weight is None else way.g.mul_(weight)
    if found.small is not None:
        return add_small_product(grad, found.small, axis, g), way.statistics
    return add_product(grad, h, axis, way.centre, g, dtype, way.rest, absent), way.statistics


def penalty_gradient(
    h: Tensor, layout: Layout, config: VCRegConfig, absent: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradient of the penalty at a site, with what it was made from.

    **Arguments:**

    - `h`: the activation, detached.
    - `layout`: its layout.
    - `config`: the coefficients and the convention.
    - `absent`: which positions are no samples, as for `_products.moments`.

    **Returns:** the gradient, of the shape of `h`; C_ii + ε, shape (d,); and ℓ_cov.
    """
    dtype = working_dtype(h)
    if absent is None:
        mean = h.mean(layout.sample_axes, dtype=dtype)
    else:
        mean = present_sum(h, layout.axis, absent) / (~absent).sum().clamp_min(1)
    alpha, beta = (
        torch.tensor(value, dtype=torch.float64) for value in (config.alpha, config.beta)
    )
    found = moments_of(h, layout.axis, mean, config, dtype, absent)
    zero = torch.zeros((), dtype=dtype, device=h.device).expand(h.shape)
    gradient, seen = add_gradient(
        zero, h, layout.axis, found, alpha, beta, None, config, dtype, absent=absent
    )
    return gradient, seen.variances, seen.covariance_loss


def number(coefficient: Tensor | float) -> Any:
    """Return a coefficient as a number, which is faster; compiled code reads the tensor anew."""
    if torch.compiler.is_compiling() or not isinstance(coefficient, Tensor):
        return coefficient
    return coefficient.item()


def _huber_sums(c: Tensor, clamped: Tensor) -> tuple[Tensor, Tensor | None]:
    """Return s and t, where Σ ρ(C_ij) = 2 s − t, by ρ(x) = 2 x k − k² with k = clamp(x, −δ, δ).

    Without δ, it is s.
    """
    k = clamped.reshape(-1)
    if clamped is c:
        return torch.dot(k, k), None
    return torch.dot(c.reshape(-1), k), torch.dot(k, k)


def _unless_infinite(scale: Any, variances: Tensor) -> Any:
    """Return the scale, and NaN where a variance is infinite: a clamp would hide that."""
    if isinstance(scale, Tensor) or torch.compiler.is_compiling():
        return variances.sum() * 0 + scale
    return torch.rsub(variances.sum(), scale, alpha=0)
