"""Where the parts of a model go on a page: columns, frames, boxes. All lengths are in inches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from math import ceil

from ._outline import Part

ROW = 0.52  # from one box to the next
BOX_HEIGHT = 0.36
MARGIN = 0.35
PAD = 0.2  # from a frame to its boxes
TOP = 1.15  # title and legend
_TITLE = 0.34  # a frame's name
_GAP = 0.16  # below a frame
_GUTTER = 0.35  # between columns
_MOST_ROWS = 14
_BOLD, _PLAIN = 0.088, 0.075  # the width of a letter, on the safe side


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
    box_width = max(2.2, *(_box_text_width(part) for part in parts))
    frame_width = box_width + max(1.8, *(_side_text_width(part) for part in parts)) + 2.4 * PAD
    boxes: list[Box] = []
    frames: list[Frame] = []
    columns = _columns(parts)
    height = 0.0
    for column, groups in enumerate(columns):
        left = MARGIN + column * (frame_width + _GUTTER)
        y = TOP
        for group in groups:
            top = y
            y += _TITLE if group[0].frame else 0.0
            for part in group:
                boxes.append(Box(part, left + PAD + box_width / 2, y + ROW / 2, column))
                y += ROW
            if group[0].frame:
                seen = any(frame.name == group[0].frame for frame in frames)
                frames.append(Frame(group[0].frame, left, top, y, seen))
            y += _GAP
        height = max(height, y)
    width = 2 * MARGIN + len(columns) * (frame_width + _GUTTER) - _GUTTER
    return Page(max(width, 5.5), height + MARGIN, box_width, frame_width, boxes, frames)


def _box_text_width(part: Part) -> float:
    return _BOLD * len(part.short_path) + _PLAIN * len(part.class_name) + 0.5


def _side_text_width(part: Part) -> float:
    longest = max(len(f"{part.shape}   {part.layout}"), len(part.note))
    return _PLAIN * longest + 0.1


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
