"""The mean and the second moments of a site's samples, over one process or over all ranks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from ._config import VCRegConfig
from ._precision import working_dtype
from ._products import moments
from ._ranks import group_of

_PART = 16


class Moments(NamedTuple):
    """What the gradient needs to know of the samples.

    **Attributes:**

    - `covariance`: Σ (z − centre)(z − centre)ᵀ / (n − 1), shape (d, d).
    - `centre`: the mean, shape (d,), rounded; None for zero, with ``convention="algorithm1"``.
    - `rest`: the mean less `centre`, which has no room in its digits; None for zero.
    - `samples`: n, a number; a 0-d tensor where it was counted, or is of several processes.
    - `ranks`: how many processes they are from.
    - `small`: z less its mean as a matrix (n, d), where it was kept; then no centre is given.
    """

    covariance: Tensor
    centre: Tensor | None
    rest: Tensor | None
    samples: int | Tensor
    ranks: int
    small: Tensor | None = None


def reference_mean(h: Tensor, axis: int, absent: Tensor | None = None) -> Tensor:
    """Return the mean of the first sixteenth of the samples, shape (d,), in float32 or float64.

    The gradient is that of the exact mean, which costs nothing to find where the samples are
    multiplied (Chan, Golub and LeVeque, "Algorithms for computing the sample variance", 1983, on
    shifted data). This vector, within √15 standard deviations of it, is what samples are taken
    relative to, so that large means cost no precision.

    Where some positions are `absent`, which are no samples, it is the mean of the others, in up to
    a sixteenth of all; of the first of them where that has none, and zero where nothing is left.
    """
    h, axes = h.detach(), [other for other in range(h.ndim) if other != axis]
    part = h
    if not torch.compiler.is_compiling():  # which would bind the graph to a range of sizes
        part = h.narrow(axes[0], 0, -(-h.shape[axes[0]] // _PART))
    if absent is None:
        return part.mean(axes, dtype=working_dtype(h))
    if part.shape == h.shape:
        return present_sum(h, axis, absent) / (~absent).sum().clamp_min(1)
    left_out = absent.narrow(0, 0, part.shape[axes[0]])
    count = (~left_out).sum()
    mean = present_sum(part, axis, left_out) / count
    return torch.where(count > 0, mean, _first_sample(h, axis, absent).to(mean.dtype))


def _first_sample(h: Tensor, axis: int, absent: Tensor) -> Tensor:
    """Return the first sample, shape (d,), by nothing that waits for the device; zero for none."""
    place = torch.unravel_index(absent.reshape(-1).to(torch.uint8).argmin(), absent.shape)
    entry = h.movedim(axis, -1)
    for dim, index in enumerate(place):
        entry = entry.index_select(dim, index.view(1))
    return entry.reshape(-1).masked_fill(absent.all(), 0).nan_to_num(0, 0, 0)


def present_sum(h: Tensor, axis: int, absent: Tensor) -> Tensor:
    """Return the sum of the samples where positions are absent, shape (d,); differentiable."""
    axes = [other for other in range(h.ndim) if other != axis]
    return h.masked_fill(absent.unsqueeze(axis), 0).sum(axes, dtype=working_dtype(h))


def moments_of(*given: Any, **options: Any) -> Moments:
    """Return what `start_moments` starts, at once; with ``sync``, of the samples of all ranks."""
    return start_moments(*given, **options)()


def start_moments(
    h: Tensor,
    axis: int,
    reference: Tensor | None,
    config: VCRegConfig,
    dtype: torch.dtype,
    absent: Tensor | None = None,
    *,
    keep: bool = False,
) -> Callable[[], Moments]:
    """Start to compute moments; the ranks' exchange goes on until the result is asked for.

    **Arguments:**

    - `h`: the activation, its channels at `axis`.
    - `reference`: a vector near the batch mean, shape (d,), from which deviations are taken so that
      large means cost no precision; None for zero. The result is that of the exact mean.
    - `config`: `sync` and the convention.
    - `dtype`: of the factors of the product.
    - `absent`: which positions are no samples, as for `_products.moments`.
    - `keep`: whether few samples, less their mean, may be kept for the product that follows.
    """
    n: int | Tensor
    centred = config.convention == "exact"
    second, total, small = moments(h, axis, reference if centred else None, dtype, absent)
    group = group_of(config.sync)
    centre = rest = None
    if keep and small is not None and group is None:
        n = len(small)
        second.addr_(total, total, beta=1 / (n - 1), alpha=-1 / (n * (n - 1)))
        small.sub_(total, alpha=1 / n)
        return lambda: Moments(second, None, None, n, 1, small)
    if absent is not None:
        n = (~absent).sum().to(second.dtype)
        if centred:
            shift = total / n.clamp_min(1)
            second.sub_(torch.outer(shift, total))
            centre, rest = _sum(reference, shift)
        if group is None:
            second.div_((n - 1).clamp_min(1))
    else:
        n = number = h.numel() // h.shape[axis]
        part = 1 if group is not None else 1 / (number - 1)
        if centred:
            shift = total / number
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
    second: Tensor, centre: Tensor | None, rest: Tensor | None, n: int | Tensor, group: Any
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
        shift = counts @ apart / total.clamp_min(1)
        apart = apart - shift
        of_all = second.view(d, d).addmm(apart.T * counts, apart).div_((total - 1).clamp_min(1))
        if centre is None:
            return Moments(of_all, None, None, total, ranks)
        return Moments(of_all, *_sum(base, shift), total, ranks)

    return finish
