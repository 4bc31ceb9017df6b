"""Install planned sites: work out every new class, then change the modules, all or none."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace

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

EDITS = "vcreg_edits"  # the attribute of a rewritten module that lists its edits


def install(
    model: nn.Module,
    sites: Sequence[Site],
    edits: Sequence[Edit],
    recording: Recording,
    insertion: Insertion,
    config: VCRegConfig,
    penalize: Penalize | None,
    positions: Mapping[str, Positions],
) -> dict[str, LiveSite]:
    """Rewrite the modules that own ``sites``, in place.

    **Arguments:**

    - `sites`, `edits`: the planned sites, and what each asks of its module.
    - `recording`: the recording they were planned on.
    - `insertion`: what to remember of this insertion.
    - `config`: what to apply at the sites.
    - `penalize`: what to apply instead of VCReg, if anything.
    - `positions`: which positions are samples, by the names of sites where not all may be.

    **Returns:** the live sites, by name.

    **Raises:** `InsertionError` if a site is taken, or a forward cannot be rewritten; nothing has
    been changed then.
    """
    demeans = config.demean == "activations"
    edits = [replace(edit, demeans=demeans) for edit in edits]
    by_path: dict[str, list[Edit]] = {"": []}
    for site, edit in zip(sites, edits, strict=True):
        if demeans and not site.shape:
            raise InsertionError(
                f"{site.name}: the model could not be recorded, so the number of channels is "
                'unknown, and with it the running mean of demean="activations". Pass '
                'example_inputs=, or use demean="statistics".'
            )
        by_path.setdefault(site.path, []).append(edit)
    classes = {}
    for path, added in by_path.items():
        module = model.get_submodule(path)
        present: tuple[Edit, ...] = module.__dict__.get(EDITS, ())
        check_uncovered(module)
        _check_free(module, present, added)
        original = original_class(module)
        every = [*(edit.found_in(recording) for edit in present), *added]
        forward = build_forward(original.forward, every)
        classes[path] = rewritten_class(original, forward, not path or REGISTRY in module.__dict__)
    _swap_classes(model, classes)
    live = {}
    for site, edit in zip(sites, edits, strict=True):
        made = LiveSite(
            site.name, site.path, site.position, site.layout, site.channels, config,
            clone=site.clone is not None, penalize=penalize,
        )  # fmt: skip
        made.positions = positions.get(site.name)
        _attach(model.get_submodule(site.path), made, edit, site.dtype)
        live[site.name] = made
    model.__dict__.setdefault(REGISTRY, []).append(insertion)
    masks = {id(p.masks): p.masks for p in positions.values() if p.masks is not None}
    if masks:
        model.__dict__[MASKS] = [*model.__dict__.get(MASKS, ()), *masks.values()]
    watch_steps(model, live_sites(model))
    return live


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


def _attach(module: nn.Module, live: LiveSite, edit: Edit, dtype: torch.dtype) -> None:
    module.__dict__.setdefault(TABLE, SiteTable())
    setattr(module.__dict__[TABLE], edit.key, live)
    module.__dict__[EDITS] = (*module.__dict__.get(EDITS, ()), edit.detached())
    if edit.buffer is not None:
        near = next(module.parameters(), None)
        device = near.device if near is not None else torch.device("cpu")
        kept = torch.float64 if dtype == torch.float64 else torch.float32
        module.register_buffer(edit.buffer, torch.zeros(live.channels, dtype=kept, device=device))


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


def has_inside_site(module: nn.Module) -> bool:
    """Whether a site lies in the middle of the module's own forward."""
    return any(edit.place is not None for edit in module.__dict__.get(EDITS, ()))


@contextmanager
def suspended(model: nn.Module) -> Iterator[None]:
    """Let the model be as it was before `insert`, as far as nothing of its output depends on it.

    Modules whose activations are demeaned in eval mode too stay as they are, and so do those whose
    class was changed again since.
    """
    changed = []
    for module in model.modules():
        demeans = any(edit.demeans for edit in module.__dict__.get(EDITS, ()))
        if is_rewritten(module) and not is_covered(module) and not demeans:
            changed.append((module, type(module)))
    try:
        for module, _ in changed:
            object.__setattr__(module, "__class__", original_class(module))
        yield
    finally:
        for module, rewritten in changed:
            object.__setattr__(module, "__class__", rewritten)
