"""``custom`` and ``pattern``: rules made of a function."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from torch import fx
from torch.fx.proxy import GraphAppendingTracer

from .._errors import PlacementError
from .._node import does, is_activation, operation
from ..recording import Recording, Scope
from ._rule import Found, Rule

_COMMUTING = {"add", "mul"}
Bound = dict[fx.Node, fx.Node]


class Custom(Rule):
    """Selects what a function of the recording returns.

    **Arguments:**

    - `function`: takes a `Recording`, returns pairs of a `Scope` and a node of its graph.
    """

    def __init__(self, function: Callable[[Recording], Iterable[Found]]) -> None:
        if not callable(function):
            raise PlacementError(f"custom({function!r}): give a function of the recording.")
        self.function = function

    def find(self, recording: Recording) -> Iterator[Found]:
        """Yield what the function returns.

        **Raises:** `PlacementError` if that is no pair of a scope and one of its nodes.
        """
        for item in self.function(recording):
            if not _is_pair(item):
                raise PlacementError(
                    f"{self} returned {item!r}; return pairs of a scope and a node of its graph."
                )
            yield item

    def why_none(self, recording: Recording) -> str:
        return "the function returned no tensor of the recording."


custom = Custom
"""``custom(function)``: what a function of the recording returns; by name, once registered."""


def _is_pair(item: object) -> bool:
    if not (isinstance(item, tuple) and len(item) == 2):
        return False
    scope, node = item
    return isinstance(scope, Scope) and isinstance(node, fx.Node) and node.graph is scope.graph


class Pattern(Rule):
    """Selects the results of a small function wherever it occurs in one module's forward.

    A module that does nothing but one function counts as that function: ``nn.ReLU`` as ``relu``.

    **Arguments:**

    - `function`: a function of tensors that ``torch.fx`` can trace, such as
      ``lambda x, f: torch.relu(x + f)``. Its arguments stand for any activations; one that occurs
      twice stands for the same activation. Numbers have to be equal.
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function = function
        try:
            self._graph = _graph_of(function)
        except Exception as error:
            raise PlacementError(f"{self} cannot be traced by torch.fx: {error}") from error
        *_, end = self._graph.nodes
        self._end = end.args[0]
        if not isinstance(self._end, fx.Node) or self._end.op == "placeholder":
            raise PlacementError(f"{self} must return one computed tensor.")

    def find(self, recording: Recording) -> list[Found]:
        return [
            (scope, node)
            for scope in recording.scopes
            for node in scope.graph.nodes
            if is_activation(node) and any(self._match(self._end, node, {}))
        ]

    def why_none(self, recording: Recording) -> str:
        wanted = [operation(n.target) for n in self._graph.nodes if n.op.startswith("call")]
        missing = sorted(set(wanted) - {does(n) for s in recording.scopes for n in s.graph.nodes})
        if missing:
            return f"{', '.join(missing)} occurs nowhere in the forward pass."
        return f"{', '.join(wanted)} occur, but nowhere joined like this in one module's forward."

    def _match(self, wanted: Any, node: Any, bound: Bound) -> Iterator[Bound]:
        if not isinstance(wanted, fx.Node):
            if not isinstance(node, fx.Node) and wanted == node:
                yield bound
            return
        if not isinstance(node, fx.Node):
            return
        if wanted.op == "placeholder":
            if is_activation(node) and bound.get(wanted, node) is node:
                yield {**bound, wanted: node}
            return
        if does(node) != operation(wanted.target):
            return
        args, expected = ([*n.args, *n.kwargs.values()] for n in (node, wanted))
        orders = [args]
        if operation(wanted.target) in _COMMUTING and len(args) == 2:
            orders.append(args[::-1])
        for order in orders:
            yield from self._match_all(expected, order[: len(expected)], bound)

    def _match_all(self, wanted: list[Any], args: list[Any], bound: Bound) -> Iterator[Bound]:
        if len(wanted) != len(args):
            return
        if not wanted:
            yield bound
            return
        for found in self._match(wanted[0], args[0], bound):
            yield from self._match_all(wanted[1:], args[1:], found)


pattern = Pattern
"""``pattern(function)``: where a small function occurs; by name in strings, once registered."""


def _graph_of(function: Callable[..., Any]) -> fx.Graph:
    """Trace a function of tensors; `fx.Tracer` would patch `nn.Module` for all threads."""
    graph = fx.Graph()
    tracer = GraphAppendingTracer(graph)
    given, named = [], {}
    for name, parameter in inspect.signature(function).parameters.items():
        proxy = fx.Proxy(graph.placeholder(name), tracer)
        if parameter.kind is parameter.KEYWORD_ONLY:
            named[name] = proxy
        else:
            given.append(proxy)
    graph.output(tracer.create_arg(function(*given, **named)))
    return graph
