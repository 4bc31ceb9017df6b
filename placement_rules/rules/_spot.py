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
    for path, output in scope.outputs:
        if output is node:
            return Spot(scope, node, "output", path)
    for path, given in scope.inputs:
        if given is node:
            return Spot(scope, node, "input", path)
    return Spot(scope, node, node.name)


def _at_border(recording: Recording, spot: Spot) -> Spot | None:
    """Return a child's result as the child's output, where it is called at this place alone."""
    node = spot.node
    called = node.args[0] if "leaf" in node.meta else node
    if spot.position in {"input", "output"} or not isinstance(called, fx.Node):
        return None
    if called.op != "call_module" or len(recording.calls(str(called.target))) > 1:
        return None
    leaf = node.meta.get("leaf", ())
    inner: Scope = called.meta["scope"]
    found = next((output for path, output in inner.outputs if path == leaf), None)
    if found is None or is_batch_norm(inner.module):
        return None
    border = Spot(inner, found, "output", leaf)
    if keeps_container_forward(inner.module):
        maker = _maker(inner, found)
        return None if maker is None or is_batch_norm(maker.scope.module) else maker
    return border


def _maker(scope: Scope, node: fx.Node) -> Spot | None:
    """Follow a tensor down through plain containers to the module that made it."""
    while keeps_container_forward(scope.module):
        leaf: Path = ()
        if "leaf" in node.meta:
            leaf, source = node.meta["leaf"], node.args[0]
            if not isinstance(source, fx.Node):
                return None
            node = source
        if node.op != "call_module":
            return None
        scope = node.meta["scope"]
        found = next((output for path, output in scope.outputs if path == leaf), None)
        if found is None:
            return None
        node = found
    return _in_scope(scope, node)


def _taker(recording: Recording, node: fx.Node, maker: Spot) -> Spot | None:
    """Return the tensor as the input of the first module that takes it."""
    for scope, path, given in recording.takers(node.meta["flat"]):
        taken = scope.start > maker.scope.start and not keeps_container_forward(scope.module)
        if taken and not is_batch_norm(scope.module):
            return Spot(scope, given, "input", path)
    return None
