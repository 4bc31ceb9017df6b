"""Graphs as plain data, so that rewritten modules can be pickled."""

from __future__ import annotations

import pickle
from typing import Any

from torch import fx
from torch.fx.node import map_aggregate, map_arg

from placement_rules import operation

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


class Shown:
    """A function of which only the name is known; it stands in graphs that are not run."""

    def __init__(self, name: str) -> None:
        self.__name__ = self.__qualname__ = name

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Refuse to run."""
        raise TypeError(f"This graph is a record of what ran; {self.__name__} cannot be run again.")


def to_shown_data(graph: fx.Graph) -> list[Row]:
    """Return a graph that is only shown: what cannot be pickled is replaced by its name or text."""
    return [
        (
            op,
            target if isinstance(target, str) or _is_plain(target) else Shown(operation(target)),
            name,
            map_aggregate(args, _plain),
            map_aggregate(kwargs, _plain),
        )
        for op, target, name, args, kwargs in to_data(graph)
    ]


def _plain(value: Any) -> Any:
    return value if _is_plain(value) else repr(value)


def _is_plain(value: Any) -> bool:
    if isinstance(value, (bool, int, float, str, type(None))):
        return True
    try:
        pickle.dumps(value)
    except (pickle.PicklingError, TypeError, AttributeError, RuntimeError):
        return False
    return True


def from_data(rows: list[Row]) -> fx.Graph:
    """Return the graph that `to_data` described."""
    graph = fx.Graph()
    nodes: dict[str, fx.Node] = {}

    def by_name(value: Any) -> Any:
        return nodes[value] if isinstance(value, _Ref) else value

    for op, target, name, args, kwargs in rows:
        given = map_aggregate(args, by_name), map_aggregate(kwargs, by_name)
        nodes[name] = graph.create_node(op, target, *given, name=name)
    return graph
