"""Spots, where a program can reach a tensor, and sites, where a regularizer attaches to it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Any

import torch
from torch import Tensor, fx

from .._errors import LayoutError, PlacementError
from .._node import value
from ..axes import Layout
from ..recording import Path, Recording, Scope, format_path, is_batch_norm, keeps_container_forward


@dataclass(frozen=True)
class Spot:
    """A tensor of one recorded module call, at the place where a program can reach it.

    **Attributes:**

    - `scope`, `node`: the module call and the node of its graph.
    - `position`: ``"output"`` or ``"input"`` of the module, or the node's name inside it.
    - `leaf`: where in a structured output, or in the arguments, the tensor is.
    """

    scope: Scope
    node: fx.Node
    position: str
    leaf: Path = ()

    @property
    def name(self) -> str:
        """The site's name: ``layer1.0:output``, ``fc:input``, ``blocks.3:add_1``."""
        where = () if (self.position, self.leaf) == ("input", (0,)) else self.leaf
        return f"{self.scope.path}:{self.position}{format_path(where)}"

    @property
    def flat(self) -> fx.Node:
        """The node of the flat graph with the same tensor."""
        flat: fx.Node = self.node.meta["flat"]
        return flat


def locate(recording: Recording, scope: Scope, node: fx.Node) -> Spot:
    """Return the place at which the tensor of ``node`` can be reached.

    A plain container never owns a tensor: its forward is nobody's to rewrite. The module inside it
    that made the tensor owns it; but a batch norm only where nothing else can, because
    ``convert_sync_batchnorm`` rebuilds those.
    """
    if not keeps_container_forward(scope.module):
        spot = _in_scope(scope, node)
        return _at_border(recording, spot) or spot
    maker = _maker(scope, node)
    if maker is None:
        raise PlacementError(
            f"{scope.path or 'The model'} is a plain {type(scope.module).__name__}, and its tensor "
            f"{node.name} comes from outside: name the module that makes it instead."
        )
    if is_batch_norm(maker.scope.module) and (taker := _taker(recording, node, maker)):
        return taker
    return maker


def _in_scope(scope: Scope, node: fx.Node) -> Spot:
    return Spot(scope, node, *(scope.border(node) or (node.name,)))


def _child_output(node: fx.Node) -> Spot | None:
    """Return a node that stands for a child's result as the output in the child's own graph."""
    call, leaf = (node.args[0], node.meta["leaf"]) if "leaf" in node.meta else (node, ())
    if not isinstance(call, fx.Node) or call.op != "call_module":
        return None
    inner: Scope = call.meta["scope"]
    found = dict(inner.outputs).get(leaf)
    return None if found is None else Spot(inner, found, "output", leaf)


def _at_border(recording: Recording, spot: Spot) -> Spot | None:
    """Return a child's result as the child's output, where it is called at this place alone."""
    border = None if spot.position in {"input", "output"} else _child_output(spot.node)
    if border is None or len(recording.calls(border.scope.path)) > 1:
        return None
    contains = keeps_container_forward(border.scope.module)
    found = _maker(border.scope, border.node) if contains else border
    return None if found is None or is_batch_norm(found.scope.module) else found


def _maker(scope: Scope, node: fx.Node) -> Spot | None:
    """Follow a tensor down through plain containers to the module that made it."""
    while keeps_container_forward(scope.module):
        child = _child_output(node)
        if child is None:
            return None
        scope, node = child.scope, child.node
    return _in_scope(scope, node)


def _taker(recording: Recording, node: fx.Node, maker: Spot) -> Spot | None:
    """Return the tensor as the input of the first module that takes it."""
    for scope, path, given in recording.takers(node.meta["flat"]):
        taken = scope.start > maker.scope.start and not keeps_container_forward(scope.module)
        if taken and not is_batch_norm(scope.module):
            return Spot(scope, given, "input", path)
    return None


@dataclass(frozen=True)
class Site:
    """A tensor of the model at which a regularizer attaches.

    **Attributes:**

    - `name`: module path and place: ``layer1.0:output``, ``fc:input``, ``blocks.3:add_1``.
    - `path`: the module that owns the site.
    - `position`: ``"output"``, ``"input"``, or the name of a node of the module's graph.
    - `leaf`: where in a structured output or in the arguments the tensor is; empty for the usual
      single tensor.
    - `shape`: the recorded shape; the batch and the locations may differ in training. Empty if the
      model could not be recorded.
    - `layout`: which axis holds the channels.
    - `calls`: how often one forward pass of the model passes here.
    - `leads_on`: whether the model's output depends on the tensor. Where it does not, no gradient
      comes back to the site, and none can be added to it.
    - `clone`: the in-place write further down that makes a copy of the tensor necessary, if any.
    """

    name: str
    path: str
    position: str
    leaf: Path
    shape: tuple[int, ...]
    dtype: torch.dtype
    layout: Layout
    calls: int
    leads_on: bool
    clone: str | None
    scope: Scope = field(repr=False, compare=False)
    node: fx.Node = field(repr=False, compare=False)
    nodes: tuple[fx.Node, ...] = field(default=(), repr=False, compare=False)  # in every call

    @property
    def channels(self) -> int:
        """d: the size of the channel axis; 0 if the model could not be recorded."""
        return self.shape[self.layout.axis] if self.shape else 0

    @property
    def samples(self) -> int:
        """n: batch elements × locations, at the recorded batch size."""
        return prod(self.shape[axis] for axis in self.layout.sample_axes) if self.shape else 1

    @property
    def form(self) -> str:
        """``"boundary"`` at a module's output or input, ``"inside"`` within its forward."""
        return "boundary" if self.position in {"output", "input"} else "inside"

    def to_dict(self) -> dict[str, Any]:
        """Return the site as plain data."""
        return {
            "name": self.name,
            "path": self.path,
            "module": type(self.scope.module).__name__,
            "shape": list(self.shape),
            "layout": str(self.layout),
            "channels": self.channels,
            "calls": self.calls,
            "form": self.form,
            "leads_on": self.leads_on,
            "clone": self.clone,
        }


def resolve(
    recording: Recording, spots: Sequence[Spot], layout: str | Layout | None = None
) -> list[Site]:
    """Turn spots into sites: join the calls of one module, work out layouts and in-place writes.

    **Arguments:**

    - `spots`: what a rule selected.
    - `layout`: the layout of every site, where it is not to be inferred.

    **Raises:** `LayoutError` if a channel axis cannot be inferred with certainty or the given
    layout does not fit; `PlacementError` for tensors that are not floating point.
    """
    calls: dict[str, list[Spot]] = {}
    for spot in spots:
        calls.setdefault(spot.name, []).append(spot)
    given = None if layout is None else Layout.parse(layout)
    return [_site(recording, name, same, given) for name, same in calls.items()]


def _site(recording: Recording, name: str, calls: list[Spot], given: Layout | None) -> Site:
    first = calls[0]
    tensor = value(first.node)
    if not tensor.is_floating_point():
        raise PlacementError(
            f"{name} holds {tensor.dtype} numbers; variance and covariance need floating point."
        )
    for spot in calls:
        _check_objects(recording, spot)
    layouts = {_layout(recording, spot, given) for spot in calls}
    if len(layouts) > 1:
        names = " and ".join(sorted(str(item) for item in layouts))
        raise LayoutError(
            f"{name} is called with different layouts ({names}). Pass layout=, or choose a rule "
            "that leaves this module out."
        )
    writes = (
        recording.write_after(spot.node) or recording.written_in_training(spot.scope, spot.node)
        for spot in calls
    )
    write = next(filter(None, writes), None)
    return Site(
        name=name,
        path=first.scope.path,
        position=first.position,
        leaf=first.leaf,
        shape=tuple(int(size) for size in tensor.shape),
        dtype=tensor.dtype,
        layout=layouts.pop(),
        calls=len({id(spot.scope) for spot in calls}),
        leads_on=any(_leads_on(recording, spot) for spot in calls),
        clone=None if write is None else write.name,
        scope=first.scope,
        node=first.node,
        nodes=tuple(spot.node for spot in calls),
    )


def _leads_on(recording: Recording, spot: Spot) -> bool:
    if spot.position == "output" and not recording.outlives(spot.scope, spot.node):
        return False
    return recording.leads_on(spot.node)


def _check_objects(recording: Recording, spot: Spot) -> None:
    """Refuse a tensor that is read on as another object than the one the site would replace."""
    scope, node = spot.scope, spot.node
    places = [place for place, output in scope.outputs if output is node] or [spot.leaf]
    if spot.position == "output" and not any(recording.is_read(scope, at) for at in places):
        given = {source.meta["storage"] for _, source in scope.inputs}
        if node.meta["storage"] in given and recording.outlives(scope, node):
            raise PlacementError(
                f"{scope.path} ({type(scope.module).__name__}) changes its argument in place, and "
                "its caller reads that argument on and not what the call returns: nothing that "
                f"is done to {spot.name} would ever be read. Write x = block(x) where it says "
                "block(x), or use a rule that leaves this module out."
            )
        if recording.is_by_value(scope, spot.leaf) and recording.is_read_after(scope, node):
            raise PlacementError(
                f"The caller of {scope.path} ({type(scope.module).__name__}) does not read what "
                "the call returns, but the same tensor in another place (an object that the module "
                f"changed, or an attribute): nothing that is done to {spot.name} would ever be "
                "read. Read what the call returns, or use a rule that selects the input of the "
                "module that reads it."
            )
    if spot.position == "input" and recording.changes_for_caller(scope, node):
        raise PlacementError(
            f"{scope.path} ({type(scope.module).__name__}) changes its argument in place, and its "
            f"caller reads that argument on: with a site at {spot.name} it would not see the "
            "change. Use a rule that leaves this module out."
        )


def _layout(recording: Recording, spot: Spot, given: Layout | None) -> Layout:
    shape = tuple(value(spot.node).shape)
    if given is not None:
        if given.ndim != len(shape):
            raise LayoutError(
                f"layout={str(given)!r} has {given.ndim} axes; {spot.name} has shape {shape}."
            )
        return given
    try:
        found = recording.layout(spot.node)
        _check_on_other_sizes(recording, spot, found)
        return found
    except LayoutError as error:
        letters = "NCHW" if len(shape) == 4 else "NLC"
        raise LayoutError(
            f"The channel axis of {spot.name} cannot be inferred with certainty: {error}. "
            f'Pass layout=, one letter an axis with C for the channels, such as "{letters}".'
        ) from error


def _check_on_other_sizes(recording: Recording, spot: Spot, found: Layout) -> None:
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
