"""A plan: the sites a rule selects in a model, worked out in full before anything changes."""

from __future__ import annotations

import dataclasses
import difflib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DataParallel, DistributedDataParallel

from placement_rules import (
    ExampleInputsError,
    Layout,
    PlacementError,
    Recording,
    RecordingError,
    Rule,
    Site,
    parse,
    record,
    resolve,
    unrecorded,
)
from placement_rules._torch import is_compiled

from .._errors import InsertionError
from .._shared.tables import align
from ..gradient import Penalize, VCRegConfig, choose
from ..site import Insertion
from ._class import set_aside
from ._forward import Edit
from ._inside import PlaceFinder, new_methods
from ._install import install
from ._samples import followed, positions_of


@dataclass(frozen=True)
class Plan:
    """What `insert` would do. Printing it shows a table.

    **Attributes:**

    - `model`: the model, unchanged.
    - `rule`: the rule.
    - `sites`: the selected sites in the order in which they are computed.
    - `recording`: the forward pass on which the rule was decided.
    - `layout`: the layout that was given, if any.
    - `edits`: what each site asks of the forward of its module.
    """

    model: nn.Module
    rule: Rule
    sites: list[Site]
    recording: Recording = field(repr=False)
    layout: Layout | None = None
    edits: tuple[Edit, ...] = field(default=(), repr=False)

    def apply(
        self,
        config: VCRegConfig | None = None,
        *,
        coefficients: Mapping[str, Mapping[str, float]] | None = None,
        regularizer: str | Penalize = "vcreg",
        **overrides: Any,
    ) -> nn.Module:
        """Insert VCReg at the planned sites, in place, and return the model.

        **Arguments:**

        - `config`: the coefficients; by default those of `VCRegConfig`.
        - `coefficients`, `regularizer`: as for `insert`.
        - `overrides`: fields of the configuration to change: ``alpha=0.32``.

        **Raises:** `InsertionError` if a site is taken already or a forward cannot be rewritten;
        the model is then as it was.
        """
        penalize, config, name = choose(regularizer, make_config(config, overrides))
        check_model(self.model)
        self._check_coefficients(coefficients or {}, config)
        names = [site.name for site in self.sites]
        layout = None if self.layout is None else str(self.layout)
        insertion = Insertion(str(self.rule), config.to_dict(), names, layout, name)
        positions = positions_of(self.model, self.recording, self.sites, config)
        with torch.inference_mode(mode=False):  # tensors made there could not be trained with
            live = install(
                self.model, self.sites, self.edits, self.recording, insertion, config, penalize,
                positions,
            )  # fmt: skip
        for name, values in (coefficients or {}).items():
            for coefficient, value in values.items():
                setattr(live[name], coefficient, value)
        return self.model

    def _check_coefficients(
        self, coefficients: Mapping[str, Mapping[str, float]], config: VCRegConfig
    ) -> None:
        names = [site.name for site in self.sites]
        for name, values in coefficients.items():
            if name not in names:
                near = difflib.get_close_matches(name, names, n=3) or names
                more = ", …" if len(near) > 3 else ""
                raise InsertionError(
                    f"coefficients names {name}, which is none of the {len(names)} sites that the "
                    f"rule {self.rule} selects. Near: {', '.join(near[:3])}{more}. The sites that "
                    "it does not name keep the coefficients of the configuration."
                )
            if extra := set(values) - {"alpha", "beta"}:
                raise InsertionError(
                    f"coefficients[{name!r}] has {sorted(extra)}; give alpha and beta."
                )
            make_config(config, dict(values))

    def explain(self, path: str) -> str:
        """Say why the module at ``path`` was, or was not, selected.

        **Raises:** `PlacementError` if the model has no such module, with near names.
        """
        paths = dict(self.model.named_modules(remove_duplicate=False))
        if path not in paths:
            near = difflib.get_close_matches(path, paths, n=3)
            hint = f" Near: {', '.join(near)}." if near else ""
            raise PlacementError(f"The model has no module {path!r}.{hint}")
        canonical = next(name for name, m in self.model.named_modules() if m is paths[path])
        also = "" if canonical == path else f" (it is the module {canonical})"
        return f"{path}{also}: {self.rule.explain(self.recording, canonical)}"

    def to_json(self) -> str:
        """Return the plan as JSON: the model's class, the rule, the sites."""
        data = {
            "model": type(self.model).__name__,
            "rule": str(self.rule),
            "sites": [site.to_dict() for site in self.sites],
        }
        return json.dumps(data, indent=2, ensure_ascii=False)

    def __repr__(self) -> str:
        """Return the table, which a notebook or an interactive session then shows."""
        return str(self)

    def __str__(self) -> str:
        """Return a table of the sites."""
        head = f"{type(self.model).__name__}: {len(self.sites)} sites for the rule {self.rule}\n"
        unseen = self.recording.what_is_unseen
        lines = [head + align(cells(self.sites)), *notes(self.sites)]
        return "\n".join([*lines, *([unseen] if unseen else []), *self._masked()])

    def _masked(self) -> list[str]:
        """Return what a reader of the plan should know of masks of padding."""
        found = followed(self.model, self.recording, self.sites)
        return [
            f"{name}: where the model is called with it, the positions it masks are left out at "
            + ("every site." if len(at) == len(self.sites) else f"{', '.join(at)}.")
            for name, at in found.items()
        ]


def plan(
    model: nn.Module,
    rule: str | Rule = "blocks",
    *,
    example_inputs: tuple[Any, ...] | None = None,
    example_kwargs: Mapping[str, Any] | None = None,
    layout: str | Layout | None = None,
) -> Plan:
    """Work out where VCReg would be inserted, without changing the model.

    **Arguments:** as for `insert`.

    **Raises:** `PlacementError`, in one of its kinds, that states the cause and the fix.
    """
    check_model(model)
    parsed, given = parse(rule), None if layout is None else Layout.parse(layout)
    try:
        recording = record(model, example_inputs, example_kwargs, prepare=set_aside)
    except (ExampleInputsError, RecordingError):
        known = None if given is None else unrecorded(model, parsed, given)
        if known is None:
            raise
        edits = tuple(Edit.of(site, None) for site in known[1])
        return Plan(model, parsed, known[1], known[0], given, edits)
    sites = resolve(recording, parsed.require(recording), given)
    for path in dict.fromkeys(site.path for site in sites):
        module = model.get_submodule(path)
        if "forward" in module.__dict__:
            raise InsertionError(
                f"The forward of {path} ({type(module).__name__}) was replaced on the instance (as "
                "accelerate's hooks do); a rewritten forward would never run. Insert before that, "
                "or use a rule that selects another module."
            )
    return Plan(model, parsed, sites, recording, given, _edits(recording, sites))


def _edits(recording: Recording, sites: list[Site]) -> tuple[Edit, ...]:
    """Find the sites in the middle of forwards in the source, and try to rewrite it there."""
    finder = PlaceFinder(recording)
    edits = [Edit.of(s, finder.find(s) if s.form == "inside" else None) for s in sites]
    inside: dict[str, list[Edit]] = {}
    for site, edit in zip(sites, edits, strict=True):
        if edit.place is not None:
            inside.setdefault(site.path, []).append(edit)
    for together in dict.fromkeys(map(tuple, inside.values())):  # once where modules are alike
        new_methods(together)
    return tuple(edits)


def make_config(config: VCRegConfig | None, overrides: dict[str, Any]) -> VCRegConfig:
    """Return the configuration with some fields changed.

    **Raises:** `TypeError` that lists the fields, if one does not exist, or if `config` is none.
    """
    if config is not None and not isinstance(config, VCRegConfig):
        raise TypeError(
            f"config={config!r} is not a VCRegConfig. Coefficients are given by name, as in "
            "alpha=0.64, beta=0.08, or as VCRegConfig(alpha=0.64, beta=0.08)."
        )
    known = [item.name for item in dataclasses.fields(VCRegConfig)]
    if unknown := sorted(set(overrides) - set(known)):
        raise TypeError(
            f"VCRegConfig has no field {', '.join(unknown)}. Its fields are: {', '.join(known)}."
        )
    return dataclasses.replace(config or VCRegConfig(), **overrides)


def check_model(model: nn.Module) -> None:
    """Refuse models wrapped in a way that rewriting cannot see through.

    **Raises:** `InsertionError` that gives the right order, or `TypeError` for what is no module.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"insert takes a torch.nn.Module, not {type(model).__name__}.")
    for path, module in model.named_modules():
        where = f"{path} is" if path else "The model is"
        name = type(module).__name__
        if isinstance(module, (DistributedDataParallel, DataParallel)):
            raise InsertionError(
                f"{where} wrapped in {name}. Insert into the model first, then wrap it: "
                "model = DistributedDataParallel(vcreg_fx.insert(model))."
            )
        if name == "OptimizedModule" or is_compiled(module):
            raise InsertionError(
                f"{where} compiled. Insert first, then compile: "
                "model = torch.compile(vcreg_fx.insert(model))."
            )
        if name in {"ScriptModule", "RecursiveScriptModule", "TopLevelTracedModule"}:
            raise InsertionError(
                f"{where} a {name}, which has no Python forward to rewrite. Insert into the "
                "model it was made from."
            )
        if any(base.__name__ == "FSDPModule" for base in type(module).__mro__):
            raise InsertionError(
                f"{where} sharded by fully_shard. Insert first, then shard: the rewritten modules "
                "are sharded as they are."
            )


def cells(sites: Sequence[Site]) -> list[tuple[str, ...]]:
    """Return a table of sites as text: its head, and a row a site."""
    rows: list[tuple[str, ...]] = [("site", "shape", "layout", "channels", "calls", "form")]
    for site in sites:
        if not site.shape:
            rows.append((site.name, "not recorded", str(site.layout), "?", "?", site.form))
            continue
        shape = " × ".join(str(size) for size in site.shape)
        form = site.form if site.clone is None else f"{site.form}, cloned"
        rows.append((site.name, shape, str(site.layout), str(site.channels), str(site.calls), form))
    return rows


def notes(sites: Sequence[Site]) -> list[str]:
    """Return what a reader of the table should know: clones, and sites with few samples."""
    found = [
        f"{site.name}: returned as a clone, because {site.clone} writes to it in place."
        for site in sites
        if site.clone is not None and site.shape
    ]
    if lost := [site.name for site in sites if not site.leads_on]:
        found.append(
            f"{', '.join(lost)}: the model's output does not depend on it, so no gradient comes "
            'back there; mode="gradient" adds nothing, mode="loss" does.'
        )
    if narrow := [site for site in sites if site.samples < site.channels]:
        batch = max(-(-site.channels * site.shape[0] // site.samples) for site in narrow)
        names = narrow[0].name if len(narrow) == 1 else f"{len(narrow)} sites"
        found.append(
            f"{names}: fewer samples than channels (n < d) in batches below {batch}; the "
            "covariance matrix then lacks full rank and is noisy."
        )
    return found
