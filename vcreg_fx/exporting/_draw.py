"""Draw a model with its sites: as text for Graphviz, or as a picture by matplotlib."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from math import ceil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from placement_rules import Recording, Site, at, record, resolve

from .._errors import ExportError
from ..surgery import Plan, get_configs, plan
from ._outline import Part, outline, shape_text

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_FORMATS = ("svg", "png", "pdf", "dot")
_FILL = {"block": "#dbe8f5", "downsample": "#e5dcf1", "other": "#f1f2f4"}
_EDGE = {"block": "#5c87b2", "downsample": "#8a6bb0", "other": "#9aa2ab"}
_NAMES = {"block": "block", "downsample": "downsampling", "other": "other module"}
_SITE, _TEXT, _FAINT, _FRAME = "#d9480f", "#1f2933", "#68737f", "#c3cad2"

# Lengths on the page, in inches.
_ROW = 0.52  # from one box to the next
_BOX_HEIGHT = 0.36
_MARGIN = 0.35
_PAD = 0.2  # from a frame to its boxes
_TOP = 1.15  # title and legend
_TITLE = 0.34  # a frame's name
_GAP = 0.16  # below a frame
_GUTTER = 0.35  # between columns
_MOST_ROWS = 14
_BOLD, _PLAIN = 0.088, 0.075  # the width of a letter, on the safe side


def draw(
    model_or_plan: nn.Module | Plan,
    path: str | Path,
    *,
    format: str | None = None,  # noqa: A002 (the name that matplotlib and others use)
    title: str | None = None,
    example_inputs: tuple[Any, ...] | None = None,
    example_kwargs: Mapping[str, Any] | None = None,
) -> None:
    """Draw a model's parts in the order in which they run, with shapes, layouts and sites.

    **Arguments:**

    - `model_or_plan`: a plan, or a model, whose inserted sites are shown, if there are any.
    - `path`: where the picture goes.
    - `format`: ``"svg"``, ``"png"``, ``"pdf"``, or ``"dot"``, text for Graphviz; by default what
      the ending of the path says.
    - `title`: by default the model's own name, where it knows one (timm's, and checkpoints of
      transformers), or that of its class.
    - `example_inputs`, `example_kwargs`: of a model, as for `insert`.

    **Raises:** `PlacementError` if the model cannot be recorded; `ExportError`, a `ValueError`,
    for an unknown format.
    """
    form = _check_format(Path(path), format)
    examples = {"example_inputs": example_inputs, "example_kwargs": example_kwargs}
    recording, sites, subtitle = _read(model_or_plan, examples)
    given = [t for _, t in recording.root.inputs if hasattr(t.meta.get("val"), "shape")]
    if given:
        subtitle = f"input {shape_text(given[0].meta['val'])}; {subtitle}"
    title = title or _own_name(recording.model)
    parts = outline(recording, sites)
    if form == "dot":
        Path(path).write_text(_dot_text(parts, title, subtitle), "utf-8")
        return
    _paint(make_page(parts), title, subtitle, bool(sites)).savefig(path, dpi=130, format=form)


def _own_name(model: nn.Module) -> str:
    """Return what a model is called: by timm, by the hub, or as its class."""
    timm = getattr(model, "pretrained_cfg", None)
    config = getattr(model, "config", None)
    names = (
        timm.get("architecture") if isinstance(timm, Mapping) else None,
        getattr(config, "name_or_path", None),
    )
    return next((name for name in names if name and isinstance(name, str)), type(model).__name__)


def _check_format(path: Path, form: str | None) -> str:
    form = path.suffix.removeprefix(".").lower() if form is None else form
    form = {"gv": "dot"}.get(form, form)
    if form not in _FORMATS:
        raise ExportError(
            f"{form or str(path)!r} is no format for a picture. Let the path end in one of "
            f"{', '.join(f'.{name}' for name in _FORMATS)}, or name it by format (--format)."
        )
    return form


def _read(
    source: nn.Module | Plan, examples: Mapping[str, Any]
) -> tuple[Recording, Sequence[Site], str]:
    if isinstance(source, Plan):
        count = len(source.sites)
        note = f"{count} site{'s' * (count != 1)} for the rule {source.rule}"
        return source.recording, source.sites, note
    plans = [
        plan(source, at(*config["coefficients"]), layout=config["layout"], **examples)
        for config in get_configs(source)
    ]
    if not plans:
        return record(source, **examples), [], "no VCReg"
    recording = plans[0].recording
    sites = list(plans[0].sites)
    for other in plans[1:]:  # the same rule on the one recording, so that tensors can be compared
        sites += resolve(recording, other.rule.require(recording), other.layout)
    rules = " and ".join(config["rule"] for config in get_configs(source))
    return recording, sites, f"VCReg inserted by the rule {rules}"


# Text for Graphviz ---------------------------------------------------------------------------


def _dot_text(parts: Sequence[Part], title: str, subtitle: str) -> str:
    """Return a digraph: a node for each part, a cluster for each stage, sites in the labels."""
    lines = [
        f"digraph {_quoted(title)} {{",
        "  label=" + _quoted(f"{title}\n{subtitle}") + ";",
        '  labelloc="t";',
        '  node [shape=box, style="rounded,filled", fontname="Helvetica"];',
        '  graph [fontname="Helvetica"];',
    ]
    numbered = list(enumerate(parts))
    for index, (frame, group) in enumerate(groupby(numbered, key=lambda pair: pair[1].frame)):
        nodes = [f"n{k} {_attributes(part)};" for k, part in group]
        if frame:
            lines += [f"  subgraph cluster_{index} {{", f"    label={_quoted(frame)};"]
            lines += [*(f"    {node}" for node in nodes), "  }"]
        else:
            lines += [f"  {node}" for node in nodes]
    lines += [f"  n{k} -> n{k + 1};" for k in range(len(parts) - 1)]
    return "\n".join([*lines, "}"]) + "\n"


def _attributes(part: Part) -> str:
    label = [f"{part.short_path}  ({part.class_name})", f"{part.shape}  {part.layout}".rstrip()]
    label += [f"VCReg: {part.note}"] * bool(part.marks)
    text = "\n".join(line for line in label if line)
    width = 2 if part.marks else 1
    return (
        f'[label={_quoted(text)}, fillcolor="{_FILL[part.kind]}", '
        f'color="{_EDGE[part.kind]}", penwidth={width}]'
    )


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


# Where the parts go on a page: columns, frames, boxes ----------------------------------------


@dataclass(frozen=True)
class Box:
    """A part with the centre of its box; y grows downwards."""

    part: Part
    x: float
    y: float
    column: int


@dataclass(frozen=True)
class Frame:
    """A stage, or the piece of it in one column: name, corners, whether it began before."""

    name: str
    left: float
    top: float
    bottom: float
    continued: bool = False


@dataclass(frozen=True)
class Page:
    """Everything with its place; boxes and frames have one width each."""

    width: float
    height: float
    box_width: float
    frame_width: float
    boxes: list[Box]
    frames: list[Frame]


def make_page(parts: Sequence[Part]) -> Page:
    """Place the parts from top to bottom, in as many columns as keep the page short."""
    box_width = max(
        2.2,
        *(_BOLD * len(part.short_path) + _PLAIN * len(part.class_name) + 0.5 for part in parts),
    )
    beside = [max(len(f"{part.shape}   {part.layout}"), len(part.note)) for part in parts]
    named = _BOLD * max(len(f"{part.frame}, continued") for part in parts) - box_width / 2
    frame_width = box_width + max(1.8, _PLAIN * max(beside) + 0.1, named) + 2.4 * _PAD
    boxes: list[Box] = []
    frames: list[Frame] = []
    columns = _columns(parts)
    height = 0.0
    for column, groups in enumerate(columns):
        left = _MARGIN + column * (frame_width + _GUTTER)
        y = _TOP
        for group in groups:
            top = y
            y += _TITLE if group[0].frame else 0.0
            for part in group:
                boxes.append(Box(part, left + _PAD + box_width / 2, y + _ROW / 2, column))
                y += _ROW
            if group[0].frame:
                seen = any(frame.name == group[0].frame for frame in frames)
                frames.append(Frame(group[0].frame, left, top, y, seen))
            y += _GAP
        height = max(height, y)
    width = 2 * _MARGIN + len(columns) * (frame_width + _GUTTER) - _GUTTER
    return Page(max(width, 5.5), height + _MARGIN, box_width, frame_width, boxes, frames)


def _columns(parts: Sequence[Part]) -> list[list[list[Part]]]:
    """Cut the parts into columns: between stages, unless one stage is longer than a column."""
    groups = [list(group) for _, group in groupby(parts, key=lambda part: part.frame)]
    count = ceil(len(parts) / _MOST_ROWS)
    shortest = ceil(len(parts) / count)
    pieces: list[list[Part]] = []
    for group in groups:
        rest, before = group, sum(map(len, pieces))
        if len(group) > shortest + 2:  # the first piece fills the column that it begins in
            cut = shortest - before % shortest
            pieces.append(group[:cut])
            rest = group[cut:]
        pieces += [rest[start : start + shortest] for start in range(0, len(rest), shortest)]
    for room in range(shortest, len(parts) + 1):
        columns = _fill(pieces, room)
        if len(columns) <= count:
            return columns
    return [pieces]


def _fill(pieces: list[list[Part]], room: int) -> list[list[list[Part]]]:
    columns: list[list[list[Part]]] = []
    used = room
    for piece in pieces:
        if used + len(piece) > room:
            columns.append([])
            used = 0
        columns[-1].append(piece)
        used += len(piece)
    return columns


# The page by matplotlib ----------------------------------------------------------------------


def _paint(page: Page, title: str, subtitle: str, with_sites: bool) -> Figure:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(page.width, page.height))
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_xlim(0, page.width)
    axes.set_ylim(page.height, 0)
    axes.set_axis_off()
    _text(axes, _MARGIN, 0.36, title, 15, weight="bold")
    _text(axes, _MARGIN, 0.64, subtitle, 9.5, _FAINT)
    _paint_legend(axes, page, with_sites)
    for frame in page.frames:
        height = frame.bottom - frame.top
        _rounded(axes, frame.left, frame.top, page.frame_width, height, "none", _FRAME, 0.08)
        name = f"{frame.name}, continued" if frame.continued else frame.name
        arrow = frame.left + _PAD + page.box_width / 2
        fits = frame.left + 0.12 + _BOLD * len(name) < arrow - 0.1
        x = frame.left + 0.12 if fits else arrow + 0.12
        _text(axes, x, frame.top + 0.18, name, 9, _FAINT, weight="bold")
    _paint_arrows(axes, page)
    for box in page.boxes:
        _paint_box(axes, box, page.box_width)
    return figure


def _paint_legend(axes: Axes, page: Page, with_sites: bool) -> None:
    x = _MARGIN
    kinds = [kind for kind in _FILL if any(box.part.kind == kind for box in page.boxes)]
    for kind in kinds if len(kinds) > 1 else ():
        _rounded(axes, x, 0.84, 0.24, 0.16, _FILL[kind], _EDGE[kind], 0.03)
        _text(axes, x + 0.32, 0.92, _NAMES[kind], 8.5)
        x += 0.55 + 0.075 * len(_NAMES[kind])
    if with_sites:
        axes.plot([x + 0.08], [0.92], "o", color=_SITE, markersize=7)
        _text(axes, x + 0.24, 0.92, "VCReg site, d = its channels", 8.5)


def _paint_arrows(axes: Axes, page: Page) -> None:
    line = {"arrowstyle": "-|>", "color": _FAINT, "linewidth": 1.0, "shrinkA": 0, "shrinkB": 0}
    for above, below in zip(page.boxes, page.boxes[1:], strict=False):
        start, end = above.y + _BOX_HEIGHT / 2, below.y - _BOX_HEIGHT / 2
        if above.column == below.column:
            axes.annotate("", (below.x, end), (above.x, start), arrowprops=line)
            continue
        gutter = below.x - page.box_width / 2 - _PAD - 0.17
        xs = [above.x, above.x, gutter, gutter, below.x]
        ys = [start, start + 0.2, start + 0.2, _TOP - 0.08, _TOP - 0.08]
        axes.plot(xs, ys, color=_FAINT, linewidth=1.0, linestyle=(0, (3, 2)))
        axes.annotate("", (below.x, end), (below.x, _TOP - 0.08), arrowprops=line)


def _paint_box(axes: Axes, box: Box, width: float) -> None:
    part = box.part
    left, top = box.x - width / 2, box.y - _BOX_HEIGHT / 2
    right = left + width
    _rounded(axes, left, top, width, _BOX_HEIGHT, _FILL[part.kind], _EDGE[part.kind], 0.06)
    _text(axes, left + 0.12, box.y, part.short_path, 9, weight="bold")
    _text(axes, right - 0.12, box.y, part.class_name, 8, _FAINT, ha="right")
    lift = 0.09 if part.marks else 0.0
    _text(axes, right + 0.24, box.y - lift, f"{part.shape}   {part.layout}", 8.5)
    for site in part.marks:
        y = {"input": top, "output": top + _BOX_HEIGHT}.get(site.position, box.y)
        axes.plot([right], [y], "o", color=_SITE, markersize=7, zorder=5)
    _text(axes, right + 0.24, box.y + 0.1, part.note, 8.5, _SITE)


def _text(
    axes: Axes, x: float, y: float, text: str, size: float, color: str = _TEXT, **style: Any
) -> None:
    axes.text(x, y, text, fontsize=size, color=color, va="center", **style)


def _rounded(
    axes: Axes, x: float, y: float, width: float, height: float, fill: str, edge: str, radius: float
) -> None:
    from matplotlib.patches import FancyBboxPatch

    style = f"round,pad=0,rounding_size={radius}"
    axes.add_patch(
        FancyBboxPatch((x, y), width, height, boxstyle=style, facecolor=fill, edgecolor=edge)
    )
