"""The outline of a model: its parts in the order in which they run, and the sites among them."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field

import torch
from torch import nn

from placement_rules import LayoutError, Recording, Scope, Site, blocks, downsample

_SILENT = ("Identity", "Dropout", "DropPath", "StochasticDepth")


@dataclass
class Part:
    """One module call that is drawn as a box.

    **Attributes:**

    - `path`: the module's path.
    - `kind`: ``"block"``, ``"downsample"`` or ``"other"``.
    - `shape`: of the output, ``"N × 40 × 8 × 8"``.
    - `layout`: of the output, ``"NCHW"``; empty where it is not certain.
    - `frame`: the path of the stage that it belongs to; empty outside stages.
    - `marks`: the sites here.
    """

    path: str
    class_name: str
    kind: str
    shape: str
    layout: str
    frame: str = ""
    marks: list[Site] = field(default_factory=list)

    @property
    def short_path(self) -> str:
        """The path as seen from the frame."""
        return self.path.removeprefix(f"{self.frame}.") or "(model)"

    @property
    def note(self) -> str:
        """The sites here, ``"output, d = 40"``."""
        widths: dict[int, list[str]] = {}
        for site in self.marks:
            widths.setdefault(site.channels, []).append(site.position)
        return "; ".join(f"{', '.join(names)}, d = {d}" for d, names in widths.items())


def outline(recording: Recording, sites: Sequence[Site]) -> list[Part]:
    """Return the parts of a model: blocks, downsampling layers, and what lies around them.

    A module is taken apart where a block, a downsampling layer or a site lies inside it.
    """
    kinds = {scope.path: "downsample" for scope, _ in downsample.find(recording)}
    kinds |= {scope.path: "block" for scope, _ in blocks.find(recording)}
    found: list[tuple[Scope, Part]] = []

    def visit(scope: Scope) -> None:
        for child in scope.children:
            if _is_taken_apart(child, kinds, sites):
                visit(child)
            elif type(child.module).__name__ not in _SILENT or _marks(child, sites):
                found.append((child, _part(recording, child, kinds, sites)))

    visit(recording.root)
    if not found:
        found.append((recording.root, _part(recording, recording.root, kinds, sites)))
    _set_frames(found)
    return [part for _, part in found]


def shape_text(tensor: torch.Tensor) -> str:
    """Return a shape with the letter N for the batch: ``N × 40 × 8 × 8``."""
    return " × ".join(["N", *(str(int(size)) for size in tensor.shape[1:])])


def _part(recording: Recording, scope: Scope, kinds: dict[str, str], sites: Sequence[Site]) -> Part:
    tensors = [node for _, node in scope.outputs if isinstance(node.meta.get("val"), torch.Tensor)]
    shape = layout = ""
    if tensors:
        shape = shape_text(tensors[0].meta["val"])
        with suppress(LayoutError):
            layout = str(recording.layout(tensors[0]))
    return Part(
        path=scope.path,
        class_name=type(scope.module).__name__,
        kind=kinds.get(scope.path, "other"),
        shape=shape,
        layout=layout,
        marks=_marks(scope, sites),
    )


def _marks(scope: Scope, sites: Sequence[Site]) -> list[Site]:
    """Return the sites of the module itself, and those inside it at the tensor it returns."""
    returned = {node.meta.get("flat") for _, node in scope.outputs}
    return [
        site
        for site in sites
        if site.path == scope.path
        or (_is_inside(site.path, scope.path) and site.node.meta.get("flat") in returned)
    ]


def _is_taken_apart(scope: Scope, kinds: dict[str, str], sites: Sequence[Site]) -> bool:
    marked = _marks(scope, sites)
    if any(_is_inside(site.path, scope.path) and site not in marked for site in sites):
        return True
    if scope.path in kinds:
        return False
    if any(_is_inside(path, scope.path) for path in kinds):
        return True
    return not kinds and isinstance(scope.module, nn.Sequential) and len(scope.module) > 1


def _is_inside(path: str, ancestor: str) -> bool:
    return path.startswith(f"{ancestor}.")


def _set_frames(found: list[tuple[Scope, Part]]) -> None:
    """Give each part the outermost module around it that holds blocks in one place at most."""
    places = {part.path.rpartition(".")[0] for _, part in found if part.kind == "block"}
    for scope, part in found:
        for around in (above.path for above in scope.above if above.path):
            if sum(place == around or _is_inside(place, around) for place in places) <= 1:
                part.frame = around
