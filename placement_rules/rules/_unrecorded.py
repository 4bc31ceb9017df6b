"""Sites of a model whose forward pass cannot be recorded: named by hand, with their layout."""

from __future__ import annotations

import torch
from torch import fx, nn

from ..axes import Layout
from ..recording import Recording, Scope, Writes, keeps_container_forward
from ._modules import modules
from ._rule import Rule
from ._site import Site


def unrecorded(model: nn.Module, rule: Rule, layout: Layout) -> tuple[Recording, list[Site]] | None:
    """Return the sites of a ``modules`` rule without running the model; None for other rules.

    Shapes are unknown then, and each site takes a copy, since what is written in place is unknown.
    A plain container's output is that of its last child. The recording is empty.
    """
    if not isinstance(rule, modules):
        return None
    scopes = {
        _maker(path, module): None
        for path, module in model.named_modules()
        if rule.wants(path, module)
    }
    if not scopes:
        return None
    graph = fx.Graph()
    node = graph.placeholder("unknown")
    sites = [
        Site(
            name=f"{path}:output",
            path=path,
            position="output",
            leaf=(),
            shape=(),
            dtype=torch.get_default_dtype(),
            layout=layout,
            calls=0,
            leads_on=True,
            clone="an unknown module",
            scope=Scope(path, model.get_submodule(path), graph),
            node=node,
        )
        for path in scopes
    ]
    return Recording(model, [Scope("", model, fx.Graph())], fx.Graph(), Writes()), sites


def _maker(path: str, module: nn.Module) -> str:
    while keeps_container_forward(module) and (children := list(module.named_children())):
        name, module = children[-1]
        path = f"{path}.{name}"
    return path
