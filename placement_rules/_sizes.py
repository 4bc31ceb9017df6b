"""Check a channel axis on inputs of other sizes, where two axes of an example are of one size."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, fx

from ._errors import LayoutError
from ._inputs import Inputs
from ._layout import Layout
from ._recording import Recording, value
from ._spot import Spot
from ._torch import tree_map
from ._tree import leaves


def check_on_other_sizes(recording: Recording, spot: Spot, found: Layout) -> None:
    """Refuse a channel axis that was found only because another axis is of the same size.

    A reshape, or a function that aligns axes, may carry the wrong one along where sizes are equal
    by chance. So the model is recorded on inputs of other sizes until the channels' size differs
    from all others, as far as the model takes any.

    **Raises:** `LayoutError` if another axis, or none, is found there.
    """
    shape = tuple(value(spot.node).shape)
    alike = {a for a, size in enumerate(shape) if size == shape[found.axis]} - {found.axis}
    for other in recording.on_other_sizes() if alike else ():
        twin = _twin(other, spot)
        if twin is None or value(twin).ndim != len(shape):
            continue
        sizes = tuple(value(twin).shape)
        apart = {axis for axis in alike if sizes[axis] != sizes[found.axis]}
        if not apart:
            continue
        try:
            agreed, why = other.layout(twin) == found, "another axis is found"
        except LayoutError as error:
            agreed, why = False, str(error)
        if not agreed:
            raise LayoutError(
                f"of the tensor of shape {shape}, axis {found.axis} seems to hold channels, but on "
                f"an input of another size, where the shape is {sizes}, {why}"
            )
        alike -= apart
        if not alike:
            return


def other_sizes(inputs: Inputs) -> Iterator[Inputs]:
    """Yield inputs with more, or fewer, places and examples, the most telling first.

    Which axes hold places is not known, so that a model may refuse some of them. Tensors beside
    the one with the most axes follow it where their sizes are the same.
    """
    tensors = [tensor for _, tensor in leaves((inputs.args, inputs.kwargs)) if tensor.ndim]
    if not tensors:
        return
    main = max(tensors, key=lambda tensor: tensor.ndim)
    choices = _places(main)
    for batch in (main.shape[0] + 1, main.shape[0]):
        for places in choices:
            for factor in (2.0, 0.5):
                shape = [batch, *main.shape[1:]]
                for axis in places:
                    shape[axis] = int(shape[axis] * factor)
                if all(shape):
                    yield _resized(inputs, main, shape)
    yield _resized(inputs, main, [main.shape[0] + 1, *main.shape[1:]])


def _places(tensor: Tensor) -> list[Sequence[int]]:
    """Return which axes may be places: those behind the channels, or between batch and channels."""
    ndim = tensor.ndim
    if ndim == 2:
        return [] if tensor.is_floating_point() else [(1,)]
    return [range(2, ndim), range(1, ndim - 1)] if ndim > 2 else []


def _resized(inputs: Inputs, main: Tensor, shape: Sequence[int]) -> Inputs:
    changed = dict(zip(main.shape[1:], shape[1:], strict=True))
    batch = {main.shape[0]: shape[0]}

    def resize(item: Any) -> Any:
        if not isinstance(item, Tensor) or not item.ndim:
            return item
        wanted = [(changed if axis else batch).get(n, n) for axis, n in enumerate(item.shape)]
        for axis, size in enumerate(shape if item is main else wanted):
            item = _of_size(item, axis, size)
        return item

    with torch.no_grad():
        args, kwargs = tree_map(resize, (inputs.args, inputs.kwargs))
    return Inputs(args, kwargs, f"{inputs.origin}, of another size")


def _of_size(tensor: Tensor, axis: int, size: int) -> Tensor:
    """Cut a tensor along an axis, or repeat what it holds: numbers of tokens stay what they are."""
    if size > tensor.shape[axis]:
        tensor = torch.cat([tensor] * -(-size // tensor.shape[axis]), dim=axis)
    return tensor.narrow(axis, 0, size)


def _twin(other: Recording, spot: Spot) -> fx.Node | None:
    """Return the node of another recording at the same place."""
    calls = other.calls(spot.scope.path)
    if spot.scope.call >= len(calls):
        return None
    scope = calls[spot.scope.call]
    if spot.position in {"output", "input"}:
        found = dict(scope.outputs if spot.position == "output" else scope.inputs).get(spot.leaf)
    else:
        found = scope.named.get(spot.position)
    return found if found is not None and isinstance(found.meta.get("val"), Tensor) else None
