"""VCReg's gradient where samples are fewer than channels, without a matrix of (d, d).

With X the centred samples (n, d) and ρ(x) = x² (Eq. 4, ``delta=None``), the covariance term's
gradient is X C without C's diagonal; and X C = (X Xᵀ) X / (n − 1), whose first product is (n, n).
The classifier's input is such a site: 128 samples of 2,048 channels take a twelfth of the time.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from ._closed_form import Statistics, number
from ._config import VCRegConfig
from ._products import small_matrix
from ._ranks import group_of


def few_samples(
    h: Tensor, axis: int, reference: Tensor | None, config: VCRegConfig, dtype: torch.dtype
) -> Tensor | None:
    """Return the centred samples (n, d) of an activation; None where the general way is to be gone.

    **Arguments:** as for `_moments.start_moments`; every position is a sample.
    """
    d = h.shape[axis]
    fits = config.delta is None and config.ratio is None and config.convention == "exact"
    if torch.compiler.is_compiling() or not fits or h.numel() >= d * d:
        return None
    if group_of(config.sync) is not None:
        return None
    x = small_matrix(h, axis, reference, dtype)
    return None if x is None else x.sub_(x.mean(dim=0))


def add_gradient_of_few(
    grad: Tensor,
    x: Tensor,
    axis: int,
    alpha: Any,
    beta: Any,
    weight: Tensor | float | None,
    config: VCRegConfig,
) -> tuple[Tensor, Statistics]:
    """Return ``grad + weight · d penalty / dh`` as a new tensor, and what the step saw.

    **Arguments:** `x` from `few_samples`; else as for `_closed_form.add_gradient`.
    """
    (n, d), weight = x.shape, 1.0 if weight is None else weight
    variances, products = x.square().sum(dim=0).div_(n - 1), x @ x.T
    pairs, gamma = d * (d - 1), config.gamma
    of_covariance = 4 * number(beta) / (pairs * (n - 1))
    slope = torch.threshold((variances + config.eps).rsqrt_(), 1 / gamma if gamma else math.inf, 0)
    own = slope.mul_(-number(alpha) / (d * (n - 1))).sub_(variances, alpha=of_covariance)
    squares = products.square().sum() / (n - 1) ** 2 - variances.square().sum()
    added = (products.mul_(of_covariance / (n - 1)) @ x).addcmul_(x, own).mul_(weight)
    shape = grad.movedim(axis, -1).shape
    result = torch.add(grad, added.view(shape).movedim(-1, axis)).to(grad.dtype)
    return result, Statistics(variances + config.eps, (squares, None), n, None, pairs)
