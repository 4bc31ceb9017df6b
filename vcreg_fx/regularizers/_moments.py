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
    - `centre`: the mean, shape (d,), rounded; None for zero, with ``convention="algorithm1"``.
    - `rest`: the mean less `centre`, which has no room in its digits; None for zero.
    - `samples`: n, a number or a 0-d tensor.
    - `ranks`: how many processes they are from.
    """

    covariance: Tensor
    centre: Tensor | None
    rest: Tensor | None
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
    centre = rest = None
    if centred:
        shift = total / n
        second.addr_(shift, total, beta=part, alpha=-part)
        centre, rest = _sum(reference, shift)
    elif group is None:
        second.mul_(part)
    if group is None:
        return lambda: Moments(second, centre, rest, n, 1)
    return _exchange(second, centre, rest, n, group)


def _sum(base: Tensor | None, small: Tensor) -> tuple[Tensor, Tensor | None]:
    """Return the sum of two vectors, rounded, and what rounding took from it.

    A mean of 10⁵ standard deviations, rounded to float32, is off by 3·10⁻³ of them.
    """
    if base is None:
        return small, None
    rounded = base + small
    return rounded, small - (rounded - base)


def _exchange(
    second: Tensor, centre: Tensor | None, rest: Tensor | None, n: int, group: Any
) -> Callable[[], Moments]:
    """Add up the ranks' moments, each about its own mean, by one all-reduce.

    Sums of uncentred moments would lose the precision that centring keeps.
    """
    d, ranks = len(second), dist.get_world_size(group)
    counts, means, rests = (second.new_zeros(ranks, *size) for size in ((), (d,), (d,)))
    rank = dist.get_rank(group)
    counts[rank] = n
    if centre is not None:
        means[rank] = centre
    if rest is not None:
        rests[rank] = rest
    sent = torch.cat([second.flatten(), counts, means.flatten(), rests.flatten()])
    compiling = torch.compiler.is_compiling()
    work = dist.all_reduce(sent, group=group, async_op=not compiling)

    def finish() -> Moments:
        if work is not None:
            work.wait()
        second, counts, means, rests = sent.split([d * d, ranks, ranks * d, ranks * d])
        total, means = counts.sum(), means.view(ranks, d)
        base = means[0]
        apart = (means - base) + rests.view(ranks, d)
        shift = counts @ apart / total
        apart = apart - shift
        of_all = second.view(d, d).addmm(apart.T * counts, apart).div_(total - 1)
        if centre is None:
            return Moments(of_all, None, None, total, ranks)
        return Moments(of_all, *_sum(base, shift), total, ranks)

    return finish
