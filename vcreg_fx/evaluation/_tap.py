"""Read tensors in the middle of a module's forward, where no hook can see them."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from placement_rules import Site, at

from ..site import LiveSite, live_sites, replace_site
from ..surgery import plan, uninstall


class Tap:
    """Stands where a live site would: keeps the tensor that passes, and changes nothing."""

    def __init__(self, site: LiveSite, kept: list[Tensor]) -> None:
        self.name, self.layout = site.name, site.layout
        self.less, self.absent = site.less, site.absent  # what is demeaned there goes on being so
        self.kept = kept

    def active(self, h: Tensor, training: bool) -> bool:
        """Look at every tensor, in eval mode too."""
        return True

    def reference_mean(self, h: Tensor) -> None:
        """Leave the mean alone; a tap needs none."""

    def regularize(self, h: Tensor, mean: Tensor | None) -> Tensor:
        """Keep the tensor, as it is before anything writes to it."""
        self.kept.append(h.clone())
        return h


def tapped(
    model: nn.Module,
    sites: Sequence[Site],
    found: dict[str, list[Tensor]],
    example: tuple[tuple[Any, ...], dict[str, Any]],
) -> nn.Module:
    """Return a copy of a model that keeps what passes at sites in the middle of forwards.

    **Arguments:**

    - `sites`: planned sites of the model.
    - `found`: site name → the list that its tensors are added to.
    - `example`: arguments of one forward call, positional and named.
    """
    model = copy.deepcopy(model)
    _uninstall_silent(model)
    present = {site.name for site in live_sites(model)}
    if missing := [site.name for site in sites if site.name not in present]:
        args, kwargs = example
        planned = plan(model, at(*missing), example_inputs=args, example_kwargs=kwargs)
        planned.apply(demean="activations")  # acts in eval mode too; its mean there is 0
    live = {site.name: site for site in live_sites(model)}
    for site in sites:
        replace_site(model, site.name, Tap(live[site.name], found[site.name]))
    return model


def _uninstall_silent(model: nn.Module) -> None:
    """Take VCReg out of the modules in which it does nothing in eval mode.

    Their rewritten forwards would step aside there, and a tap would see nothing.
    """
    demeaned: dict[str, bool] = {}
    for site in live_sites(model):
        here = site.config.demean == "activations"
        demeaned[site.path] = demeaned.get(site.path, False) or here
    for path, acts in demeaned.items():
        if not acts:
            uninstall(model.get_submodule(path))
