"""Time what stands at the sites alone: a step's other work does not drown it."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from placement_rules import at
from placement_rules._torch import room_to_compile

from .._shared.tables import markdown_table
from ..site import StandIn, replace_site
from ..surgery import insert, sites
from ._result import Result, spread
from ._step import Clock, Floor, Quartiles, Step, begin, quartiles
from ._variants import IDENTITY, VARIANTS, added_loss, chosen_variants, make_variant

_REPEATS = 3  # of each timing, of which the fastest counts
_FLOOR = "floor"  # what stands for it among variants


@dataclass(frozen=True)
class SiteKind:
    """Sites of a model that are alike.

    **Attributes:**

    - `first`, `count`: the name of the first, and how many there are.
    - `shape`, `strides`, `layout`: of the activation, in a training step.
    - `grad_strides`: of the gradient that arrives there.
    """

    first: str
    count: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    grad_strides: tuple[int, ...]
    layout: str

    @property
    def size(self) -> tuple[int, int]:
        """The number of samples and of channels: n, d."""
        n = 1
        for length, letter in zip(self.shape, self.layout, strict=True):
            n *= 1 if letter == "C" else length
        return n, self.shape[self.layout.index("C")]


@dataclass(frozen=True)
class SitesRow:
    """One variant at the sites of one model. Quartiles are over the rounds.

    **Attributes:**

    - `variant`: its name.
    - `seconds`: what it adds, at all sites together: medians.
    - `floors`: that over the two products of all sites.
    - `by_kind`: the medians of the same for each kind of sites.
    - `share`: `seconds` over a step of the model itself.
    """

    variant: str
    seconds: float
    floors: Quartiles
    by_kind: tuple[float, ...]
    share: float


@dataclass(frozen=True)
class SitesOfModel:
    """What was found at the sites of one model.

    **Attributes:**

    - `model`, `batch`: what was timed.
    - `step`: seconds of a step of the model itself, the median of a few.
    - `floor`: seconds of the two products of all sites, the median.
    - `kinds`, `rows`: the kinds of sites, and a row a variant.
    """

    model: str
    batch: int
    step: float
    floor: float
    kinds: tuple[SiteKind, ...]
    rows: tuple[SitesRow, ...]

    def table(self) -> tuple[list[str], list[list[str]]]:
        """Return the head and the rows of a table."""
        kinds = [f"{kind.count} × {' × '.join(map(str, kind.shape))}" for kind in self.kinds]
        body = [
            [
                row.variant,
                f"{row.share:.1%}",
                f"{row.seconds * 1e3:.1f} ms",
                spread(row.floors, 2),
                *(f"{floors:.2f}" for floors in row.by_kind),
            ]
            for row in self.rows
        ]
        return ["variant", "of a step", "time", "overhead / floor (quartiles)", *kinds], body


@dataclass(frozen=True)
class SitesResult(Result):
    """What was found at the sites alone, and on what."""

    models: tuple[SitesOfModel, ...]

    def parts(self) -> Iterator[str]:
        """Yield the head, and a table a model."""
        costs = [
            (found.model, row.share, row.floors[1])
            for found in self.models
            for row in found.rows
            if row.variant == "ours"
        ]
        yield from self.head("At the sites alone", costs, "", "vcreg-fx bench --sites")
        for found in self.models:
            yield f"## {found.model}, batch {found.batch}"
            yield (
                f"A step of the model itself takes {found.step * 1e3:.0f} ms; the two products of "
                f"all sites, the floor, {found.floor * 1e3:.1f} ms, {found.floor / found.step:.1%} "
                "of it."
            )
            yield markdown_table(*found.table())


def bench_sites(
    models: Mapping[str, nn.Module],
    inputs: Mapping[str, Tensor],
    *,
    rule: str = "blocks",
    variants: Iterable[str] = VARIANTS,
    dtype: str = "float32",
    device: str | torch.device = "cpu",
    rounds: int = 9,
    compile: bool = False,  # noqa: A002 (the name of what it does)
    keep_memory: bool = False,
    progress: Callable[[str], None] = lambda _: None,
) -> SitesResult:
    """Time each variant at the sites of each model, and nothing else of a step.

    At each kind of sites, an identity with the variant at its output goes forward and backward on
    noise of the shape and strides that the site has in a training step; so does a plain one, whose
    time is subtracted. The two products zᵀz and z G of contiguous matrices are timed beside them.

    **Arguments:** as for `bench`; ``"float32"`` and ``"amp"`` are the types.

    **Raises:** `BenchError` for an unknown variant; what `vcreg_fx.plan` raises.
    """
    place = torch.device(device)
    begun = begin(place, keep_memory, dtype=dtype, rule=rule, rounds=rounds, compiled=compile)
    chosen = chosen_variants(variants)[1:]
    found = []
    for name, given in models.items():
        model, batch = copy.deepcopy(given).to(place).train(), inputs[name].to(place)
        progress(f"{name}: a step")
        kinds = site_kinds(model, batch, rule, dtype)
        run: Any = torch.compile(model) if compile else model
        clock, whole = Clock(place), Step(IDENTITY, run, model, batch, dtype)
        step = quartiles([sum(whole.timed(clock)) for _ in range(5)][1:])[1]
        timed = []
        for kind in kinds:
            progress(f"{name}: {kind.count} sites as {kind.first}")
            with room_to_compile(8 * (1 + len(chosen))) if compile else nullcontext():
                timed.append(_Timed(kind, chosen, dtype, place, compile).rounds(rounds))
        found.append(_of_model(name, len(batch), step, kinds, timed, chosen))
    return SitesResult(*begun, tuple(found))


def site_kinds(model: nn.Module, batch: Tensor, rule: str, dtype: str) -> tuple[SiteKind, ...]:
    """Return the kinds of sites of a model, as one training step passes them."""
    variant = make_variant(IDENTITY, model, rule, (batch,))
    insert(variant, rule, example_inputs=(batch,))
    seen: dict[str, list[Any]] = {}

    def noting(name: str) -> Callable[[Tensor], Tensor]:
        def note(h: Tensor) -> Tensor:
            seen[name] = [tuple(h.shape), h.stride(), None]
            h.register_hook(lambda grad: seen[name].__setitem__(2, grad.stride()))
            return h.view_as(h)

        return note

    layouts = {site.name: str(site.layout) for site in sites(variant)}
    for site in sites(variant):
        replace_site(variant, site.name, StandIn(site, noting(site.name)))
    Step(IDENTITY, variant, variant, batch, dtype).run()
    together: dict[tuple[Any, ...], list[str]] = {}
    for name, (shape, strides, arriving) in seen.items():
        kind = (shape, strides, arriving or strides, layouts[name])
        together.setdefault(kind, []).append(name)
    return tuple(SiteKind(names[0], len(names), *kind) for kind, names in together.items())


class _Here(nn.Module):
    """Returns its input; what is timed stands at its output."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))  # tells variants of a device and a type

    def forward(self, h: Tensor) -> Tensor:
        return h.view_as(h)


class _Timed:
    """The variants at one kind of sites, ready to be timed."""

    def __init__(
        self, kind: SiteKind, variants: list[str], dtype: str, device: torch.device, compiled: bool
    ) -> None:
        self._clock, self._dtype = Clock(device), dtype
        self._h, self._grad = (
            torch.empty_strided(kind.shape, strides, device=device).normal_()
            for strides in (kind.strides, kind.grad_strides)
        )
        self._h.requires_grad_()
        plain = nn.Sequential(_Here()).to(device).train()
        rule, example = at("0:output"), (self._h.detach(),)
        self._models = {
            name: make_variant(name, plain, rule, example, layout=kind.layout)
            for name in (IDENTITY, *variants)
        }
        self._runs: dict[str, Any] = {
            name: torch.compile(model) if compiled else model
            for name, model in self._models.items()
        }
        factors = torch.bfloat16 if dtype == "amp" else torch.float32
        self._floor = Floor([kind.size], factors, device)

    def rounds(self, count: int) -> list[dict[str, float]]:
        """Return, for each round, what each variant adds, and the floor, in seconds."""
        order, found = random.Random(0), []
        for _ in range(count + 1):
            added = {}
            for name in order.sample(list(self._models), len(self._models)):
                if name != IDENTITY:
                    base = self._fastest(IDENTITY)
                    added[name] = self._fastest(name) - base
            added[_FLOOR] = min(self._floor.timed(self._clock) for _ in range(_REPEATS))
            found.append(added)
        return found[1:]

    def _fastest(self, name: str) -> float:
        return min(self._clock.of(lambda: self._step(name)) for _ in range(_REPEATS))

    def _step(self, name: str) -> None:
        device = self._h.device.type
        amp = torch.autocast(device, torch.bfloat16) if self._dtype == "amp" else nullcontext()
        with amp:
            out = self._runs[name](self._h)
        loss = added_loss(name, self._models[name])
        if isinstance(loss, Tensor):
            torch.autograd.grad((out, loss), self._h, (self._grad, None))
        else:
            torch.autograd.grad(out, self._h, self._grad)


def _of_model(
    name: str,
    batch: int,
    step: float,
    kinds: tuple[SiteKind, ...],
    timed: list[list[dict[str, float]]],
    variants: list[str],
) -> SitesOfModel:
    def at_all_sites(what: str) -> list[float]:
        return [
            sum(kind.count * seen[what] for kind, seen in zip(kinds, turn, strict=True))
            for turn in zip(*timed, strict=True)
        ]

    floors, rows = at_all_sites(_FLOOR), []
    for variant in variants:
        added = at_all_sites(variant)
        by_kind = tuple(
            quartiles([seen[variant] / seen[_FLOOR] for seen in turns])[1] for turns in timed
        )
        over = quartiles([a / b for a, b in zip(added, floors, strict=True)])
        seconds = quartiles(added)[1]
        rows.append(SitesRow(variant, seconds, over, by_kind, seconds / step))
    return SitesOfModel(name, batch, step, quartiles(floors)[1], kinds, tuple(rows))
