"""VCReg as an operator of torch: what an exported training program calls.

``torch.export`` keeps an operator with its derivative, and would lose an ``autograd.Function``'s.
The schema is part of saved programs: change it by adding an operator beside this one.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from placement_rules import Layout

from ._closed_form import Step, add_gradient
from ._config import VCRegConfig
from ._moments import moments_of
from ._precision import autocast_off, product_dtype

_WHAT = "Tensor? mean, Tensor alpha, Tensor beta, Tensor? scale"
_HOW = "int axis, float? delta, float gamma, float eps, str convention"
_CARRIED = ("alpha", "beta", "delta", "gamma", "eps", "convention", "demean", "mode", "backend")
# Fields that the operator knows nothing of, and the values at which that does not matter.
_OTHERS = {key: value for key, value in VCRegConfig().to_dict().items() if key not in _CARRIED}


def exported_vcreg(
    name: str,
    h: Tensor,
    mean: Tensor | None,
    alpha: Tensor,
    beta: Tensor,
    scale: Tensor | None,
    layout: Layout,
    config: VCRegConfig,
) -> Tensor:
    """Return `h` through the operator, while a model in train mode is exported.

    The program computes the gradient in closed form, also for ``backend="naive"``.

    **Arguments:** as for the operator, and `name`, the site's, for messages.

    **Raises:** `RuntimeError` for a configuration, or an exporter, that cannot keep the gradient.
    """
    if torch.onnx.is_in_onnx_export():
        raise RuntimeError(
            f"{name} is in train mode, and ONNX has no operator for VCReg's gradient. Export in "
            "eval mode, where VCReg does nothing: model.eval()."
        )
    if config.mode == "loss":
        raise RuntimeError(
            f'{name} has mode="loss", whose penalties vcreg_fx.penalty would read from the Python '
            'model; an exported program has none. Insert with mode="gradient" to export training, '
            "or export in eval mode: model.eval()."
        )
    for key, harmless in _OTHERS.items():
        if getattr(config, key) != harmless:
            raise RuntimeError(
                f"{name} has {key}={getattr(config, key)!r}, which an exported program cannot "
                "keep. Insert without it, or export in eval mode."
            )
    how = (layout.axis, config.delta, config.gamma, config.eps, config.convention)
    result: Tensor = torch.ops.vcreg_fx.vcreg(h, mean, alpha, beta, scale, *how)
    return result


@torch.library.custom_op(
    "vcreg_fx::vcreg", mutates_args=(), schema=f"(Tensor h, {_WHAT}, {_HOW}) -> Tensor"
)
def vcreg_operator(h: Tensor, *_rest: Any) -> Tensor:
    """Return a copy of `h`; backward adds the penalty's gradient to what arrives.

    **Arguments:** the activation `h`; a vector near its batch mean, shape (d,), or
    None if it was demeaned; α and
    β and the loss scale, 0-d tensors; the channel axis; δ, γ, ε and the convention.
    """
    return h.view_as(h).clone()  # a view may change the stride of a batch of one


@torch.library.custom_op(
    "vcreg_fx::vcreg_backward",
    mutates_args=(),
    schema=f"(Tensor grad, Tensor h, {_WHAT}, {_HOW}) -> Tensor",
)
def vcreg_backward_operator(grad: Tensor, h: Tensor, *given: Any) -> Tensor:
    """Return ``grad + scale · d penalty / dh``; with one sample, which has no variance, `grad`."""
    mean, alpha, beta, scale, axis, delta, gamma, eps, convention = given
    if h.numel() < 2 * h.shape[axis]:
        return grad.clone()
    config = VCRegConfig(delta=delta, gamma=gamma, eps=eps, convention=convention)
    with autocast_off(h):
        dtype = product_dtype(h)
        found = moments_of(h, axis, mean, config, dtype, keep=True)
        return add_gradient(grad, Step(h, axis, alpha, beta, scale, config, dtype), found)[0]


@vcreg_operator.register_fake
def _(h: Tensor, *_rest: Any) -> Tensor:
    return torch.empty_like(h.view_as(h))


@vcreg_backward_operator.register_fake
def _(grad: Tensor, *_rest: Any) -> Tensor:
    return torch.empty_like(grad)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:  # noqa: ARG001
    ctx.save_for_backward(*inputs[:5])
    ctx.how = inputs[5:]


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    result = torch.ops.vcreg_fx.vcreg_backward(grad, *ctx.saved_tensors, *ctx.how)
    return result, *[None] * 9


def _refuse(*_: Any) -> Any:
    raise RuntimeError(
        "The gradient that an exported program adds for VCReg has no derivative of its own, so "
        "create_graph=True would give wrong second derivatives."
    )


vcreg_operator.register_autograd(_backward, setup_context=_setup_context)
vcreg_backward_operator.register_autograd(_refuse)
