"""Draw a model with its sites."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from placement_rules import Recording, Site, at, record, resolve

from .._insert import get_configs
from ..surgery import Plan, plan
from ._dot import dot_text
from ._errors import ExportError
from ._outline import outline, shape_text
from ._page import BOX_HEIGHT, MARGIN, PAD, TOP, Box, Frame, Page, make_page

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_FORMATS = ("svg", "png", "pdf", "dot")
_FILL = {"block": "#dbe8f5", "downsample": "#e5dcf1", "other": "#f1f2f4"}
_EDGE = {"block": "#5c87b2", "downsample": "#8a6bb0", "other": "#9aa2ab"}
_NAMES = {"block": "block", "downsample": "downsampling", "other": "other module"}
_SITE, _TEXT, _FAINT, _FRAME = "#d9480f", "#1f2933", "#68737f", "#c3cad2"


def draw(
    model_or_plan: nn.Module | Plan,
    path: str | Path,
    *,
    format: str | None = None,  # noqa: A002 (the name that matplotlib and others use)
    example_inputs: tuple[Any, ...] | None = None,
    example_kwargs: Mapping[str, Any] | None = None,
) -> None:
    """Draw a model's parts in the order in which they run, with shapes, layouts and sites.

    **Arguments:**

    - `model_or_plan`: a plan, or a model, whose inserted sites are shown, if there are any.
    - `path`: where the picture goes.
    - `format`: ``"svg"``, ``"png"``, ``"pdf"``, or ``"dot"``, text for Graphviz; by default what
      the ending of the path says.
    - `example_inputs`, `example_kwargs`: of a model, as for `insert`.

    **Raises:** `PlacementError` if the model cannot be recorded; `ExportError`, a `ValueError`,
    for an unknown format.
    """
    form = _check_format(Path(path), format)
    recording, sites, subtitle = _read(model_or_plan, example_inputs, example_kwargs)
    given = [t for _, t in recording.root.inputs if hasattr(t.meta.get("val"), "shape")]
    if given:
        subtitle = f"input {shape_text(given[0].meta['val'])}; {subtitle}"
    title = type(recording.model).__name__
    parts = outline(recording, sites)
    if form == "dot":
        Path(path).write_text(dot_text(parts, title, subtitle, _FILL, _EDGE), "utf-8")
        return
    from matplotlib.figure import Figure

    page = make_page(parts)
    figure = Figure(figsize=(page.width, page.height))
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_xlim(0, page.width)
    axes.set_ylim(page.height, 0)
    axes.set_axis_off()
    axes.text(MARGIN, 0.36, title, fontsize=15, weight="bold", color=_TEXT, va="center")
    axes.text(MARGIN, 0.64, subtitle, fontsize=9.5, color=_FAINT, va="center")
    _draw_legend(axes, page, bool(sites))
    for frame in page.frames:
        _draw_frame(axes, frame, page.frame_width)
    _draw_arrows(axes, page)
    for box in page.boxes:
        _draw_box(axes, box, page.box_width)
    figure.savefig(Path(path), dpi=130, format=form)


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
    source: nn.Module | Plan,
    example_inputs: tuple[Any, ...] | None,
    example_kwargs: Mapping[str, Any] | None,
) -> tuple[Recording, Sequence[Site], str]:
    if isinstance(source, Plan):
        count = len(source.sites)
        note = f"{count} site{'s' * (count != 1)} for the rule {source.rule}"
        return source.recording, source.sites, note
    given: dict[str, Any] = {"example_inputs": example_inputs, "example_kwargs": example_kwargs}
    plans = [
        plan(source, at(*config["coefficients"]), layout=config["layout"], **given)
        for config in get_configs(source)
    ]
    if not plans:
        return record(source, **given), [], "no VCReg"
    recording = plans[0].recording
    sites = list(plans[0].sites)
    for other in plans[1:]:  # the same rule on the one recording, so that tensors can be compared
        sites += resolve(recording, other.rule.require(recording), other.layout)
    rules = " and ".join(config["rule"] for config in get_configs(source))
    return recording, sites, f"VCReg inserted by the rule {rules}"


def _draw_legend(axes: Axes, page: Page, with_sites: bool) -> None:
    x = MARGIN
    kinds = [kind for kind in _FILL if any(box.part.kind == kind for box in page.boxes)]
    for kind in kinds if len(kinds) > 1 else ():
        _rounded(axes, x, 0.84, 0.24, 0.16, _FILL[kind], _EDGE[kind], 0.03)
        axes.text(x + 0.32, 0.92, _NAMES[kind], fontsize=8.5, color=_TEXT, va="center")
        x += 0.55 + 0.075 * len(_NAMES[kind])
    if with_sites:
        axes.plot([x + 0.08], [0.92], "o", color=_SITE, markersize=7)
        axes.text(x + 0.24, 0.92, "VCReg site", fontsize=8.5, color=_TEXT, va="center")


def _draw_frame(axes: Axes, frame: Frame, width: float) -> None:
    height = frame.bottom - frame.top
    _rounded(axes, frame.left, frame.top, width, height, "none", _FRAME, 0.08)
    axes.text(
        frame.left + 0.12,
        frame.top + 0.18,
        f"{frame.name}, continued" if frame.continued else frame.name,
        fontsize=9,
        weight="bold",
        color=_FAINT,
        va="center",
    )


def _draw_arrows(axes: Axes, page: Page) -> None:
    line = {"arrowstyle": "-|>", "color": _FAINT, "linewidth": 1.0, "shrinkA": 0, "shrinkB": 0}
    for above, below in zip(page.boxes, page.boxes[1:], strict=False):
        start, end = above.y + BOX_HEIGHT / 2, below.y - BOX_HEIGHT / 2
        if above.column == below.column:
            axes.annotate("", (below.x, end), (above.x, start), arrowprops=line)
            continue
        gutter = below.x - page.box_width / 2 - PAD - 0.17
        xs = [above.x, above.x, gutter, gutter, below.x]
        ys = [start, start + 0.2, start + 0.2, TOP - 0.08, TOP - 0.08]
        axes.plot(xs, ys, color=_FAINT, linewidth=1.0, linestyle=(0, (3, 2)))
        axes.annotate("", (below.x, end), (below.x, TOP - 0.08), arrowprops=line)


def _draw_box(axes: Axes, box: Box, width: float) -> None:
    part = box.part
    left, top = box.x - width / 2, box.y - BOX_HEIGHT / 2
    _rounded(axes, left, top, width, BOX_HEIGHT, _FILL[part.kind], _EDGE[part.kind], 0.06)
    axes.text(
        left + 0.12, box.y, part.short_path, fontsize=9, weight="bold", color=_TEXT, va="center"
    )
    axes.text(
        left + width - 0.12,
        box.y,
        part.class_name,
        fontsize=8,
        color=_FAINT,
        va="center",
        ha="right",
    )
    right = left + width + 0.24
    lift = 0.09 if part.marks else 0.0
    axes.text(
        right,
        box.y - lift,
        f"{part.shape}   {part.layout}",
        fontsize=8.5,
        color=_TEXT,
        va="center",
    )
    for site in part.marks:
        y = {"input": top, "output": top + BOX_HEIGHT}.get(site.position, box.y)
        axes.plot([left + width], [y], "o", color=_SITE, markersize=7, zorder=5)
    axes.text(right, box.y + 0.1, part.note, fontsize=8.5, color=_SITE, va="center")


def _rounded(
    axes: Axes, x: float, y: float, width: float, height: float, fill: str, edge: str, radius: float
) -> None:
    from matplotlib.patches import FancyBboxPatch

    style = f"round,pad=0,rounding_size={radius}"
    axes.add_patch(
        FancyBboxPatch((x, y), width, height, boxstyle=style, facecolor=fill, edgecolor=edge)
    )
