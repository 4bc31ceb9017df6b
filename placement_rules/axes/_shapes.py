"""Functions that move, split, join, add, repeat and index axes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from numbers import Integral
from typing import Any

import torch
from torch import fx

from ._operations import Link, Made, links, ndim_of, shape_of


@links("permute")
def _permute(made: Made) -> Iterator[Link]:
    """Read ``permute(0, 2, 1)`` as well as ``permute((0, 2, 1))`` and ``permute(dims=…)``."""
    given: Any = made.call.kwargs.get("dims", made.call.args[1:])
    if len(given) == 1 and not isinstance(given[0], int):
        given = given[0]
    return made.links((here, there % len(given)) for here, there in enumerate(given))


@links("transpose", "swapaxes", "swapdims", "mT", "mH", "adjoint")
def _transpose(made: Made) -> Iterator[Link]:
    first, second = made.argument(1, "dim0", "axis0"), made.argument(2, "dim1", "axis1")
    if first is None:
        first, second = -2, -1
    pair = first % made.ndim, second % made.ndim
    swap = dict(zip(pair, pair[::-1], strict=True))
    return made.links((axis, swap.get(axis, axis)) for axis in range(made.ndim))


@links("T", "t", "H")
def _reverse(made: Made) -> Iterator[Link]:
    return made.links((axis, made.ndim - 1 - axis) for axis in range(made.ndim))


@links("movedim", "moveaxis")
def _movedim(made: Made) -> Iterator[Link]:
    old, new = made.argument(1, "source"), made.argument(2, "destination")
    pairs = [(old, new)] if isinstance(old, int) else zip(old, new, strict=True)
    moved = {to % made.ndim: frm % made.ndim for frm, to in pairs}
    rest = iter(axis for axis in range(made.ndim) if axis not in moved.values())
    return made.links(
        (axis, moved[axis] if axis in moved else next(rest)) for axis in range(made.ndim)
    )


@links("reshape", "view", "flatten", "unflatten", "ravel", "reshape_as", "view_as", "squeeze")
def _reshape(made: Made) -> Iterator[Link]:
    return made.links(_whole_axes(made.shape, shape_of(made.source)))


def _whole_axes(new: Sequence[int], old: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Yield ``(new axis, old axis)`` for every axis that a reshape neither splits nor merges.

    Both shapes are cut into the smallest runs of axes with equal products; an axis survives if it
    is the only one in its run, axes of size one aside.

    **Arguments:**

    - `new`, `old`: the shapes, with equal numbers of elements.
    """
    here = [(axis, size) for axis, size in enumerate(new) if size != 1]
    there = [(axis, size) for axis, size in enumerate(old) if size != 1]
    while here and there:
        run_here, run_there = [here.pop(0)], [there.pop(0)]
        product_here, product_there = run_here[0][1], run_there[0][1]
        while product_here != product_there:
            if product_here < product_there and here:
                run_here.append(here.pop(0))
                product_here *= run_here[-1][1]
            elif there:
                run_there.append(there.pop(0))
                product_there *= run_there[-1][1]
            else:
                return
        if len(run_here) == len(run_there) == 1:
            yield run_here[0][0], run_there[0][0]


@links("unsqueeze", "stack")
def _new_axis(made: Made) -> Iterator[Link]:
    new = (made.argument(1, "dim", "axis") or 0) % made.ndim
    kept = [axis for axis in range(made.ndim) if axis != new]
    for source in made.sources:
        yield from made.links(((here, there) for there, here in enumerate(kept)), source)


@links("cat", "concat", "concatenate", "pad")
def _longer(made: Made) -> Iterator[Link]:
    """An axis that grows still holds what it held."""
    for source in made.sources:
        if ndim_of(source) == made.ndim:
            yield from made.links(((axis, axis) for axis in range(made.ndim)), source)


@links(
    "chunk", "split", "split_with_sizes", "tensor_split", "hsplit", "vsplit", "dsplit", "sort",
    "topk", "cummax", "cummin", "unsafe_chunk", "unsafe_split", "gradient", part="each",
)  # fmt: skip
def _part(made: Made) -> Iterator[Link]:
    return made.in_order() if ndim_of(made.source) == made.ndim else iter(())


@links("repeat", "tile")
def _tiled(made: Made) -> Iterator[Link]:
    """Aligned from the right, each axis that often."""
    before = ndim_of(made.source)
    new = made.ndim - before
    return made.links((new + axis, axis) for axis in range(before if new >= 0 else 0))


@links("repeat_interleave")
def _repeated(made: Made) -> Iterator[Link]:
    """Along an axis; without one, everything is flattened."""
    return made.in_order() if isinstance(made.argument(2, "dim"), int) else iter(())


@links("unfold")
def _windows(made: Made) -> Iterator[Link]:
    """``Tensor.unfold`` adds a last axis; ``F.unfold`` mixes channels and places."""
    return made.in_order([0] if made.call.target is torch.nn.functional.unfold else None)


# Pairs of numbers along a last axis become complex numbers, or the other way round.
links("view_as_complex", "view_as_real")(Made.in_order)


@links("getitem")
def _getitem(made: Made) -> Iterator[Link]:
    source, index = made.call.args[:2]
    if not isinstance(source, fx.Node):
        return
    items = list(index) if isinstance(index, tuple) else [index]
    if not all(_is_plain_index(item) for item in items):
        return  # indexing by a tensor, a list, an array, a truth value
    used = sum(item is not None and item is not Ellipsis for item in items)
    if Ellipsis not in items:
        items.append(Ellipsis)
    place = items.index(Ellipsis)
    items[place : place + 1] = [slice(None)] * (ndim_of(source) - used)
    new = old = 0
    for item in items:
        if isinstance(item, slice):
            yield (made.node, new), (source, old)  # a part of the channels still holds channels
            new, old = new + 1, old + 1
        elif item is None:
            new += 1
        else:
            old += 1


def _is_plain_index(item: Any) -> bool:
    if item is None or item is Ellipsis or isinstance(item, slice):
        return True
    return isinstance(item, Integral) and not isinstance(item, bool)
