"""Notice sites that were lost: a later step replaced the module that owned them."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import nn

from placement_rules import at

from .._live import LiveSite
from .._steps import watch_of, watch_steps

REGISTRY = "vcreg_insertions"  # the attribute of a model that lists what was inserted into it


@dataclass
class Insertion:
    """One call of ``insert``: what it was asked for, and the sites it made.

    **Attributes:**

    - `rule`: the rule as a string.
    - `config`: the `VCRegConfig`'s fields.
    - `sites`: site name → module path and the key of the site in that module.
    - `layout`: the layout that was given, if any.
    - `regularizer`: its name, or the user's function.
    """

    rule: str
    config: dict[str, Any]
    sites: dict[str, tuple[str, str]]
    layout: str | None = None
    regularizer: Any = "vcreg"
    reported: set[str] = field(default_factory=set)

    def seen_from(self, path: str) -> Insertion:
        """Return the insertion into the module at ``path`` of a model as one into that model."""
        if not path:
            return self
        sites = {
            f"{path}{'' if name.startswith(':') else '.'}{name}": (
                f"{path}.{owner}".rstrip("."),
                key,
            )
            for name, (owner, key) in self.sites.items()
        }
        return replace(self, rule=str(at(*sites)), sites=sites)


def lost_sites(model: nn.Module) -> list[str]:
    """Return the names of sites whose module was replaced since they were inserted."""
    lost = []
    for insertion in model.__dict__.get(REGISTRY, ()):
        for name, (path, key) in insertion.sites.items():
            try:
                owner = model.get_submodule(path)
            except AttributeError:
                lost.append(name)
                continue
            if not hasattr(owner.__dict__.get("vcreg_sites"), key):
                lost.append(name)
    return lost


def _present(model: nn.Module, insertion: Insertion) -> list[LiveSite]:
    """Return the live sites of an insertion that are still there."""
    found = []
    for path, key in insertion.sites.values():
        try:
            table = model.get_submodule(path).__dict__.get("vcreg_sites")
        except AttributeError:  # its module was replaced, which is reported by itself
            continue
        if isinstance(site := getattr(table, key, None), LiveSite):
            found.append(site)
    return found


def watch_sites(model: nn.Module) -> None:
    """Warn once, by name, of sites that were lost before a training forward."""
    if not model.training or torch.compiler.is_compiling():
        return
    insertions = model.__dict__.get(REGISTRY, ())
    watch = watch_of(model)
    if watch is None:  # a copy, or loaded
        watch = watch_steps(model, [site for each in insertions for site in _present(model, each)])
    watch.look_for_unread()
    told = set().union(*(insertion.reported for insertion in insertions))
    fresh = [name for name in lost_sites(model) if name not in told]
    if not fresh:
        return
    for insertion in insertions:
        insertion.reported.update(fresh)
    warnings.warn(
        f"VCReg no longer acts at {', '.join(fresh)}: the modules were replaced after insert (as "
        "reset_classifier and convert_sync_batchnorm do). Call vcreg_fx.remove(model), then insert "
        "again.",
        stacklevel=3,
    )
