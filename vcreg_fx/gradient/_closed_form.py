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
from ._products import add_product, add_small_product, small_matrix
from ._ranks import group_of, group_sum


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


class Step(NamedTuple):
    """One backward pass through a site: what the gradient of its penalty is worked out from.

    **Attributes:**

    - `h`, `axis`: the activation, its channels at `axis`.
    - `alpha`, `beta`: numbers or 0-d tensors.
    - `weight`: by what the penalty's gradient is multiplied; None is 1.
    - `config`: all else that says which gradient it is.
    - `dtype`: of the factors of the products.
    - `arriving`: what the penalty's gradient is compared with, where ``ratio`` is given; by default
      that to which it is added.
    - `absent`: which positions are no samples, as for `_products.moments`.
    """

    h: Tensor
    axis: int
    alpha: Any
    beta: Any
    weight: Tensor | float | None
    config: VCRegConfig
    dtype: torch.dtype
    arriving: Tensor | None = None
    absent: Tensor | None = None

    def in_numbers(self) -> Step:
        """Return the same with coefficients as numbers, where they may be."""
        return self._replace(alpha=number(self.alpha), beta=number(self.beta))


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

    def scaled_to(self, arriving: Tensor, step: Step, ranks: int = 1) -> Direction:
        """Return the same with G in the given ratio to an arriving gradient, if there is one."""
        if self.squared_norm is None:
            return self
        statistics, sizes = self.statistics, (ranks, len(self.g))
        how = (step.alpha, step.beta, statistics.samples, *sizes, step.config)
        factor = strength(arriving, self.squared_norm, *how)
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


def add_gradient(grad: Tensor, step: Step, found: Moments) -> tuple[Tensor, Statistics]:
    """Return ``grad + weight · d penalty / dh`` as a new tensor, and what the step saw."""
    step = step.in_numbers()
    way = direction(found, step.alpha, step.beta, step.config)
    way = way.scaled_to(grad if step.arriving is None else step.arriving, step, found.ranks)
    g = way.g if step.weight is None else way.g.mul_(step.weight)
    if found.small is not None:
        return add_small_product(grad, found.small, step.axis, g), way.statistics
    how = (step.axis, way.centre, g, step.dtype, way.rest, step.absent)
    return add_product(grad, step.h, *how), way.statistics


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
    step = Step(h, layout.axis, alpha, beta, None, config, dtype, absent=absent)
    gradient, seen = add_gradient(zero, step, found)
    return gradient, seen.variances, seen.covariance_loss


# At a strength relative to the gradient that arrives, which no scaling of the loss changes -----


def strength(
    arriving: Tensor,
    squared_norm: Tensor,
    alpha: Any,
    beta: Any,
    samples: int | Tensor,
    ranks: int,
    channels: int,
    config: VCRegConfig,
) -> Tensor:
    """Return by what the penalty's gradient D is multiplied: ``ratio · ‖g‖ / max(‖D‖, r)``.

    With r = (α + β) / (10 √(d (n−1))), what is added is `ratio` times as long as what arrives, and
    shorter where the penalty is nearly satisfied. D and r are those of the loss as it is written,
    never scaled, so that α and β say only how the two terms relate. (α/√(d(n−1)) is the norm of the
    variance term's gradient where every feature is below γ; a tenth of it is left where one in a
    hundred is.)

    Zero where the arriving gradient has an infinity or NaN, which then passes unchanged.

    **Arguments:**

    - `arriving`: g, of this rank.
    - `squared_norm`: ‖D‖², D being of all ranks and `ranks` times the penalty's gradient.
    - `alpha`, `beta`: numbers or 0-d tensors.
    - `samples`, `ranks`, `channels`: n and how many processes it is from, and d.
    - `config`: the ratio, `sync` and the convention.
    """
    of_task = arriving_norm(arriving, config)
    # Algorithm 1 leaves 1/(n−1) out of the covariance term.
    coefficients = alpha + beta * (samples - 1 if config.convention == "algorithm1" else 1)
    # Squares, since the compiler has no root of an n that it does not know.
    reference = coefficients * coefficients * ranks**2 / 100 / (channels * (samples - 1))
    of_penalty = squared_norm.clamp_min(reference).sqrt()
    factor: Tensor = of_task * config.number("ratio") / of_penalty
    return factor.nan_to_num(nan=0.0, posinf=0.0, neginf=0.0)


def arriving_norm(arriving: Tensor, config: VCRegConfig) -> Tensor:
    """Return ‖g‖ of the group's batch, in at least float32."""
    norm: Tensor = torch.linalg.vector_norm(arriving.detach(), dtype=working_dtype(arriving))
    if (group := group_of(config.sync)) is None:
        return norm
    return group_sum(norm.square(), group).sqrt()


def norm_of_product(covariance: Tensor, g: Tensor, samples: int | Tensor) -> Tensor:
    """Return ‖(z − μ) G‖² = (n−1) ⟨C G, G⟩, without a pass over the samples."""
    return torch.dot((covariance @ g).reshape(-1), g.reshape(-1)) * (samples - 1)


# Fewer samples than channels -------------------------------------------------------------------


def few_samples(step: Step, reference: Tensor | None) -> Tensor | None:
    """Return the centred samples (n, d) of a step; None where the general way is to be gone.

    With X the centred samples (n, d) and ρ(x) = x² (Eq. 4, ``delta=None``), the covariance term's
    gradient is X C without C's diagonal; and X C = (X Xᵀ) X / (n − 1), whose first product is
    (n, n). The classifier's input is such a site: 128 samples of 2,048 channels take a twelfth of
    the time.

    **Arguments:**

    - `step`: in which every position is a sample.
    - `reference`: as for `_moments.start_moments`.
    """
    h, config = step.h, step.config
    d = h.shape[step.axis]
    fits = config.delta is None and config.ratio is None and config.convention == "exact"
    if torch.compiler.is_compiling() or not fits or h.numel() >= d * d:
        return None
    if group_of(config.sync) is not None:
        return None
    x = small_matrix(h, step.axis, reference, step.dtype)
    return None if x is None else x.sub_(x.mean(dim=0))


def add_gradient_of_few(grad: Tensor, step: Step, x: Tensor) -> tuple[Tensor, Statistics]:
    """Do what `add_gradient` does, without a matrix of (d, d); `x` is from `few_samples`."""
    step = step.in_numbers()
    (n, d), config = x.shape, step.config
    variances, products = x.square().sum(dim=0).div_(n - 1), x @ x.T
    pairs, gamma = d * (d - 1), config.gamma
    of_covariance = 4 * step.beta / (pairs * (n - 1))
    slope = torch.threshold((variances + config.eps).rsqrt_(), 1 / gamma if gamma else math.inf, 0)
    own = slope.mul_(-step.alpha / (d * (n - 1))).sub_(variances, alpha=of_covariance)
    squares = products.square().sum() / (n - 1) ** 2 - variances.square().sum()
    added = (products.mul_(of_covariance / (n - 1)) @ x).addcmul_(x, own)
    added.mul_(1.0 if step.weight is None else step.weight)
    shape = grad.movedim(step.axis, -1).shape
    result = torch.add(grad, added.view(shape).movedim(-1, step.axis)).to(grad.dtype)
    return result, Statistics(variances + config.eps, (squares, None), n, None, pairs)


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
