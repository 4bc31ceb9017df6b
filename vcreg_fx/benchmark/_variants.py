"""The variants that are timed: what is at the sites of each."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

from torch import Tensor, nn

from ..site import LiveSite, replace_site
from ..surgery import insert, penalty, sites
from ._stand_ins import StandIn, batch_norm, printed

IDENTITY = "identity"
_CONFIGS: dict[str, dict[str, Any]] = {
    "naive": {"backend": "naive"},
    "ours": {},
    'ours, mode="loss"': {"mode": "loss"},
    'ours, demean="activations"': {"demean": "activations"},
    "ours, interval=8": {"interval": 8},
    "ours, interval=16": {"interval": 16},
    "ours, sample=256": {"sample": 256},
}
_STAND_INS: dict[str, Callable[[LiveSite, Tensor], StandIn]] = {
    "Algorithm 1 as printed": printed,
    "batch norm": batch_norm,
}
# Variant → what it is, in the order of the table.
VARIANTS: Mapping[str, str] = MappingProxyType(
    {
        IDENTITY: "the model itself",
        "naive": "the loss, differentiated by autograd",
        "Algorithm 1 as printed": "a demean layer and the pseudo-code of VCReg's Appendix B",
        "ours": "`vcreg_fx.insert(model, rule)`",
        'ours, mode="loss"': "the penalty as part of the loss",
        'ours, demean="activations"': "the activation itself demeaned",
        "ours, interval=8": "an estimate: every eighth step, times eight",
        "ours, interval=16": "an estimate: every sixteenth step, times sixteen",
        "ours, sample=256": "an estimate: from 256 samples a site",
        "batch norm": "a batch norm layer in the place of VCReg",
    }
)


def make_variant(name: str, model: nn.Module, rule: str, example: tuple[Tensor, ...]) -> nn.Module:
    """Return a copy of a model with a variant at the sites of a rule; the weights are shared."""
    own = [*model.parameters(), *model.buffers()]
    variant = copy.deepcopy(model, {id(tensor): tensor for tensor in own})
    if name == IDENTITY:
        return variant
    insert(variant, rule, example_inputs=example, **_CONFIGS.get(name, {}))
    if make := _STAND_INS.get(name):
        for site in sites(variant):
            replace_site(variant, site.name, make(site, next(variant.parameters())))
    return variant


def added_loss(name: str, model: nn.Module) -> Tensor | float:
    """Return what a variant adds to the loss."""
    return penalty(model) if _CONFIGS.get(name, {}).get("mode") == "loss" else 0.0
