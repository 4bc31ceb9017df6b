"""Read the tensors that pass at a model's sites: by hooks, and in the middle of forwards."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from placement_rules import PlacementError, Site, at, get_leaf

from ..site import StandIn, live_sites, replace_site
from ..surgery import plan, uninstall


@contextmanager
def captured(model: nn.Module, sites: Sequence[Site]) -> Iterator[dict[str, list[Tensor]]]:
    """Collect the tensors at sites while the model runs.

    **Arguments:**

    - `model`: the model, or a copy of it.
    - `sites`: planned sites; each at a module's output or input.

    **Returns:** a context that yields ``{site name: [one tensor a call]}``, filled by forward
    calls.

    **Raises:** `PlacementError` for a site in the middle of a forward, which no hook can see.
    """
    found: dict[str, list[Tensor]] = {site.name: [] for site in sites}
    if inside := [site.name for site in sites if site.form == "inside"]:
        raise PlacementError(
            f"{', '.join(inside)} lies in the middle of a module's forward, where its tensor "
            'cannot be captured. Use a rule of module outputs and inputs, such as "blocks".'
        )

    def keeper(site: Site) -> Callable[[Tensor], None]:
        copies = site.clone is not None  # the model writes to it further down
        return lambda h: found[site.name].append(h.clone() if copies else h)

    with ExitStack() as hooks:
        for site in sites:
            hooks.enter_context(hook(model, site, keeper(site)))
        yield found


def hook(model: nn.Module, site: Site, note: Callable[[Tensor], None]) -> RemovableHandle:
    """Call a function with the tensor at a module's output or input, whenever one passes."""
    module, leaf = model.get_submodule(site.path), site.leaf
    if site.position == "output":
        return module.register_forward_hook(lambda _module, _args, out: note(get_leaf(out, leaf)))
    place = 0 if isinstance(leaf[0], int) else 1  # among arguments by position, or by name
    return module.register_forward_pre_hook(
        lambda _module, *given: note(get_leaf(given[place], leaf)), with_kwargs=True
    )


@contextmanager
def tapped(
    model: nn.Module,
    sites: Sequence[Site],
    example: tuple[tuple[Any, ...], dict[str, Any]],
) -> Iterator[tuple[nn.Module, dict[str, list[Tensor]]]]:
    """Collect the tensors at any sites, in eval mode: the model runs, or a copy of it.

    **Arguments:**

    - `sites`: planned sites of the model.
    - `example`: arguments of one forward call, positional and named.

    **Returns:** a context that yields what to run, and ``{site name: [one tensor a call]}``.
    """
    inside = [site for site in sites if site.form == "inside"]
    kept: dict[str, list[Tensor]] = {site.name: [] for site in inside}
    running = _copy_that_keeps(model, inside, kept, example) if inside else model
    with captured(running, [site for site in sites if site.form != "inside"]) as found:
        yield running, {**found, **kept}


def _copy_that_keeps(
    model: nn.Module,
    sites: Sequence[Site],
    kept: dict[str, list[Tensor]],
    example: tuple[tuple[Any, ...], dict[str, Any]],
) -> nn.Module:
    """Return a copy of a model with something at each site that keeps what passes."""
    model = copy.deepcopy(model)
    _uninstall_silent(model)
    present = {site.name for site in live_sites(model)}
    if missing := [site.name for site in sites if site.name not in present]:
        args, kwargs = example
        planned = plan(model, at(*missing), example_inputs=args, example_kwargs=kwargs)
        planned.apply(demean="activations")  # acts in eval mode too; its mean there is 0
    live = {site.name: site for site in live_sites(model)}
    for name, tensors in kept.items():
        replace_site(model, name, StandIn(live[name], _keep_copy(tensors), always=True))
    return model


def _keep_copy(tensors: list[Tensor]) -> Callable[[Tensor], Tensor]:
    def keep(h: Tensor) -> Tensor:
        tensors.append(h.clone())  # as it is before anything writes to it
        return h

    return keep


def _uninstall_silent(model: nn.Module) -> None:
    """Take VCReg out of the modules in which it does nothing in eval mode.

    Their rewritten forwards would step aside there, and a tap would see nothing.
    """
    sites = live_sites(model)
    acting = {site.path for site in sites if site.config.demean == "activations"}
    for path in {site.path for site in sites} - acting:
        uninstall(model.get_submodule(path))
