"""The variants that are timed: what is at the sites of each."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from placement_rules import Rule, UserError

from ..site import LiveSite, StandIn, replace_site
from ..surgery import insert, penalty, sites


class _Printed(torch.autograd.Function):
    """Algorithm 1 of VCReg's Appendix B, line by line, with channels last."""

    @staticmethod
    def forward(ctx: Any, z: Tensor, alpha: float, beta: float, eps: float) -> Tensor:
        ctx.save_for_backward(z)
        ctx.coefficients = alpha, beta, eps
        return z.view_as(z)

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor, None, None, None]:
        (z,) = ctx.saved_tensors
        alpha, beta, eps = ctx.coefficients
        flattened = z.flatten(0, -2)
        n, d = flattened.shape
        covariance = torch.mm(flattened.t(), flattened) / (n - 1)
        slope = torch.rsqrt(covariance.diagonal() + eps)
        diagonal = torch.nn.functional.threshold(slope, 1.0, 0.0)
        std_grad = diagonal * flattened
        cov_grad = torch.mm(flattened, covariance.fill_diagonal_(0))
        grad = (
            grad_output
            - alpha / (d * (n - 1)) * std_grad.view(grad_output.shape)
            + 4 * beta / (d * (d - 1)) * cov_grad.view(grad_output.shape)
        )
        return grad, None, None, None


def printed(site: LiveSite, weight: Tensor) -> StandIn:  # noqa: ARG001 (as batch_norm)
    """Return a batch demean layer and Algorithm 1 as printed."""
    layout, coefficients = site.layout, (site.alpha, site.beta, site.config.eps)

    def act(h: Tensor) -> Tensor:
        centred = h - h.mean(layout.sample_axes, keepdim=True)
        last = centred.movedim(layout.axis, -1)
        result: Tensor = _Printed.apply(last, *coefficients)
        return result.movedim(-1, layout.axis)

    return StandIn(site, act)


def batch_norm(site: LiveSite, weight: Tensor) -> StandIn:
    """Return a batch norm of torch, in training, where and as the model's weights are."""
    layout = site.layout
    layer = torch.nn.BatchNorm1d(site.channels, device=weight.device, dtype=weight.dtype)

    def act(h: Tensor) -> Tensor:
        second = h.movedim(layout.axis, 1)
        result = torch.nn.functional.batch_norm(
            second, layer.running_mean, layer.running_var, layer.weight, layer.bias, True
        )
        return result.movedim(1, layout.axis)

    return StandIn(site, act)


IDENTITY = "identity"
# What is timed: what it is, and how it is inserted, or what stands at its sites.
_TABLE: dict[str, tuple[str, dict[str, Any] | Callable[[LiveSite, Tensor], StandIn]]] = {
    IDENTITY: ("the model itself", {}),
    "naive": ("the loss, differentiated by autograd", {"backend": "naive"}),
    "Algorithm 1 as printed": (
        "a demean layer and the pseudo-code of VCReg's Appendix B", printed,
    ),
    "ours": ("`vcreg_fx.insert(model, rule)`", {}),
    'ours, mode="loss"': ("the penalty as part of the loss", {"mode": "loss"}),
    'ours, demean="activations"': ("the activation itself demeaned", {"demean": "activations"}),
    "ours, interval=8": ("an estimate: every eighth step, times eight", {"interval": 8}),
    "ours, interval=16": ("an estimate: every sixteenth step, times sixteen", {"interval": 16}),
    "ours, sample=256": ("an estimate: from 256 samples a site", {"sample": 256}),
    "batch norm": ("a batch norm layer in the place of VCReg", batch_norm),
}  # fmt: skip
# Variant → what it is, in the order of the table.
VARIANTS: Mapping[str, str] = MappingProxyType({name: what for name, (what, _) in _TABLE.items()})

# Those that are timed where they are named: other regularizers, by autograd.
COMPETITORS: Mapping[str, str] = MappingProxyType(
    {"DeCov": "decov", "WLD-Reg": "wld", "SIGReg": "sigreg", "Radial-VCReg": "radial"}
)
_HOW = {
    **{name: how for name, (_, how) in _TABLE.items()},
    **{name: {"regularizer": key} for name, key in COMPETITORS.items()},
}


class BenchError(UserError, ValueError):
    """A benchmark that cannot be run as it was asked for."""


def chosen_variants(names: Iterable[str]) -> list[str]:
    """Return the variants to be timed, the identity first.

    **Raises:** `BenchError` for an unknown one.
    """
    chosen = [IDENTITY, *(name for name in names if name != IDENTITY)]
    if unknown := [name for name in chosen if name not in _HOW]:
        raise BenchError(f"There is no variant {unknown[0]!r}. There are {'; '.join(_HOW)}.")
    return chosen


def make_variant(
    name: str,
    model: nn.Module,
    rule: str | Rule,
    example: tuple[Tensor, ...],
    layout: str | None = None,
) -> nn.Module:
    """Return a copy of a model with a variant at the sites of a rule; the weights are shared."""
    own = [*model.parameters(), *model.buffers()]
    variant = copy.deepcopy(model, {id(tensor): tensor for tensor in own})
    if name == IDENTITY:
        return variant
    how = _HOW[name]
    config = how if isinstance(how, dict) else {}
    insert(variant, rule, example_inputs=example, layout=layout, **config)
    if not isinstance(how, dict):
        for site in sites(variant):
            replace_site(variant, site.name, how(site, next(variant.parameters())))
    return variant


def added_loss(name: str, model: nn.Module) -> Tensor | float:
    """Return what a variant adds to the loss."""
    how = _HOW.get(name, {})
    return penalty(model) if isinstance(how, dict) and how.get("mode") == "loss" else 0.0
