"""The mean and the second moments of a site's samples, over one process or over all ranks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from .._config import VCRegConfig
from .._distributed import group_of
from ._precision import working_dtype
from ._products import moments

_PART = 16


class Moments(NamedTuple):
    """What the gradient needs to know of the samples.

    **Attributes:**

    - `covariance`: Σ (z − centre)(z − centre)ᵀ / (n − 1), shape (d, d).
    - `centre`: the mean, shape (d,); None for zero, with ``convention="algorithm1"``.
    - `samples`: n, a number or a 0-d tensor.
    - `ranks`: how many processes they are from.
    """

    covariance: Tensor
    centre: Tensor | None
    samples: int | Tensor
    ranks: int


def reference_mean(h: Tensor, axis: int) -> Tensor:
    """Return the mean of the first sixteenth of the samples, shape (d,), in float32 or float64.

    The gradient is that of the exact mean, which costs nothing to find where the samples are
    multiplied (Chan, Golub and LeVeque, "Algorithms for computing the sample variance", 1983, on
    shifted data). This vector, within √15 standard deviations of it, is what samples are taken
    relative to, so that large means cost no precision.
    """
    h, axes = h.detach(), [other for other in range(h.ndim) if other != axis]
    if not torch.compiler.is_compiling():  # which would bind the graph to a range of sizes
        h = h.narrow(axes[0], 0, -(-h.shape[axes[0]] // _PART))
    return h.mean(axes, dtype=working_dtype(h))


def moments_of(
    h: Tensor, axis: int, reference: Tensor | None, config: VCRegConfig, dtype: torch.dtype
) -> Moments:
    """Return the moments of the samples in `h`; with ``sync``, of those of all ranks."""
    return start_moments(h, axis, reference, config, dtype)()


def start_moments(
    h: Tensor, axis: int, reference: Tensor | None, config: VCRegConfig, dtype: torch.dtype
) -> Callable[[], Moments]:
    """Start what `moments_of` does; the ranks' exchange goes on until the result is asked for.

    **Arguments:**

    - `h`: the activation, its channels at `axis`.
    - `reference`: a vector near the batch mean, shape (d,), from which deviations are taken so that
      large means cost no precision; None for zero. The result is that of the exact mean.
    - `config`: `sync` and the convention.
    - `dtype`: of the factors of the product.
    """
    n = h.numel() // h.shape[axis]
    centred = config.convention == "exact"
    second, total = moments(h, axis, reference if centred else None, dtype)
    group = group_of(config.sync)
    part = 1 if group is not None else 1 / (n - 1)
    centre = None
    if centred:
        shift = total / n
        second.addr_(shift, total, beta=part, alpha=-part)
        centre = shift if reference is None else reference + shift
    elif group is None:
        second.mul_(part)
    if group is None:
        return lambda: Moments(second, centre, n, 1)
    return _exchange(second, centre, n, group)


def _exchange(second: Tensor, centre: Tensor | None, n: int, group: Any) -> Callable[[], Moments]:
    """Add up the ranks' moments, each about its own mean, by one all-reduce.

    Sums of uncentred moments would lose the precision that centring keeps.
    """
    d, ranks = len(second), dist.get_world_size(group)
    counts, means = second.new_zeros(ranks), second.new_zeros((ranks, d))
    counts[dist.get_rank(group)] = n
    if centre is not None:
        means[dist.get_rank(group)] = centre
    sent = torch.cat([second.flatten(), counts, means.flatten()])
    compiling = torch.compiler.is_compiling()
    work = dist.all_reduce(sent, group=group, async_op=not compiling)

    def finish() -> Moments:
        if work is not None:
            work.wait()
        second, counts, means = sent.split([d * d, ranks, ranks * d])
        total, means = counts.sum(), means.view(ranks, d)
        mean = counts @ means / total
        apart = means - mean
        of_all = second.view(d, d).addmm(apart.T * counts, apart).div_(total - 1)
        return Moments(of_all, None if centre is None else mean, total, ranks)

    return finish
