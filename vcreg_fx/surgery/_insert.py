"""The calls a user makes: insert, remove, and what lies between."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from placement_rules import Layout, Rule

from .._errors import InsertionError
from ..gradient import Penalize, VCRegConfig, choose
from ..site import LiveSite, LossScale, forget_steps, live_sites, named_sites
from ..site import insertions as _insertions
from ._install import check_uncovered, uninstall
from ._plan import make_config, plan


def insert(
    model: nn.Module,
    rule: str | Rule = "blocks",
    config: VCRegConfig | None = None,
    *,
    example_inputs: tuple[Any, ...] | None = None,
    example_kwargs: Mapping[str, Any] | None = None,
    layout: str | Layout | None = None,
    coefficients: Mapping[str, Mapping[str, float]] | None = None,
    regularizer: str | Penalize = "vcreg",
    **overrides: Any,
) -> nn.Module:
    """Insert VCReg into a model, in place: every training step then adds the penalty's gradient.

    Nothing else about the model changes: its class, methods, module tree, parameters, state-dict
    keys, hooks and outputs stay as they are.

    **Arguments:**

    - `model`: any vision model (timm, torchvision, transformers, your own), not yet wrapped or
      compiled.
    - `rule`: where: ``"head"``, ``"blocks"``, ``"downsample"``, ``"residual"``, the paper's
      ``"VCReg1"`` to ``"VCReg4"``, combinations (``"blocks | downsample"``), or a rule object.
    - `config`: the coefficients; by default those of `VCRegConfig`.
    - `example_inputs`, `example_kwargs`: arguments of one forward call; by default worked out from
      the model.
    - `layout`: the layout of every site, such as ``"NHWC"``, where it is not to be inferred.
    - `coefficients`: ``{site name: {"alpha": …, "beta": …}}`` to set sites apart, as `get_config`
      returns it; some of the sites that the rule selects, or all.
    - `regularizer`: what acts at the sites: ``"vcreg"``; ``"variance"``, its variance term alone
      (VICReg's Eq. 1, fast); ``"decov"``, ``"wld"``, ``"sigreg"`` or ``"radial"``, as
      ``decov_loss``, ``wld_loss``, ``sigreg_loss`` and ``radial_vcreg_loss`` of
      `vcreg_fx.functional` define them; or any function of z (n, d) that returns a scalar, or its
      name, ``"module:function"``. All but the first two are differentiated by autograd, and
      weighted by α alone.
    - `overrides`: fields of the configuration to change: ``alpha=0.32``.

    **Returns:** the same model.

    **Raises:** `PlacementError`, in one of its kinds, that states the cause and the fix. The model
    is then exactly as it was.
    """
    merged = make_config(config, overrides)
    choose(regularizer, merged)  # a mistake is found before anything is recorded
    planned = plan(
        model, rule, example_inputs=example_inputs, example_kwargs=example_kwargs, layout=layout
    )
    return planned.apply(merged, coefficients=coefficients, regularizer=regularizer)


def remove(model: nn.Module) -> nn.Module:
    """Take VCReg out of a model, in place: every module gets its own class back.

    A model without VCReg is left as it is.

    **Returns:** the same model.

    **Raises:** `InsertionError` if a module's class was changed again since, with what to undo.
    """
    for module in model.modules():
        check_uncovered(module)
    for module in model.modules():
        uninstall(module)
        forget_steps(module)
    return model


def sites(model: nn.Module) -> list[LiveSite]:
    """Return the sites inserted into a model, live: their coefficients can be set.

    In the order in which they were inserted.
    """
    return live_sites(model)


def get_config(model: nn.Module) -> dict[str, Any]:
    """Return what was inserted as plain data, for a checkpoint: ``insert(model, **config)``.

    What was inserted through a module of the model, as by ``insert(model.backbone)``, is returned
    as seen from the model: the rule names the sites one by one, ``at('backbone.layer1.0:output')``,
    because on the whole model the rule that was given may select others. A model wrapped in
    DistributedDataParallel or compiled is looked through.

    **Raises:** `InsertionError` if nothing was inserted, or more than once (use `get_configs`).
    """
    found = get_configs(model)
    if len(found) != 1:
        raise InsertionError(
            f"VCReg was inserted {len(found)} times into this model. Use vcreg_fx.get_configs, "
            "which returns one configuration an insertion."
        )
    return found[0]


def get_configs(model: nn.Module) -> list[dict[str, Any]]:
    """Return one configuration an insertion, in order; see `get_config`."""
    live = dict(named_sites(model))
    return [
        {
            "rule": insertion.rule,
            **insertion.config,
            "regularizer": insertion.regularizer,
            "layout": insertion.layout,
            "coefficients": {
                name: {"alpha": live[name].alpha, "beta": live[name].beta}
                for name in insertion.sites
                if name in live
            },
        }
        for insertion in _insertions(model)
    ]


def penalty(model: nn.Module) -> Tensor:
    """Return the sum of all penalties since the last call, to be added to the loss (Eq. 8).

    For ``mode="loss"``: ``loss = criterion(model(x), y) + vcreg_fx.penalty(model)``. Reading it
    clears it. In eval mode or before a forward pass it is zero.

    It is the sum over all training forward passes since the last call that no backward pass has
    left behind: two views of a batch, or the parts of one whose losses are added up before one
    backward pass, all count. A penalty that is not read until a backward pass has gone through its
    forward pass could not be differentiated any more, since that has spent the graph. The next
    training forward pass drops it, with one warning; so a loop that never reads keeps one step's
    graph. To accumulate gradients over several backward passes, read in each:
    ``(criterion(model(x), y) + vcreg_fx.penalty(model)) / k``. Without any backward pass, as where
    outputs are computed in train mode and thrown away, a site keeps the latest 64.

    With ``calls="mean"`` the penalties of each site are averaged over those forward passes, not
    summed.

    **Raises:** `InsertionError` if no site of the model has ``mode="loss"``.
    """
    waiting = [site for site in sites(model) if site.config.mode == "loss"]
    if not waiting:
        raise InsertionError(
            'No site of this model has mode="loss". With mode="gradient" the penalty\'s gradient '
            "is added during backward, and nothing has to be added to the loss."
        )
    terms: list[Tensor] = []
    for site in waiting:
        taken = site.passes.take()
        calls = len(taken) if site.config.calls == "mean" else 1
        terms += taken if calls == 1 else [term / calls for term in taken]
    if not terms:
        parameter = next(iter(model.parameters()), None)
        return torch.zeros((), device=None if parameter is None else parameter.device)
    device = terms[0].device
    return torch.stack([term.to(device) for term in terms]).sum()


def set_loss_scale(
    model: nn.Module, scale: float | Tensor | Any = 1.0, accumulation_steps: int = 1
) -> None:
    """Tell the sites with ``mode="gradient"`` how the training loop scales its loss.

    The injected gradient is multiplied by ``scale / accumulation_steps``, as the loss is.

    **Arguments:**

    - `scale`: a number, a 0-d tensor, or the ``torch.amp.GradScaler``, whose scale is then read at
      every step.
    - `accumulation_steps`: by how much the loop divides the loss of each micro-batch.

    **Raises:** `InsertionError` if nothing was inserted; `ValueError` or `TypeError` for a scale
    that is none.
    """
    found = sites(model)
    if not found:
        raise InsertionError("VCReg was not inserted into this model; there is nothing to scale.")
    shared = LossScale(scale, accumulation_steps)
    for site in found:
        site.loss_scale = shared
