"""Graphs as plain data, so that rewritten modules can be pickled."""

from __future__ import annotations

from typing import Any

from torch import fx
from torch.fx.node import map_arg

Row = tuple[str, Any, str, tuple[Any, ...], dict[str, Any]]


class _Ref(str):
    """The name of a node, in place of the node."""

    __slots__ = ()


def to_data(graph: fx.Graph) -> list[Row]:
    """Return a graph's nodes as (op, target, name, args, kwargs), with names for nodes."""

    def by_name(node: fx.Node) -> Any:
        return _Ref(node.name)

    return [
        (
            node.op,
            node.target,
            node.name,
            map_arg(node.args, by_name),
            map_arg(node.kwargs, by_name),
        )
        for node in graph.nodes
    ]


def from_data(rows: list[Row]) -> fx.Graph:
    """Return the graph that `to_data` described."""
    graph = fx.Graph()
    nodes: dict[str, fx.Node] = {}

    def resolve(value: Any) -> Any:
        if isinstance(value, _Ref):
            return nodes[value]
        if isinstance(value, slice):
            return slice(resolve(value.start), resolve(value.stop), resolve(value.step))
        if isinstance(value, (list, tuple)):
            return type(value)([resolve(item) for item in value])
        if isinstance(value, dict):
            return {key: resolve(item) for key, item in value.items()}
        return value

    for op, target, name, args, kwargs in rows:
        nodes[name] = graph.create_node(
            op, target, resolve(tuple(args)), resolve(dict(kwargs)), name=name
        )
    return graph
