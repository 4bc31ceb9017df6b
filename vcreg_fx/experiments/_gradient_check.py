"""Compare the injected gradient with autograd's of the naive loss, one site at a time."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..evaluation import captured
from ..functional import vcreg_loss
from ..gradient import VCRegConfig
from ..surgery import Plan, insert, sites


@dataclass(frozen=True)
class SiteCheck:
    """How well two ways to one site's gradient agree.

    **Attributes:**

    - `name`: the site.
    - `float32`, `float64`: ‖injected − naive‖ / ‖naive‖ over the gradients of all parameters.
    """

    name: str
    float32: float
    float64: float


def check_gradients(
    plan: Plan,
    images: Tensor,
    config: VCRegConfig | None = None,
    on_site: Callable[[], None] = lambda: None,
) -> list[SiteCheck]:
    """Compare gradients at every planned site, in float32 and in float64.

    On one side VCReg is inserted at all sites and switched off (α = β = 0) at all but one; the
    gradient that arrives at the parameters, when the task's loss is zero, is what this site
    injects. On the other side the untouched model runs, the site's tensor is captured by a hook,
    and autograd differentiates `vcreg_loss`. Every site sits between the parameters it reaches and
    the input, so a wrong tensor, a wrong scale or a wrong sign would show.

    **Arguments:**

    - `plan`: of a model without VCReg; it is copied, not changed.
    - `images`: one batch.
    - `config`: what to insert.
    - `on_site`: called twice a site.

    **Raises:** `PlacementError` if a site lies in the middle of a forward.
    """
    config = config or VCRegConfig()
    errors = [
        _errors(plan, images.to(dtype), dtype, config, on_site)
        for dtype in (torch.float32, torch.float64)
    ]
    return [SiteCheck(site.name, errors[0][site.name], errors[1][site.name]) for site in plan.sites]


def _errors(
    plan: Plan,
    images: Tensor,
    dtype: torch.dtype,
    config: VCRegConfig,
    on_site: Callable[[], None],
) -> dict[str, float]:
    untouched = copy.deepcopy(plan.model).to(dtype).train()
    inserted = insert(copy.deepcopy(untouched), plan.rule, config, example_inputs=(images[:2],))
    live = {site.name: site for site in sites(inserted)}
    with captured(untouched, plan.sites) as tensors:
        untouched(images)
    errors = {}
    for site in plan.sites:
        how = (config.alpha, config.beta, config.delta, site.layout)
        losses = [
            vcreg_loss(h, *how, gamma=config.gamma, eps=config.eps) for h in tensors[site.name]
        ]
        naive = _gradient(torch.stack(losses).sum(), untouched)
        for name, other in live.items():
            other.alpha = config.alpha if name == site.name else 0.0
            other.beta = config.beta if name == site.name else 0.0
        injected = _gradient(inserted(images).sum() * 0, inserted)
        errors[site.name] = float((injected - naive).norm() / naive.norm())
        on_site()
    return errors


def _gradient(loss: Tensor, model: nn.Module) -> Tensor:
    """Return the gradient of all parameters as one vector; the graph stays for the next site."""
    parameters = list(model.parameters())
    found = torch.autograd.grad(
        loss, parameters, retain_graph=True, allow_unused=True, materialize_grads=True
    )
    return torch.cat([gradient.flatten() for gradient in found])
