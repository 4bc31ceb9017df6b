"""What the nodes of recorded graphs stand for: a function under its plain name, a tensor."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, TypeGuard

from torch import Tensor, fx

from ._errors import PlacementError
from ._torch import operator_name

_IN_PLACE = {"iadd": "add", "isub": "sub", "imul": "mul", "itruediv": "div"}
_REFLECTED = {"add", "sub", "mul", "truediv", "matmul", "pow"}


def operation(function: Callable[..., Any] | str) -> str:
    """Return the plain name of a torch function: ``add`` for ``+``, ``+=``, ``.add_`` alike.

    Operators of other libraries keep their namespace, ``mine::add``: they only share a name.
    """
    if isinstance(function, str):
        name = function
    elif (name := getattr(function, "__name__", type(function).__name__)) == "__get__":
        return str(getattr(function, "__self__", function).__name__)  # a property: Tensor.mT
    elif qualified := operator_name(getattr(function, "overloadpacket", function)):
        namespace, _, name = qualified.partition("::")
        if namespace != "aten":
            return qualified
    name = name.strip("_")
    if name.startswith("r") and name[1:] in _REFLECTED:
        name = name[1:]
    return _IN_PLACE.get(name, name)


def called(node: fx.Node) -> str:
    """Return the plain name of the function that a node calls; empty if it calls none."""
    return operation(node.target) if node.op == "call_function" else ""


def does(node: fx.Node) -> str:
    """Return the function that a node calls; of a module that does one function, that function."""
    if node.op == "call_module":
        inner = [n for n in node.meta["scope"].graph.nodes if n.op.startswith("call")]
        return does(inner[0]) if len(inner) == 1 else ""
    return called(node)


def value(node: fx.Node) -> Tensor:
    """Return the (data-less) tensor of a recorded node."""
    tensor = node.meta.get("val")
    if not isinstance(tensor, Tensor):
        raise PlacementError(f"The node {node.name} does not stand for one tensor.")
    return tensor


def is_activation(node: object) -> TypeGuard[fx.Node]:
    """Whether ``node`` is a graph node that stands for one floating-point tensor."""
    if not isinstance(node, fx.Node):
        return False
    tensor = node.meta.get("val")
    return isinstance(tensor, Tensor) and tensor.is_floating_point()


def reached(
    start: Iterable[fx.Node], onward: Callable[[fx.Node], Iterable[fx.Node]]
) -> set[fx.Node]:
    """Return the nodes at which a walk starts, and all that leads on from each, ``onward``."""
    found: set[fx.Node] = set()
    waiting = list(start)
    while waiting:
        if (node := waiting.pop()) not in found:
            found.add(node)
            waiting.extend(onward(node))
    return found
