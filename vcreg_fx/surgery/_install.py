"""Install planned sites: work out every new class, then change the modules, all or none."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import fx, nn
from torch.nn.parallel import DataParallel, DistributedDataParallel

from placement_rules import Recording, Site
from placement_rules._torch import buffers_of, children_of, unsaved_buffers_of

from .._config import VCRegConfig
from .._errors import InsertionError
from .._live import LiveSite
from .._positions import MASKS, Positions
from .._steps import watch_steps
from ..regularizers import Penalize
from ._class import SiteTable, is_covered, is_rewritten, original_class, rewritten_class, table_of
from ._forward import Edit, build_forward
from ._inside import Place
from ._symbolic import TABLE
from ._watch import REGISTRY, Insertion

EDITS = "vcreg_edits"  # the attribute of a rewritten module that lists its edits


def install(
    model: nn.Module,
    sites: Sequence[Site],
    places: Mapping[str, Place],
    recording: Recording,
    insertion: Insertion,
    config: VCRegConfig,
    penalize: Penalize | None = None,
    positions: Mapping[str, Positions] | None = None,
) -> nn.Module:
    """Rewrite the modules that own ``sites``, in place.

    **Arguments:**

    - `sites`: the planned sites.
    - `places`: where in the source those in the middle of forwards are, by name.
    - `recording`: the recording they were planned on.
    - `insertion`: what to remember of this insertion.
    - `config`: what to apply at the sites.
    - `penalize`: what to apply instead of VCReg, if anything.
    - `positions`: which positions are samples, by the names of sites where not all may be.

    **Raises:** `InsertionError` if a site is taken, or a forward cannot be rewritten; nothing has
    been changed then.
    """
    edits: dict[str, list[Edit]] = {"": []}
    for site in sites:
        if config.demean == "activations" and not site.shape:
            raise InsertionError(
                f"{site.name}: the model could not be recorded, so the number of channels is "
                'unknown, and with it the running mean of demean="activations". Pass '
                'example_inputs=, or use demean="statistics".'
            )
        edits.setdefault(site.path, []).append(Edit.of(site, config, places.get(site.name)))
    classes = {}
    for path, added in edits.items():
        module = model.get_submodule(path)
        present: tuple[Edit, ...] = module.__dict__.get(EDITS, ())
        check_uncovered(module)
        _check_free(module, present, added)
        original = original_class(module)
        every = [*(edit.found_in(recording) for edit in present), *added]
        forward = build_forward(original.forward, every)
        classes[path] = rewritten_class(original, forward, not path or REGISTRY in module.__dict__)
    _swap_classes(model, classes)
    for site in sites:
        edit = Edit.of(site, config, places.get(site.name)).detached()
        live = _attach(model.get_submodule(site.path), site, edit, config, penalize)
        live.positions = (positions or {}).get(site.name)
    model.__dict__.setdefault(REGISTRY, []).append(insertion)
    masks = {id(p.masks): p.masks for p in (positions or {}).values() if p.masks is not None}
    if masks:
        model.__dict__[MASKS] = [*model.__dict__.get(MASKS, ()), *masks.values()]
    watch_steps(model, live_sites(model))
    return model


def _check_free(module: nn.Module, present: Sequence[Edit], added: Sequence[Edit]) -> None:
    if isinstance(module, fx.GraphModule) and added:
        raise InsertionError(
            f"{added[0].name} lies in an fx.GraphModule, whose code is generated anew at every "
            "recompile. Insert into the model it was traced from."
        )
    taken = {edit.key for edit in present}
    for edit in added:
        if edit.key in taken:
            raise InsertionError(
                f"{edit.name} has VCReg already. vcreg_fx.remove(model) takes it out; "
                "vcreg_fx.sites(model) changes its coefficients."
            )
        if edit.buffer is not None and hasattr(module, edit.buffer):
            raise InsertionError(f"{edit.name}: the module has an attribute {edit.buffer} already.")


def _swap_classes(model: nn.Module, classes: dict[str, type[nn.Module]]) -> None:
    done: list[tuple[nn.Module, type[nn.Module]]] = []
    for path, new_class in classes.items():
        module = model.get_submodule(path)
        before = type(module)
        try:
            object.__setattr__(module, "__class__", new_class)
        except TypeError as error:
            for changed, old in done:
                object.__setattr__(changed, "__class__", old)
            raise InsertionError(
                f"The class of {path or 'the model'} ({before.__name__}) cannot be changed: "
                f"{error}. Use a rule that selects another module."
            ) from error
        done.append((module, before))


def _attach(
    module: nn.Module, site: Site, edit: Edit, config: VCRegConfig, penalize: Penalize | None
) -> LiveSite:
    live = LiveSite(
        site.name, site.path, site.position, site.layout, site.channels, config,
        clone=site.clone is not None, penalize=penalize,
    )  # fmt: skip
    module.__dict__.setdefault(TABLE, SiteTable())
    setattr(module.__dict__[TABLE], edit.key, live)
    module.__dict__[EDITS] = (*module.__dict__.get(EDITS, ()), edit)
    if edit.buffer is not None:
        module.register_buffer(edit.buffer, _zeros(module, site))
    return live


def check_uncovered(module: nn.Module) -> None:
    """Refuse a module whose class was changed again after VCReg's.

    **Raises:** `InsertionError` that says what to undo first.
    """
    if is_covered(module):
        raise InsertionError(
            f"The class of a {type(module).__name__} was changed after VCReg was inserted (as "
            "parametrizations, weight_norm and fully_shard do). Undo that first: "
            "torch.nn.utils.parametrize.remove_parametrizations, for example."
        )


def uninstall(module: nn.Module) -> None:
    """Give a rewritten module its own class back."""
    if not is_rewritten(module):
        if table_of(module):
            raise InsertionError(
                "VCReg is part of this graph module, as nodes. Remove it from the model that the "
                "graph was made from, and trace that."
            )
        return
    check_uncovered(module)
    for edit in module.__dict__.pop(EDITS, ()):
        if edit.buffer is not None:
            del buffers_of(module)[edit.buffer]
            unsaved_buffers_of(module).discard(edit.buffer)
    for name in (TABLE, REGISTRY, MASKS):
        module.__dict__.pop(name, None)
    object.__setattr__(module, "__class__", original_class(module))


def _zeros(module: nn.Module, site: Site) -> torch.Tensor:
    near = next(module.parameters(), None)
    device = near.device if near is not None else torch.device("cpu")
    dtype = torch.float64 if site.dtype == torch.float64 else torch.float32
    return torch.zeros(site.channels, dtype=dtype, device=device)


def live_sites(model: nn.Module) -> list[LiveSite]:
    """Return the live sites of a model and its modules, in the order of their insertion."""
    model = unwrapped(model)
    found = {
        (path, key): site
        for path, module in model.named_modules()
        for key, site in table_of(module).items()
    }
    order = [place for insertion in insertions(model) for place in insertion.sites.values()]
    places = dict.fromkeys([*(place for place in order if place in found), *found])
    return [found[place] for place in places]


def has_inside_site(module: nn.Module) -> bool:
    """Whether a site lies in the middle of the module's own forward."""
    return any(edit.inside for edit in module.__dict__.get(EDITS, ()))


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
            if not path or not told.sites.keys() <= seen:  # exported forms know of all already
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
