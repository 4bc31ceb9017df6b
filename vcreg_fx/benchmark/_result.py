"""What a benchmark found: rows of medians, as data, as a table and in pictures."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from .._shared.files import write_text
from .._shared.pictures import panels, plain
from .._shared.report import to_html
from .._shared.tables import markdown_table
from ._one_site import Bias, Scaling
from ._ranks import RankRow
from ._step import Quartiles
from ._variants import IDENTITY

# Seconds of one step on an A100 at batch 128 (arXiv 2306.13292, table 8).
PAPER: Mapping[str, Mapping[str, float]] = {
    "torchvision/vit_b_32": {
        "identity": 0.223, "naive": 1.427, "Algorithm 1 as printed": 0.245, "batch norm": 0.247,
    },
    "torchvision/convnext_tiny": {
        "identity": 0.442, "naive": 2.951, "Algorithm 1 as printed": 0.471, "batch norm": 0.468,
    },
}  # fmt: skip


@dataclass(frozen=True)
class Row:
    """One variant on one model. Quartiles are lower, median and upper, over the rounds.

    **Attributes:**

    - `variant`: its name.
    - `seconds`: median of a step.
    - `ratio`, `forward`, `backward`: time over identity's in the same round.
    - `floors`: (time − identity's) / the floor, in the same round.
    - `saved`: bytes kept for backward over identity's.
    - `peak`: peak memory of a step over identity's, a ratio.
    """

    variant: str
    seconds: float
    ratio: Quartiles
    forward: float
    backward: float
    floors: Quartiles
    saved: int
    peak: float


@dataclass(frozen=True)
class ModelResult:
    """What was found on one model.

    **Attributes:**

    - `model`, `batch`: what was timed.
    - `sites`: name, n and d of each site.
    - `floor`: median seconds of the products alone.
    - `floor_share`: that over identity's step.
    - `identity_saved`, `identity_peak`: bytes.
    - `rows`: one a variant.
    - `ranks`: one a variant, where several ranks were timed.
    """

    model: str
    batch: int
    sites: list[tuple[str, int, int]]
    floor: float
    floor_share: float
    identity_saved: int
    identity_peak: int
    rows: list[Row]
    ranks: list[RankRow] = field(default_factory=list)

    def table(self) -> tuple[tuple[str, ...], list[list[str]]]:
        """Return the head and the rows of a table, with the paper's ratios in the last column."""
        paper = PAPER.get(self.model, {})
        header = (
            "variant", "step", "ratio to identity (quartiles)", "forward", "backward",
            "overhead / floor (quartiles)", "saved for backward", "peak memory",
            "ratio in the paper",
        )  # fmt: skip
        body = []
        for row in self.rows:
            first = row.variant == IDENTITY
            in_paper = f"{paper[row.variant] / paper[IDENTITY]:.2f}" if row.variant in paper else ""
            cells = [
                row.variant,
                f"{row.seconds * 1e3:.0f} ms",
                "1" if first else spread(row.ratio, 3),
                "1" if first else f"{row.forward:.3f}",
                "1" if first else f"{row.backward:.3f}",
                "" if first else spread(row.floors, 2),
                "" if first else f"{row.saved / 2**20:+.2f} MiB",
                "1" if first else f"{row.peak:.3f}",
                in_paper,
            ]
            body.append(cells)
        return header, body


@dataclass(frozen=True)
class Result(ABC):
    """What was found, and on what.

    **Attributes:**

    - `machine`: processor, versions.
    - `settings`: device, dtype, rule, rounds, whether compiled, which clock, and what
      becomes of freed memory.
    """

    machine: dict[str, str | int]
    settings: dict[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """Return plain data."""
        return asdict(self)

    def to_json(self) -> str:
        """Return it as text."""
        return json.dumps(self.to_dict(), indent=2, ensure_ascii=False) + "\n"

    def to_markdown(self) -> str:
        """Return the tables, with the paper's beside them where it has one."""
        return "\n\n".join(part for part in self.parts() if part) + "\n"

    @abstractmethod
    def parts(self) -> Iterator[str]:
        """Yield the parts of the page, the head first."""

    def head(
        self, title: str, costs: Iterable[tuple[str, float, float]], picture: str, command: str
    ) -> Iterator[str]:
        """Yield title, verdict and picture, and what was done.

        **Arguments:**

        - `costs`: of each model, what VCReg adds to a step: as a share of it, and in floors.
        """
        settings = "; ".join(f"{key} {value}" for key, value in self.settings.items())
        yield f"# {title}"
        yield "\n".join(
            f"- On {model} VCReg costs {share:.1%} of a training step: {floors:.2f} times the two "
            "matrix products that its exact gradient needs."
            for model, share, floors in costs
        )
        yield picture
        yield f"Written by `{command}`; not edited. {settings}."
        yield "\n".join(f"- {key}: {value}" for key, value in self.machine.items())


@dataclass(frozen=True)
class BenchResult(Result):
    """What was found of whole training steps, and on what.

    **Attributes:**

    - `machine`, `settings`: as in each `Result`.
    - `models`: one a model.
    - `scaling`: cost against n and d.
    - `bias`: how the estimates compare with the exact gradient.
    """

    models: list[ModelResult]
    scaling: list[Scaling] = field(default_factory=list)
    bias: list[Bias] = field(default_factory=list)

    def parts(self) -> Iterator[str]:
        """Yield the head, a table a model, and what was found at one site."""
        costs = [
            (found.model, row.ratio[1] - 1, row.floors[1])
            for found in self.models
            for row in found.rows
            if row.variant == "ours"
        ]
        picture = "![Overhead of each variant](table.png)"
        yield from self.head(self._title(), costs, picture, "vcreg-fx bench")
        for found in self.models:
            yield from _model_parts(found)
        if self.scaling:
            yield "## One site: cost against n and d"
            yield "\n".join(
                f"- {s.varied} from {s.sizes[0]:,} to {s.sizes[-1]:,} "
                f"({'d' if s.varied == 'n' else 'n'} = {s.fixed:,}): "
                f"time ∝ {s.varied}^{s.exponent:.2f}"
                for s in self.scaling
            )
            yield "![Cost against n and d](scaling.png)"
        if self.bias:
            yield from _bias_parts(self.bias)

    def _title(self) -> str:
        dtype = self.settings.get("dtype", "float32")
        types = "" if dtype == "float32" else f" in {dtype}"
        compiled = ", compiled" if self.settings.get("compiled") else ""
        return f"Results of the benchmark{types}{compiled}"


def _model_parts(found: ModelResult) -> Iterator[str]:
    d = sum(channels for _, _, channels in found.sites)
    yield f"## {found.model}, batch {found.batch}, {len(found.sites)} sites"
    yield (
        f"The floor, the two products of all sites alone, is {found.floor * 1e3:.1f} ms, "
        f"{found.floor_share:.1%} of identity's step. Identity keeps "
        f"{found.identity_saved / 2**20:.1f} MiB for backward and peaks at "
        f"{found.identity_peak / 2**20:.1f} MiB. The sites have {d:,} channels together."
    )
    yield markdown_table(*found.table())
    if found.ranks:
        yield (
            "Processes on this machine, joined by gloo, under DistributedDataParallel (wall-clock):"
        )
        header = (
            "variant", "step", "ratio to identity (quartiles)", "all-reduces of VCReg", "exchanged",
        )  # fmt: skip
        body = [
            [row.variant, f"{row.seconds * 1e3:.0f} ms", spread(row.ratio, 3), str(row.exchanges),
             f"{row.exchanged / 2**20:.1f} MiB"]
            for row in found.ranks
        ]  # fmt: skip
        yield markdown_table(header, body)


def _bias_parts(found: list[Bias]) -> Iterator[str]:
    header = (
        "estimate",
        "mean of ⟨estimate, g⟩ / ⟨g, g⟩ (standard error)",
        "‖mean − g‖ / ‖g‖",
        "root of the mean of ‖estimate − g‖² / ‖g‖²",
    )
    body = [
        [b.estimate, f"{b.projection:.3f} ({b.error:.3f})", f"{b.distance:.2f}",
         f"{b.noise:.2f}"]
        for b in found
    ]  # fmt: skip
    yield "## Estimates against the exact gradient g"
    yield (
        f"One site of 8,192 samples and 64 channels, {found[0].draws} draws each. An estimate is "
        "unbiased along g where its projection is 1."
    )
    yield markdown_table(header, body)


def spread(found: Quartiles, digits: int) -> str:
    """Return a median with its quartiles."""
    low, middle, high = found
    return f"{middle:.{digits}f} ({low:.{digits}f}–{high:.{digits}f})"


# Its files and pictures: bars for the table, and lines for the growth of the cost ----------------

_BAR, _LINE = "#2e7d8c", "#d1495b"


def write_results(result: Result, folder: Path) -> Path:
    """Write numbers, tables and pictures into a folder, and return the page that has all of them.

    ``results.json`` and ``results.md``, or ``sites.json`` and ``sites.md`` of the sites alone.
    """
    name, text = "sites", result.to_markdown()
    folder.mkdir(parents=True, exist_ok=True)
    if isinstance(result, BenchResult):
        name = "results"
        draw_table(result, folder / "table.png")
        if result.scaling:
            draw_scaling(result.scaling, folder / "scaling.png")
    (folder / f"{name}.json").write_text(result.to_json(), "utf-8")
    (folder / f"{name}.md").write_text(text, "utf-8")
    write_text(page := folder / "report.html", to_html(text, folder))
    return page


def draw_table(result: BenchResult, path: Path) -> None:
    """Draw each variant's overhead as a multiple of the floor, a panel a model."""
    count = len(result.models)
    figure, grid = panels(count, (9.6, 1.2 + 2.7 * count), columns=1)
    for axes, found in zip(grid, result.models, strict=True):
        rows = [row for row in found.rows if row.variant != IDENTITY][::-1]
        middle = [row.floors[1] for row in rows]
        spread = [
            [max(row.floors[1] - row.floors[0], 0) for row in rows],
            [max(row.floors[2] - row.floors[1], 0) for row in rows],
        ]
        axes.barh([row.variant for row in rows], middle, xerr=spread, color=_BAR, height=0.62)
        axes.axvline(1, color=_LINE, linewidth=1.5)
        for place, (row, high) in enumerate(zip(rows, spread[1], strict=True)):
            text = f"  {row.floors[1]:.2f}   (step × {row.ratio[1]:.3f})"
            axes.text(max(row.floors[1] + high, 0), place, text, va="center", fontsize=8)
        axes.set_title(
            f"{found.model}, batch {found.batch}: the floor is {found.floor_share:.1%} of a step",
            fontsize=10,
            loc="left",
        )
        right = max(row.floors[2] for row in rows) if rows else 1.0
        axes.set_xlim(min(0.0, *(row.floors[0] for row in rows), 0.0), 1.3 * max(right, 1.0))
        plain(axes)
    grid[-1].set_xlabel("overhead over identity, in floors (the two matrix products alone)")
    figure.savefig(path, dpi=110)


def draw_scaling(scaling: list[Scaling], path: Path) -> None:
    """Draw the time of one site against n and against d, with the fitted exponents."""
    figure, grid = panels(len(scaling), (9.6, 3.8))
    for axes, found in zip(grid, scaling, strict=True):
        milliseconds = [seconds * 1e3 for seconds in found.seconds]
        middle = len(found.sizes) // 2
        fitted = [
            milliseconds[middle] * (size / found.sizes[middle]) ** found.exponent
            for size in found.sizes
        ]
        axes.loglog(found.sizes, fitted, "--", color=_LINE, linewidth=1, label="fit")
        axes.loglog(found.sizes, milliseconds, "o", color=_BAR, label="measured")
        axes.set_xticks(found.sizes, [f"{size:,}" for size in found.sizes], fontsize=8)
        axes.minorticks_off()
        axes.legend(frameon=False)
        other = "d" if found.varied == "n" else "n"
        axes.set_xlabel(f"{found.varied} ({other} = {found.fixed:,})")
        axes.set_ylabel("milliseconds")
        axes.set_title(f"time ∝ {found.varied}^{found.exponent:.2f}", fontsize=11, loc="left")
        plain(axes)
    figure.savefig(path, dpi=110)
