"""VCReg at a strength relative to the gradient that arrives, which no scaling of the loss changes.

Where a gradient of norm ‖g‖ arrives at a site whose penalty has the gradient D, what is added is

    ratio · ‖g‖ · D / max(‖D‖, r),        r = (α + β) / (10 √(d (n−1))):

`ratio` times as long as what arrives, and shorter where the penalty is nearly satisfied. D and r
are those of the loss as it is written, never scaled, so that α and β say only how the two terms
relate. (α/√(d(n−1)) is the norm of the variance term's gradient where every feature is below γ; a
tenth of it is left where one in a hundred is.)
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ._config import VCRegConfig
from ._precision import working_dtype
from ._ranks import group_of, group_sum


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
    """Return by what the penalty's gradient is multiplied: ``ratio · ‖g‖ / max(‖D‖, r)``.

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
