"""What a benchmark found: rows of medians, as data and as a table."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

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


@dataclass(frozen=True)
class BenchResult:
    """What was found, and on what.

    **Attributes:**

    - `machine`: processor, versions.
    - `settings`: device, dtype, rule, rounds, whether compiled, which clock, and what
      becomes of freed memory.
    - `models`: one a model.
    - `scaling`: cost against n and d.
    - `bias`: how the estimates compare with the exact gradient.
    """

    machine: dict[str, str | int]
    settings: dict[str, Any]
    models: list[ModelResult]
    scaling: list[Scaling] = field(default_factory=list)
    bias: list[Bias] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """Return plain data."""
        return asdict(self)

    def to_json(self) -> str:
        """Return it as text."""
        return json.dumps(self.to_dict(), indent=2, ensure_ascii=False) + "\n"

    def to_markdown(self) -> str:
        """Return the tables, with the paper's beside them where it has one."""
        lines = [
            f"# {self._title()}",
            "",
            *(f"- {sentence}" for found in self.models for sentence in _verdict(found)),
            "",
            "![Overhead of each variant](table.png)",
            "",
            "Written by `vcreg-fx bench`; not edited. "
            + "; ".join(f"{key} {value}" for key, value in self.settings.items())
            + ".",
            "",
            *[f"- {key}: {value}" for key, value in self.machine.items()],
            "",
        ]
        for found in self.models:
            lines += [*_model_lines(found), ""]
        if self.scaling:
            lines += ["## One site: cost against n and d", ""]
            lines += [
                f"- {s.varied} from {s.sizes[0]:,} to {s.sizes[-1]:,} "
                f"({'d' if s.varied == 'n' else 'n'} = {s.fixed:,}): "
                f"time ∝ {s.varied}^{s.exponent:.2f}"
                for s in self.scaling
            ]
            lines += ["", "![Cost against n and d](scaling.png)", ""]
        if self.bias:
            lines += _bias_lines(self.bias)
        return "\n".join(lines)

    def _title(self) -> str:
        dtype = self.settings.get("dtype", "float32")
        types = "" if dtype == "float32" else f" in {dtype}"
        compiled = ", compiled" if self.settings.get("compiled") else ""
        return f"Results of the benchmark{types}{compiled}"


def _verdict(found: ModelResult) -> list[str]:
    return [
        cost(found.model, row.ratio[1] - 1, row.floors[1])
        for row in found.rows
        if row.variant == "ours"
    ]


def cost(model: str, share: float, floors: float) -> str:
    """Return what VCReg costs on a model, in words."""
    return (
        f"On {model} VCReg costs {share:.1%} of a training step: {floors:.2f} times the two matrix "
        "products that its exact gradient needs."
    )


def _model_lines(found: ModelResult) -> list[str]:
    d = sum(channels for _, _, channels in found.sites)
    paper = PAPER.get(found.model, {})
    header = (
        "variant", "step", "ratio to identity (quartiles)", "forward", "backward",
        "overhead / floor (quartiles)", "saved for backward", "peak memory", "ratio in the paper",
    )  # fmt: skip
    body = []
    for row in found.rows:
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
    lines = [
        f"## {found.model}, batch {found.batch}, {len(found.sites)} sites",
        "",
        f"The floor, the two products of all sites alone, is {found.floor * 1e3:.1f} ms, "
        f"{found.floor_share:.1%} of identity's step. Identity keeps "
        f"{found.identity_saved / 2**20:.1f} MiB for backward and peaks at "
        f"{found.identity_peak / 2**20:.1f} MiB. The sites have {d:,} channels together.",
        "",
        markdown_table(header, body),
    ]
    return [*lines, "", *_rank_lines(found.ranks)] if found.ranks else lines


def _bias_lines(found: list[Bias]) -> list[str]:
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
    return [
        "## Estimates against the exact gradient g",
        "",
        f"One site of 8,192 samples and 64 channels, {found[0].draws} draws each. An estimate is "
        "unbiased along g where its projection is 1.",
        "",
        markdown_table(header, body),
        "",
    ]


def _rank_lines(ranks: list[RankRow]) -> list[str]:
    header = (
        "variant",
        "step",
        "ratio to identity (quartiles)",
        "all-reduces of VCReg",
        "exchanged",
    )
    body = [
        [row.variant, f"{row.seconds * 1e3:.0f} ms", spread(row.ratio, 3), str(row.exchanges),
         f"{row.exchanged / 2**20:.1f} MiB"]
        for row in ranks
    ]  # fmt: skip
    return [
        "Processes on this machine, joined by gloo, under DistributedDataParallel (wall-clock):",
        "",
        markdown_table(header, body),
    ]


def spread(found: Quartiles, digits: int) -> str:
    """Return a median with its quartiles."""
    low, middle, high = found
    return f"{middle:.{digits}f} ({low:.{digits}f}–{high:.{digits}f})"
