"""A graph module with one graph for training and one for evaluation."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

from torch import Tensor, fx, nn

from placement_rules._torch import GENERATED, GRAPH, children_of, unsaved_buffers_of

from ..surgery import from_data, to_data

_GRAPHS = (GRAPH, "training_graph", "evaluation_graph")


class TwoModeGraphModule(fx.GraphModule):
    """A graph module that changes its graph with its mode.

    For models whose forward branches on ``self.training``, which tracing decides once and for all.
    ``graph`` and ``code`` are those of the current mode. A pass that edits the graph in place is
    to be run in both modes; one that makes a new module goes through `transform`.

    **Attributes:**

    - `training_graph`, `evaluation_graph`: the two graphs.
    """

    def __init__(
        self, root: nn.Module, training: fx.Graph, evaluation: fx.Graph, class_name: str
    ) -> None:
        super().__init__(root, training, class_name)
        place_targets(self, root, evaluation)
        self.training_graph = training
        self.evaluation_graph = evaluation
        if not self.training:
            self.graph = evaluation

    def train(self, mode: bool = True) -> TwoModeGraphModule:
        """Set the mode, and use the graph that was traced in it."""
        if mode != self.training:
            if self.training:  # what a pass may have put in its place
                self.training_graph = self.graph
            else:
                self.evaluation_graph = self.graph
            self.graph = self.training_graph if mode else self.evaluation_graph
        super().train(mode)
        return self

    def transform(self, change: Callable[[fx.GraphModule], fx.GraphModule]) -> TwoModeGraphModule:
        """Return a new module, both of whose graphs were changed by a function.

        **Arguments:**

        - `change`: takes a graph module of one mode and returns another, such as
          ``lambda module: MyTransformer(module).transform()``.
        """
        name = type(self).__name__
        was_training = self.training
        changed = {}
        for mode in (True, False):
            self.train(mode)
            changed[mode] = change(fx.GraphModule(self, copy.deepcopy(self.graph), name))
        self.train(was_training)
        root = nn.Module()
        for module in changed.values():
            place_targets(root, module, module.graph)
        root.training = was_training
        return TwoModeGraphModule(root, changed[True].graph, changed[False].graph, name)

    def __deepcopy__(self, memo: dict[int, Any]) -> TwoModeGraphModule:
        state = copy.deepcopy(self._state(), memo)
        training, evaluation = (copy.deepcopy(self._graph_of(mode)) for mode in (True, False))
        return _assemble(state, training, evaluation, type(self).__name__)

    def __reduce__(self) -> Any:
        graphs = (to_data(self._graph_of(mode)) for mode in (True, False))
        return _from_pickle, (self._state(), *graphs, type(self).__name__)

    def _graph_of(self, mode: bool) -> fx.Graph:
        if mode == self.training:
            graph: fx.Graph = self.graph
            return graph
        return self.training_graph if mode else self.evaluation_graph

    def _state(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name not in _GRAPHS}


def named_tensors(module: nn.Module) -> dict[str, Tensor]:
    """Return parameters and buffers, shared ones under each of their names."""
    return {
        **dict(module.named_parameters(remove_duplicate=False)),
        **dict(module.named_buffers(remove_duplicate=False)),
    }


def place_targets(root: nn.Module, source: nn.Module, graph: fx.Graph) -> None:
    """Give ``root`` whatever the graph names, shared with ``source``, under the same paths."""
    for node in graph.nodes:
        if node.op == "call_module":
            place(root, str(node.target), source.get_submodule(str(node.target)))
        elif node.op == "get_attr":
            path, _, name = str(node.target).rpartition(".")
            owner = source.get_submodule(path)
            persistent = name not in unsaved_buffers_of(owner)
            place(root, str(node.target), getattr(owner, name), persistent=persistent)


def place(root: nn.Module, target: str, value: Any, *, persistent: bool = True) -> None:
    """Put a module, parameter or tensor at a path below ``root``, with plain modules on the way."""
    *parts, name = target.split(".")
    for part in parts:
        if part not in children_of(root):
            root.add_module(part, nn.Module())
        root = root.get_submodule(part)
    if not hasattr(root, name):
        if isinstance(value, (nn.Module, nn.Parameter)):
            setattr(root, name, value)
        else:
            root.register_buffer(name, value, persistent=persistent)


def _from_pickle(state: dict[str, Any], training: Any, evaluation: Any, name: str) -> Any:
    return _assemble(state, from_data(training), from_data(evaluation), name)


def _assemble(
    state: dict[str, Any], training: fx.Graph, evaluation: fx.Graph, name: str
) -> TwoModeGraphModule:
    root = nn.Module()
    root.__dict__.update(state)
    result = TwoModeGraphModule(root, training, evaluation, name)
    result.__dict__.update({key: value for key, value in state.items() if key not in GENERATED})
    return result
