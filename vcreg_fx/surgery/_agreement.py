"""Hold a traced forward against the recorded one: the same operations, and which node is which."""

from __future__ import annotations

import itertools
from collections import Counter
from typing import Any

from torch import fx, nn

from placement_rules import Scope, operation

from .._errors import InsideError


def find_node(inside: fx.Graph, root: nn.Module, scope: Scope, node: fx.Node) -> fx.Node:
    """Return the traced node for a recorded one.

    Nodes are told apart by their operation and by the modules whose results they depend on.

    **Raises:** `InsideError` if the two graphs do not agree.
    """
    recorded = _keys(scope.graph, {n: n.meta["scope"].module for n in _calls(scope.graph)})
    traced = _keys(inside, {n: root.get_submodule(str(n.target)) for n in _calls(inside)})
    key = recorded[node]
    alike = [other for other, found in recorded.items() if found == key]
    candidates = [other for other, found in traced.items() if found == key]
    if len(alike) != len(candidates):
        raise refusal(
            scope,
            f"{node.name} occurs {len(alike)} times in the recording and {len(candidates)} times "
            "when traced",
        )
    return candidates[alike.index(node)]


def compare(traced: fx.Graph, module: nn.Module, scope: Scope) -> None:
    """Check that tracing went through the recorded operations, in their order."""
    recorded = [
        key
        for node in scope.graph.nodes
        if (key := _step(node, lambda n: n.meta["scope"].module)) is not None
    ]
    scalars = _scalars(traced)
    followed = [
        key
        for node in traced.nodes
        if node not in scalars
        and (key := _step(node, lambda n: module.get_submodule(str(n.target)))) is not None
    ]
    for ours, theirs in itertools.zip_longest(followed, recorded):
        if ours != theirs:
            shown = [
                "nothing"
                if key is None
                else type(key).__name__
                if isinstance(key, nn.Module)
                else key
                for key in (ours, theirs)
            ]
            raise refusal(scope, f"traced, it does {shown[0]} where the recording did {shown[1]}")


def _show(step: Any) -> str:
    return type(step).__name__ if isinstance(step, nn.Module) else str(step or "nothing")


def _step(node: fx.Node, module_of: Any) -> Any:
    if node.op == "call_module":
        return module_of(node)
    if node.op not in {"call_function", "call_method"}:
        return None
    name = operation(node.target)
    return None if name in {"getitem", "leaf_of", "assert", "getattr", "contiguous"} else name


def _scalars(graph: fx.Graph) -> set[fx.Node]:
    """Return the nodes that stand for numbers and sizes rather than tensors."""
    found: set[fx.Node] = set()
    for node in graph.nodes:
        if node.op not in {"call_function", "call_method"}:
            continue
        name = operation(node.target)
        reads = name in {"size", "dim", "numel", "getattr", "len", "stride", "is_cuda", "type"}
        from_numbers = bool(node.all_input_nodes) and set(node.all_input_nodes) <= found
        in_python = getattr(node.target, "__module__", "") in {"_operator", "builtins", "math"}
        if reads or (from_numbers and in_python):
            found.add(node)
    return found


def _calls(graph: fx.Graph) -> list[fx.Node]:
    return [node for node in graph.nodes if node.op == "call_module"]


def _keys(graph: fx.Graph, modules: dict[fx.Node, nn.Module]) -> dict[fx.Node, Any]:
    """Return, for each function node, its operation and the module calls it depends on."""
    above: dict[fx.Node, set[fx.Node]] = {}
    keys = {}
    for node in graph.nodes:
        above[node] = {node}.union(*(above[source] for source in node.all_input_nodes))
        if node.op in {"call_function", "call_method"}:
            calls = Counter(id(modules[n]) for n in above[node] if n.op == "call_module")
            keys[node] = operation(node.target), frozenset(calls.items())
    return keys


def refusal(scope: Scope, reason: str) -> InsideError:
    """Return the error for a forward that cannot be rewritten in its middle."""
    return InsideError(
        f"{scope.path or 'the model itself'} ({type(scope.module).__name__}) cannot be rewritten "
        f"in the middle of its forward: {reason}. Rules for module outputs work, such as "
        '"blocks" or "head"; so does moving this step of the forward into a module of its own.'
    )
