"""Find merges: where branches that left one activation are added, or concatenated, again."""

from __future__ import annotations

from torch import fx

from .._node import is_activation, operation
from ..recording import Scope
from ._residuals import Ancestry

_CONCATENATIONS = {"cat", "concat", "concatenate"}


def concatenations(scope: Scope) -> list[fx.Node]:
    """Return the nodes of a scope's own forward that concatenate branches of one activation.

    At least one module call lies on some of the branches and not on others.
    """
    ancestry = Ancestry(scope)
    found = []
    for node in scope.graph.nodes:
        if node.op != "call_function" or operation(node.target) not in _CONCATENATIONS:
            continue
        parts = [part for part in node.all_input_nodes if is_activation(part)]
        if len(parts) < 2:
            continue
        shared, anywhere = ancestry.of(parts[0]), 0
        for part in parts:
            shared &= ancestry.of(part)
            anywhere |= ancestry.of(part)
        joined = shared & ancestry.from_input or _branches_of_one(scope)
        if joined and anywhere & ~shared & ancestry.modules:
            found.append(node)
    return found


def _branches_of_one(scope: Scope) -> bool:
    """Whether the scope is a helper whose inputs are branches of one activation of its caller."""
    if scope.parent is None or scope.node is None:
        return False
    ancestry = Ancestry(scope.parent)
    given = [part for part in scope.node.all_input_nodes if is_activation(part)]
    shared = -1
    for part in given:
        shared &= ancestry.of(part)
    return len(given) > 1 and bool(shared & ancestry.from_input)
