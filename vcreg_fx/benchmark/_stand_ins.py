"""What is timed beside VCReg, at the same sites: the printed pseudo-code, and batch norm."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from placement_rules import Layout

from ..site import LiveSite


class StandIn:
    """Acts at a site in the place of VCReg: the activation becomes ``act(activation)``."""

    def __init__(self, name: str, layout: Layout, act: Callable[[Tensor], Tensor]) -> None:
        self.name = name
        self.layout = layout
        self._act = act

    def active(self, h: Tensor, training: bool) -> bool:
        """Act in training."""
        return training

    def reference_mean(self, h: Tensor) -> None:
        """Leave the mean to `act`."""

    def regularize(self, h: Tensor, reference: None) -> Tensor:
        """Return what becomes of the activation."""
        return self._act(h)


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
    layout = site.layout

    def act(h: Tensor) -> Tensor:
        centred = h - h.mean(layout.sample_axes, keepdim=True)
        last = centred.movedim(layout.axis, -1)
        result: Tensor = _Printed.apply(last, 0.64, 0.08, 1e-4)
        return result.movedim(-1, layout.axis)

    return StandIn(site.name, layout, act)


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

    return StandIn(site.name, layout, act)
