"""Install planned sites: work out every new class, then change the modules, all or none."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import fx, nn

from placement_rules import Recording, Site
from placement_rules._torch import buffers_of, unsaved_buffers_of

from .._errors import InsertionError
from ..gradient import Penalize, VCRegConfig
from ..site import (
    MASKS,
    REGISTRY,
    TABLE,
    Insertion,
    LiveSite,
    Positions,
    SiteTable,
    is_rewritten,
    live_sites,
    table_of,
    watch_steps,
)
from ._class import is_covered, original_class, rewritten_class
from ._forward import Edit, build_forward
from ._inside import Place

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


def has_inside_site(module: nn.Module) -> bool:
    """Whether a site lies in the middle of the module's own forward."""
    return any(edit.inside for edit in module.__dict__.get(EDITS, ()))
