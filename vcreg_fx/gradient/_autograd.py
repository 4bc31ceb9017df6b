"""The autograd nodes: one adds the penalty's gradient to what arrives, one is the penalty."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from placement_rules import Layout
from placement_rules._torch import (
    in_backward,
    is_batched,
    takes_part,
    under_func_transform,
    under_vmap,
)

from ..functional import covariance_loss, flatten_samples, variance_loss
from ._closed_form import (
    Statistics,
    Step,
    add_gradient,
    add_gradient_of_few,
    direction,
    few_samples,
    strength,
)
from ._config import VCRegConfig
from ._estimate import Draw, estimate
from ._moments import Moments, moments_of, start_moments
from ._numbers import Numbers
from ._precision import autocast_off
from ._products import add_product
from ._ranks import GatherSamples, group_of, group_sum
from ._regularizer import Penalize

SITE = "VCReg's site"  # how errors begin to name one


class Calls:
    """The calls of a site whose graphs are alive, for ``calls="mean"``.

    How many take part in a backward pass is asked of autograd while it runs: calls whose output was
    thrown away, or which another loss depends on, are not counted.
    """

    def __init__(self) -> None:
        self._nodes: list[weakref.ref[Any]] = []

    def note(self, node: Any) -> None:
        """Note a forward call; one that checkpointing runs again is none."""
        if torch.compiler.is_compiling():  # parts of the model may be; this is not to be
            raise RuntimeError("Calls are counted outside of compiled code.")
        if not in_backward():
            alive = [known for known in self._nodes if known() is not None]
            self._nodes = [*alive, weakref.ref(node)]

    def share(self, node: Any, name: str) -> float:
        """Return 1 / k, where k calls take part in the running backward pass.

        **Raises:** `RuntimeError` that names the site, where that cannot be known.
        """
        alive = [found for known in self._nodes if (found := known()) is not None]
        if not any(found is node for found in alive):
            raise RuntimeError(
                f'{SITE} {name} has calls="mean", and its part of the model goes backward where '
                "nothing tells how many calls there are: under reentrant activation checkpointing "
                "(use use_reentrant=False), or compiled autograd. Otherwise insert with "
                'calls="sum".'
            )
        return 1 / sum(map(takes_part, alive))


@dataclass(frozen=True, eq=False)
class Settings:
    """What does not change between the steps of a site."""

    layout: Layout
    config: VCRegConfig
    clone: bool
    numbers: Numbers  # of the last step
    penalize: Penalize | None = None  # what acts instead of VCReg, if anything
    key: str = ""  # what the draws of estimates depend on
    name: str = "a site"
    injected: Callable[[], None] | None = None  # called where a gradient passes the site
    calls: Calls | None = None  # those of the site, where their mean is taken


class InjectGradient(torch.autograd.Function):
    """The identity, whose backward adds the gradient of the penalty (VCReg, section 3.3)."""

    @staticmethod
    def forward(
        h: Tensor,
        reference: Tensor | None,
        absent: Tensor | None,
        alpha: Tensor | float,
        beta: Tensor | float,
        scale: Tensor | None,
        step: Tensor | None,
        settings: Settings,
        dtype: torch.dtype,
        started: Callable[[], Moments] | None,
    ) -> Tensor:
        """Return `h` itself as a view, or a clone where it is written to further down."""
        return h.clone() if settings.clone else h.view_as(h)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        """Save the activation and a vector near its mean, and nothing else of its size.

        Which positions are no samples is kept beside what is saved, so that checkpointing, which
        computes anew what was saved, does not look for it again.
        """
        h, reference, ctx.absent, *given, ctx.step, ctx.settings, ctx.dtype, ctx.started = inputs
        ctx.given = [None if isinstance(value, Tensor) else value for value in given]
        tensors = (value if isinstance(value, Tensor) else None for value in given)
        ctx.save_for_backward(h, reference, *tensors)
        if ctx.settings.calls is not None:
            ctx.settings.calls.note(ctx)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """Return the arriving gradient plus the penalty's, in a new tensor."""
        settings: Settings = ctx.settings
        h, reference, *saved = _saved(ctx)
        alpha, beta, scale = (
            value if value is not None else plain
            for value, plain in zip(saved, ctx.given, strict=True)
        )
        _refuse_second_order()
        refuse_batches(settings.name, grad)
        if settings.calls is not None:
            share = settings.calls.share(ctx, settings.name)
            one = torch.ones((), dtype=torch.float64) if scale is None else scale
            scale = one * share
        if settings.injected is not None and not torch.compiler.is_compiling():
            settings.injected()
        config, axis, absent = settings.config, settings.layout.axis, ctx.absent
        seen: Statistics | None = None
        base = grad * 0 if under_func_transform() else grad
        step = Step(h, axis, alpha, beta, scale, config, ctx.dtype, grad, absent)
        with torch.no_grad(), autocast_off(h):
            if config.backend == "naive":
                added, seen = _naive_gradient(h, alpha, beta, settings, absent)
                if config.ratio is not None:
                    scale, seen = _naive_strength(grad, added, alpha, beta, seen, settings)
                result = base + (added if scale is None else added * scale).to(grad.dtype)
            elif ctx.step is not None:
                result, seen = estimate(base, step, Draw(settings.key, ctx.step))
            elif absent is None and (x := few_samples(step, reference)) is not None:
                result, seen = add_gradient_of_few(base, step, x)
            else:
                found = ctx.started or start_moments(
                    h, axis, reference, config, ctx.dtype, absent, keep=True
                )
                result, seen = add_gradient(base, step, found())
            if seen is not None:
                settings.numbers.record(seen)
        if under_func_transform():
            result = grad + result.detach()  # what arrives keeps its own graph
        return result, *[None] * 9


def inject_gradient_at(name: str) -> type[InjectGradient]:
    """Return `InjectGradient` under a name of its own for a site.

    Where what the site returned is written to in place, which no recording has shown, autograd
    refuses at once, in an error that has this name in it.
    """
    title = f"{SITE} {name} (write to x.clone() there, not to x)"
    return type(title, (InjectGradient,), {})


class Penalty(torch.autograd.Function):
    """The penalty α ℓ_var + β ℓ_cov with its gradient in closed form; differentiable twice."""

    @staticmethod
    def forward(
        h: Tensor,
        reference: Tensor | None,
        absent: Tensor | None,
        alpha: Tensor,
        beta: Tensor,
        settings: Settings,
        dtype: torch.dtype,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """Return the penalty, and G and the mean, in two parts, for backward."""
        config = settings.config
        with torch.no_grad(), autocast_off(h):
            moments = moments_of(h, settings.layout.axis, reference, config, dtype, absent)
            found = direction(moments, alpha, beta, config)
            settings.numbers.record(found.statistics)
            statistics, centre = found.statistics, found.centre
            assert centre is not None  # algorithm1 has no mode="loss"
            variance_loss = torch.relu(config.number("gamma") - statistics.variances.sqrt()).mean()
            penalty = alpha * variance_loss + beta * statistics.covariance_loss
            if isinstance(statistics.samples, Tensor):
                penalty = penalty.masked_fill(statistics.samples < 2, 0)
        return penalty.to(found.g.dtype), found.g, centre, found.rest

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor | None, ...]) -> None:
        """Save the activation, its mean, and G."""
        h, _, ctx.absent, alpha, beta, ctx.settings, ctx.dtype = inputs
        _, *kept = output
        ctx.mark_non_differentiable(*(tensor for tensor in kept if tensor is not None))
        ctx.save_for_backward(h, alpha, beta, *kept)

    @staticmethod
    def backward(ctx: Any, grad: Tensor, *unused: Tensor) -> tuple[Tensor | None, ...]:
        """Return the penalty's gradient, times what arrives."""
        settings: Settings = ctx.settings
        h, alpha, beta, g, centre, rest = _saved(ctx)
        if torch.is_grad_enabled() and not torch.compiler.is_compiling():
            with autocast_off(h):
                penalty, _ = naive_penalty(h, alpha, beta, settings, ctx.absent)
                (found,) = torch.autograd.grad(penalty, h, grad, create_graph=True)
            return found, *[None] * 6
        with autocast_off(h):
            zero = torch.zeros((), dtype=h.dtype, device=h.device).expand(h.shape)
            how = (settings.layout.axis, centre, g * grad, ctx.dtype, rest, ctx.absent)
            result = add_product(zero, h, *how)
        return result, *[None] * 6


def naive_penalty(
    h: Tensor, alpha: Tensor, beta: Tensor, settings: Settings, absent: Tensor | None = None
) -> tuple[Tensor, Statistics]:
    """Return the penalty of Eq. 5 by the reference, for autograd to differentiate."""
    config = settings.config
    z = flatten_samples(h, settings.layout, None if absent is None else ~absent)
    if (group := group_of(config.sync)) is not None:
        z = GatherSamples.apply(z, group)
    if absent is not None and len(z) < 2:  # nothing varies, whatever would be penalized
        loss = penalty = z.sum() * 0
        variances = z.detach().new_full((z.shape[1],), config.eps)
        return penalty, Statistics(variances, (loss.detach(), None), variances.new_full((), len(z)))
    if settings.penalize is not None:
        loss = other_penalty(z, settings.penalize)
        penalty = alpha * loss
    else:
        loss = covariance_loss(z, config.number("delta"))
        spread = variance_loss(z, config.number("gamma"), config.number("eps"))
        penalty = alpha * spread + beta * loss
    with torch.no_grad():
        variances = z.detach().var(dim=0) + config.number("eps")
        samples = variances.new_ones(()) * z.shape[0]
    return penalty, Statistics(variances, (loss.detach(), None), samples)


def other_penalty(z: Tensor, penalize: Penalize) -> Tensor:
    """Return a competitor's penalty, for autograd to differentiate. z: (n, d).

    **Raises:** `TypeError` if the function does not return a scalar that depends on z.
    """
    penalty = penalize(z)
    if not isinstance(penalty, Tensor) or penalty.numel() != 1 or not penalty.requires_grad:
        shape = (
            f"a tensor of shape {tuple(penalty.shape)}" if isinstance(penalty, Tensor) else penalty
        )
        raise TypeError(
            f"The regularizer {getattr(penalize, '__name__', penalize)} returned {shape}; it must "
            "return a scalar tensor that depends on its argument."
        )
    return penalty.reshape(())


def _naive_gradient(
    h: Tensor, alpha: Tensor, beta: Tensor, settings: Settings, absent: Tensor | None
) -> tuple[Tensor, Statistics]:
    gradient: Tensor
    if torch.compiler.is_compiling():  # which knows this form only
        gradient, seen = torch.func.grad(_naive_numbers, has_aux=True)(
            h.detach(), alpha, beta, settings
        )
        variances, loss, samples = seen
        statistics = Statistics(variances, (loss, None), samples)
    else:
        with torch.enable_grad():
            leaf = h.detach().requires_grad_()
            penalty, statistics = naive_penalty(leaf, alpha, beta, settings, absent)
            (gradient,) = torch.autograd.grad(penalty, leaf)
    return gradient, statistics


def _naive_numbers(
    h: Tensor, alpha: Tensor, beta: Tensor, settings: Settings
) -> tuple[Tensor, tuple[Any, ...]]:
    """Return the penalty and what was seen, in tensors alone: the compiler takes nothing else."""
    penalty, seen = naive_penalty(h, alpha, beta, settings)
    return penalty, (seen.variances, seen.covariance_loss, seen.samples)


def _naive_strength(
    arriving: Tensor,
    added: Tensor,
    alpha: Tensor,
    beta: Tensor,
    seen: Statistics,
    settings: Settings,
) -> tuple[Tensor, Statistics]:
    """Return the factor that ``ratio`` means, from the norm of the gradient itself."""
    config, d = settings.config, added.shape[settings.layout.axis]
    group = group_of(config.sync)
    ranks = 1 if group is None else dist.get_world_size(group)
    norm = group_sum(added.to(seen.variances.dtype).square().sum(), group)
    factor = strength(arriving, norm, alpha, beta, seen.samples, ranks, d, config)
    return factor, seen._replace(factor=factor)


def _saved(ctx: Any) -> tuple[Any, ...]:
    """Return what was saved for backward.

    **Raises:** `RuntimeError` that names the site, if its tensor was written to since then.
    """
    saved: tuple[Any, ...]
    if torch.compiler.is_compiling():
        saved = ctx.saved_tensors
        return saved
    try:
        saved = ctx.saved_tensors
    except RuntimeError as error:
        if "inplace" not in str(error):
            raise
        raise RuntimeError(
            f"The tensor of {SITE} {ctx.settings.name} was written to in place after the "
            "site, which recording the model has not shown, so that the site returned no copy. "
            "Write y = x * m instead of x.mul_(m), or to a clone of it; or insert with "
            "example_inputs= with which it is written to, or use a rule that leaves this module "
            "out."
        ) from error
    return saved


def _refuse_second_order() -> None:
    """Backward runs with gradients enabled exactly under ``create_graph=True``."""
    compiling = torch.compiler.is_compiling()
    if torch.is_grad_enabled() and not compiling and not under_func_transform():
        raise RuntimeError(
            'The gradient that mode="gradient" adds has no derivative of its own, so '
            'create_graph=True would give wrong second derivatives. Insert with mode="loss" and '
            "add vcreg_fx.penalty(model) to the loss."
        )


def refuse_batches(name: str, arriving: Tensor | None = None) -> None:
    """Refuse `torch.func.vmap`, in which a tensor stands for many, and ``is_grads_batched``.

    **Raises:** `RuntimeError`: the samples of one model cannot be told there from those of another,
    and each row of a Jacobian would be given the penalty's gradient.
    """
    if torch.compiler.is_compiling():
        return
    if under_vmap() or (arriving is not None and is_batched(arriving)):
        raise RuntimeError(
            f"{name} is in training under torch.func.vmap (jacrev, jacfwd, is_grads_batched, an "
            "ensemble of models), which has no place for the gradient that VCReg adds to one "
            "backward pass. Set VCReg aside there: model.eval(), in which it does nothing. For "
            'derivatives of a loss with VCReg in it, insert with mode="loss" and differentiate '
            "one loss at a time."
        )
