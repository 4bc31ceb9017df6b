"""Estimates of the gradient that cost less than it: every k-th step, or from some samples.

Both are drawn from the site's name, a seed and the step alone, so that a run repeats, the random
numbers of the training are untouched, and ranks agree.
"""

from __future__ import annotations

import zlib
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ._closed_form import Statistics, Step, add_gradient, direction
from ._config import VCRegConfig
from ._moments import moments_of, reference_mean
from ._precision import autocast_off


def is_due(step: int, interval: int, key: str) -> bool:
    """Return whether a step is the one of its ``interval`` steps in which the penalty acts.

    Which one it is, is drawn anew for every run of ``interval`` steps.
    """
    window, place = divmod(step, interval)
    return place == zlib.crc32(f"{key}:{window}".encode()) % interval


class Draw(NamedTuple):
    """Which draw an estimate is of.

    **Attributes:**

    - `key`: the site and the seed.
    - `step`: how many backward passes the site has seen, a 0-d tensor on the CPU. It goes on by one
      with each, unknown to autograd and the compiler, as the state of random numbers does.
    """

    key: str
    step: Tensor


def add_estimate(grad: Tensor, step: Step, draw: Draw) -> tuple[Tensor, Statistics | None]:
    """Return ``grad`` plus an estimate of ``weight · d penalty / dh``, and what the step saw.

    Statistics are None, and the gradient is ``grad`` itself, where the step is not due.
    """
    count, config = int(draw.step), step.config
    draw.step.data.add_(1)
    if not is_due(count, config.interval, draw.key):
        return grad, None
    h, axis, absent = step.h, step.axis, step.absent
    scale = 1 if step.weight is None else step.weight
    step = step._replace(weight=scale * config.interval)
    n = _count(h, axis, absent) if config.sample is not None else 0
    if config.sample is not None and n > config.sample:
        return _add_sampled(grad, step, n, f"{draw.key}:{count}")
    reference = reference_mean(h, axis, absent) if config.demean == "statistics" else None
    found = moments_of(h, axis, reference, config, step.dtype, absent, keep=True)
    return add_gradient(grad, step, found)


def _count(h: Tensor, axis: int, absent: Tensor | None) -> int:
    return h.numel() // h.shape[axis] if absent is None else int((~absent).sum())


def _add_sampled(grad: Tensor, step: Step, n: int, key: str) -> tuple[Tensor, Statistics]:
    """Return ``grad`` plus an estimate of the penalty's gradient from ``config.sample`` samples.

    Half of the samples, drawn without replacement, give the covariance matrix; the other half,
    about their own mean, receive the gradient, (n−1)/(m/2−1) times. No sample is in both, so that
    the covariance term is unbiased with ``delta=None`` (expectations of independent factors
    multiply); what is not linear in C, the variance term and δ, has a bias of order 1/m.
    """
    step = step.in_numbers()
    h, axis, absent, config = step.h, step.axis, step.absent, step.config
    assert config.sample is not None
    assert step.weight is not None
    last = h.movedim(axis, -1)
    half = config.sample // 2
    generator = torch.Generator(h.device).manual_seed(zlib.crc32(key.encode()))
    drawn = torch.randperm(n, generator=generator, device=h.device)[: 2 * half]
    if absent is not None:
        drawn = (~absent).reshape(-1).nonzero()[drawn, 0]
    measured = last[torch.unravel_index(drawn[:half], last.shape[:-1])]
    receiving = torch.unravel_index(drawn[half:], last.shape[:-1])
    z = last[receiving].to(torch.promote_types(h.dtype, torch.float32))
    z = z - z[0]  # or a large mean would take the digits that the next one needs
    moments = moments_of(measured, 1, measured.mean(0, dtype=z.dtype), config, step.dtype)
    found = direction(moments, step.alpha, step.beta, config)
    if found.squared_norm is not None:  # of the whole penalty's gradient, which has 1/(n−1)
        statistics = found.statistics._replace(samples=n)
        share = (half - 1) / (n - 1)
        found = replace(found, statistics=statistics, squared_norm=found.squared_norm * share)
        found = found.scaled_to(grad if step.arriving is None else step.arriving, step)
    # G has 1/(m/2−1) in the place of 1/(n−1), which is the weight of each sample that receives.
    added = (z - z.mean(0)) @ found.g * step.weight
    out = grad.clone()
    target = out.movedim(axis, -1)
    target[receiving] = (target[receiving] + added).to(out.dtype)
    return out, found.statistics._replace(samples=half)


_WHAT = "Tensor grad, Tensor h, Tensor alpha, Tensor beta, Tensor? scale, Tensor? absent"
_HOW = "float? delta, float gamma, float eps, str convention, str demean, float? ratio"
_WHEN = "int interval, int? sample, str key, Tensor step, ScalarType dtype"
_FIELDS = ("delta", "gamma", "eps", "convention", "demean", "ratio", "interval", "sample")


def estimate(grad: Tensor, step: Step, draw: Draw) -> tuple[Tensor, Statistics | None]:
    """Do what `add_estimate` does; in compiled code by an operator, which keeps no statistics.

    **Raises:** `RuntimeError` in compiled code with ``sync``.
    """
    if not torch.compiler.is_compiling():
        return add_estimate(grad, step, draw)
    config = step.config
    if config.sync is not False:
        raise RuntimeError(
            "interval with sync is not to be had in compiled code, which does not know when the "
            "ranks meet. Insert with sync=False or without interval, or do not compile."
        )
    what = (grad, step.h, step.alpha, step.beta, step.weight, step.absent, step.axis)
    delta, gamma, eps = (config.number(name) for name in ("delta", "gamma", "eps"))
    how = (delta, gamma, eps, config.convention, config.demean, config.number("ratio"))
    when = (config.interval, config.sample, draw.key, draw.step, step.dtype)
    result: Tensor = torch.ops.vcreg_fx.estimate(*what, *how, *when)
    return result, None


@torch.library.custom_op(
    "vcreg_fx::estimate",
    mutates_args=(),
    schema=f"({_WHAT}, int axis, {_HOW}, {_WHEN}) -> Tensor",
)
def _estimate(grad: Tensor, h: Tensor, *given: Any) -> Tensor:
    alpha, beta, scale, absent, axis, *fields, key, step, dtype = given
    config = VCRegConfig(**dict(zip(_FIELDS, fields, strict=True)))
    with autocast_off(h):
        asked = Step(h, axis, alpha, beta, scale, config, dtype, absent=absent)
        result, _ = add_estimate(grad, asked, Draw(key, step))
    return result.clone() if result is grad else result


@_estimate.register_fake
def _(grad: Tensor, *_rest: Any) -> Tensor:
    return torch.empty_like(grad)
