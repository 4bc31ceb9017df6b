"""Which sites a model has: what VCReg leaves at its modules, and what is read from that.

Sites lie outside the module tree, in a table at the module that owns them; the model that VCReg was
inserted into lists the insertions.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DataParallel, DistributedDataParallel

from placement_rules import at
from placement_rules._torch import children_of

from .._errors import InsertionError
from ._calling import outside_torch
from ._live import LiveSite
from ._steps import watch_of, watch_steps

TABLE = "vcreg_sites"  # the attribute of a rewritten module that holds its live sites
REGISTRY = "vcreg_insertions"  # the attribute of a model that lists what was inserted into it


class SiteTable:
    """The live sites of one module, as attributes; outside the module tree."""

    def __init__(self, **sites: Any) -> None:
        self.__dict__.update(sites)


@dataclass
class Insertion:
    """One call of ``insert``: what it was asked for, and the sites it made.

    **Attributes:**

    - `rule`: the rule as a string.
    - `config`: the `VCRegConfig`'s fields.
    - `sites`: the names of the sites.
    - `layout`: the layout that was given, if any.
    - `regularizer`: its name, or the user's function.
    """

    rule: str
    config: dict[str, Any]
    sites: list[str]
    layout: str | None = None
    regularizer: Any = "vcreg"
    reported: set[str] = field(default_factory=set)

    def seen_from(self, path: str) -> Insertion:
        """Return the insertion into the module at ``path`` of a model as one into that model."""
        if not path:
            return self
        sites = [f"{path}{'' if name.startswith(':') else '.'}{name}" for name in self.sites]
        return replace(self, rule=str(at(*sites)), sites=sites)


def place_of(name: str) -> tuple[str, str]:
    """Return the path of the module that owns a site, and the site's key in its table."""
    return name.partition(":")[0], key_of(name)


def key_of(name: str) -> str:
    """Return a site's name among those of its module, as an identifier."""
    return re.sub(r"\W+", "_", name.partition(":")[2]).strip("_")


def table_of(module: nn.Module) -> dict[str, LiveSite]:
    """Return a module's live sites by key; empty if it has none."""
    table = module.__dict__.get(TABLE)
    return {} if table is None else dict(vars(table))


def is_rewritten(module: nn.Module) -> bool:
    """Whether the module's class is a generated one, or was derived from one."""
    return hasattr(type(module), "vcreg_original")


def live_sites(model: nn.Module) -> list[LiveSite]:
    """Return the live sites of a model and its modules, in the order of their insertion."""
    model = unwrapped(model)
    found = {
        (path, key): site
        for path, module in model.named_modules()
        for key, site in table_of(module).items()
    }
    order = [place_of(name) for insertion in insertions(model) for name in insertion.sites]
    places = dict.fromkeys([*(place for place in order if place in found), *found])
    return [found[place] for place in places]


def carry_insertions(told: Sequence[Insertion], other: nn.Module) -> None:
    """Let what was inserted into a model be known of an exported form of it, too."""
    other.__dict__[REGISTRY] = list(told)


def insertions(model: nn.Module) -> list[Insertion]:
    """Return what was inserted into a model, or into a module of it, as seen from the model.

    In order; first what was inserted into the model itself.
    """
    found: list[Insertion] = []
    seen: set[str] = set()
    for path, module in unwrapped(model).named_modules():
        for insertion in module.__dict__.get(REGISTRY, ()):
            told = insertion.seen_from(path)
            if not path or not seen.issuperset(told.sites):  # exported forms know of all already
                found.append(told)
                seen.update(told.sites)
    return found


def named_sites(model: nn.Module) -> list[tuple[str, LiveSite]]:
    """Return the live sites with their names as seen from the model, in order.

    A site keeps the name that it was inserted with, which was another one where it was inserted
    through a module of the model. In an exported form the sites are modules of their own.
    """
    model = unwrapped(model)
    names = {
        id(s): f"{path}:{s.name.partition(':')[2]}"
        for path, module in model.named_modules()
        for s in table_of(module).values()
        if is_rewritten(module)
    }
    return [(names.get(id(s), s.name), s) for s in live_sites(model)]


def unwrapped(model: nn.Module) -> nn.Module:
    """Return the model inside of DistributedDataParallel, DataParallel and a compiled form."""
    while True:
        if isinstance(model, (DistributedDataParallel, DataParallel)):
            model = model.module
        elif isinstance(inner := children_of(model).get("_orig_mod"), nn.Module):
            model = inner
        else:
            return model


class StandIn:
    """Acts in the place of a live site: the activation becomes ``act(activation)``.

    **Arguments:**

    - `site`: whose place it takes. What is demeaned there goes on being demeaned by it.
    - `always`: whether to act outside of training, too.
    """

    def __init__(
        self, site: LiveSite, act: Callable[[Tensor], Tensor], always: bool = False
    ) -> None:
        self.name, self.layout = site.name, site.layout
        self.less, self.absent, self.demeaned = site.less, site.absent, site.demeaned
        self._act, self._always = act, always

    def active(self, h: Tensor, training: bool) -> bool:
        """Say whether to act."""
        return training or self._always

    def reference_mean(self, h: Tensor) -> None:
        """Leave the mean to `act`."""

    def regularize(self, h: Tensor, reference: Tensor | None) -> Tensor:
        """Return what becomes of the activation."""
        return self._act(h)


def replace_site(model: nn.Module, name: str, stand_in: Any) -> None:
    """Put another object in the place of a live site; the rewritten forward will call it.

    **Raises:** `InsertionError` if the model has no such site.
    """
    for module in model.modules():
        for key, site in table_of(module).items():
            if site.name == name:
                setattr(module.__dict__[TABLE], key, stand_in)
                return
    raise InsertionError(f"The model has no site {name}.")


# Sites that were lost ---------------------------------------------------------------------------


def _present(model: nn.Module, name: str) -> Any:
    """Return what stands at a site's place; None where its module was replaced."""
    path, key = place_of(name)
    try:
        return getattr(model.get_submodule(path).__dict__.get(TABLE), key, None)
    except AttributeError:
        return None


def watch_sites(model: nn.Module) -> None:
    """Warn once, by name, of sites that were lost before a training forward."""
    if not model.training or torch.compiler.is_compiling():
        return
    insertions = model.__dict__.get(REGISTRY, ())
    watch = watch_of(model)
    if watch is None:  # a copy, or loaded
        present = [_present(model, name) for each in insertions for name in each.sites]
        watch = watch_steps(model, [site for site in present if isinstance(site, LiveSite)])
    watch.look_for_unread()
    told = set().union(*(insertion.reported for insertion in insertions))
    names = [name for each in insertions for name in each.sites if name not in told]
    fresh = [name for name in names if _present(model, name) is None]
    if not fresh:
        return
    for insertion in insertions:
        insertion.reported.update(fresh)
    warnings.warn(
        f"VCReg no longer acts at {', '.join(fresh)}: the modules were replaced after insert (as "
        "reset_classifier and convert_sync_batchnorm do). Call vcreg_fx.remove(model), then insert "
        "again.",
        stacklevel=outside_torch(),
    )
