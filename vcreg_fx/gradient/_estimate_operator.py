"""Estimates under torch.compile: an operator, which decides at run time whether a step is due."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ._closed_form import Statistics
from ._config import VCRegConfig
from ._estimate import Draw, add_estimate
from ._precision import autocast_off

_WHAT = "Tensor grad, Tensor h, Tensor alpha, Tensor beta, Tensor? scale, Tensor? absent"
_HOW = "float? delta, float gamma, float eps, str convention, str demean, float? ratio"
_WHEN = "int interval, int? sample, str key, Tensor step, ScalarType dtype"


def estimate(  # noqa: PLR0913, PLR0917 (what a step is made of)
    grad: Tensor,
    h: Tensor,
    axis: int,
    alpha: Tensor,
    beta: Tensor,
    scale: Tensor | None,
    config: VCRegConfig,
    draw: Draw,
    dtype: torch.dtype,
    arriving: Tensor,
    absent: Tensor | None = None,
) -> tuple[Tensor, Statistics | None]:
    """Do what `add_estimate` does; in compiled code by an operator, which keeps no statistics.

    **Raises:** `RuntimeError` in compiled code with ``sync``.
    """
    if not torch.compiler.is_compiling():
        given = (config, draw, dtype, arriving, absent)
        return add_estimate(grad, h, axis, alpha, beta, scale, *given)
    if config.sync is not False:
        raise RuntimeError(
            "interval with sync is not to be had in compiled code, which does not know when the "
            "ranks meet. Insert with sync=False or without interval, or do not compile."
        )
    what = (grad, h, alpha, beta, scale, absent, axis)
    delta, gamma, eps = (config.number(name) for name in ("delta", "gamma", "eps"))
    how = (delta, gamma, eps, config.convention, config.demean, config.number("ratio"))
    when = (config.interval, config.sample, draw.key, draw.step, dtype)
    result: Tensor = torch.ops.vcreg_fx.estimate(*what, *how, *when)
    return result, None


@torch.library.custom_op(
    "vcreg_fx::estimate",
    mutates_args=(),
    schema=f"({_WHAT}, int axis, {_HOW}, {_WHEN}) -> Tensor",
)
def _estimate(  # noqa: PLR0913, PLR0917 (those of the schema)
    grad: Tensor,
    h: Tensor,
    alpha: Tensor,
    beta: Tensor,
    scale: Tensor | None,
    absent: Tensor | None,
    axis: int,
    delta: float | None,
    gamma: float,
    eps: float,
    convention: Any,
    demean: Any,
    ratio: float | None,
    interval: int,
    sample: int | None,
    key: str,
    step: Tensor,
    dtype: torch.dtype,
) -> Tensor:
    config = VCRegConfig(
        delta=delta,
        gamma=gamma,
        eps=eps,
        convention=convention,
        demean=demean,
        ratio=ratio,
        interval=interval,
        sample=sample,
    )
    with autocast_off(h):
        given = (config, Draw(key, step), dtype, None, absent)
        result, _ = add_estimate(grad, h, axis, alpha, beta, scale, *given)
    return result.clone() if result is grad else result


@_estimate.register_fake
def _(grad: Tensor, *_rest: Any) -> Tensor:
    return torch.empty_like(grad)
