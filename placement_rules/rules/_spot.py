"""Where in a model a tensor is: which module owns it, and at which place of that module."""

from __future__ import annotations

from dataclasses import dataclass

from torch import fx

from .._errors import PlacementError
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
