"""Record one forward pass: a function mode sees every call, hooks see every module."""

from __future__ import annotations

import inspect
from collections import Counter
from collections.abc import Callable
from typing import Any

from torch import Tensor, fx, nn
from torch.fx.node import map_aggregate

from .._node import operation
from .._torch import FakeTensorMode, storage_of, tree_map
from ._origin import Origin, OriginFinder
from ._pass import Pass
from ._recording import Recording, Scope
from ._results import Results, another
from ._tree import get_leaf, leaves
from ._writes import Write

_DISPATCH = inspect.unwrap(FakeTensorMode.__torch_dispatch__).__code__
_MAPPED_FAST = (Tensor, int, float, str, type(None))


class Recorder(Pass):
    """Collects the scopes of one forward pass of ``copy``, a disposable copy of ``model``."""

    def __init__(self, model: nn.Module, copy: nn.Module, results: Results) -> None:
        super().__init__(model, copy, results)
        self.recording = Recording(model, [], fx.Graph(), self.writes)
        self._running: list[nn.Module] = []  # the copied modules of the scopes on the stack
        self.origins = OriginFinder()
        self._known: list[dict[int, fx.Node]] = []  # per scope on the stack: tensor id -> node
        self._flat: dict[int, fx.Node] = {}
        self._calls: Counter[str] = Counter()
        self._names = {
            id(tensor): name
            for source in (copy.named_parameters(), copy.named_buffers())
            for name, tensor in source
        }
        self._constants = {
            id(value)
            for module in copy.modules()
            for value in vars(module).values()
            if isinstance(value, Tensor)
        }

    # Calls of functions --------------------------------------------------------------------

    def called(
        self,
        func: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        output: Any,
        made: list[tuple[Any, Tensor]],
        written: list[Tensor],
    ) -> None:
        """Record a function that made or changed a tensor."""
        origin = self.origins.of_call(self._running[-1], 2)
        if not written and any(frame.code is _DISPATCH for frame in origin):
            return  # a step of compiled code, as of torch.jit, seen by chance
        self._record_function(func, args, kwargs, output, made, written, origin)

    def _record_function(
        self,
        func: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        output: Any,
        made: list[tuple[Any, Tensor]],
        written: list[Tensor],
        origin: Origin,
    ) -> None:
        self._kept.append(output)
        name = operation(func)
        node = self._create(
            self._stack[-1].graph, "call_function", func, args, kwargs, self._node_of, name
        )
        flat = self._create(
            self.recording.flat, "call_function", func, args, kwargs, self._flat_of, name
        )
        node.meta["val"] = flat.meta["val"] = output
        node.meta["origin"] = origin
        if isinstance(output, Tensor):
            node.meta["storage"] = flat.meta["storage"] = storage_of(output)
        flat.meta["scope"], node.meta["flat"] = self._stack[-1], flat
        flat.meta["node"] = node
        for tensor in written:
            self._bind(tensor, node)
            self._flat[id(tensor)] = flat
            if not isinstance(output, Tensor):
                node.meta["val"] = flat.meta["val"] = tensor
                node.meta["storage"] = flat.meta["storage"] = storage_of(tensor)
            where = f"{self._stack[-1].path}:{node.name}"
            self.writes.add(Write(node.meta["time"], storage_of(tensor), where))
        if isinstance(output, Tensor):
            self._bind(output, node)
            self._flat[id(output)] = flat
            return
        for path, tensor in made:
            self._known[-1][id(tensor)] = leaf = self._leaf(node, path, tensor)
            self._flat[id(tensor)] = self._leaf(flat, path, tensor)
            leaf.meta["flat"] = self._flat[id(tensor)]
            self._flat[id(tensor)].meta["scope"] = self._stack[-1]

    # Calls of modules ----------------------------------------------------------------------

    def enter(
        self,
        path: str,
        module: nn.Module,
        running: nn.Module,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> None:
        """Begin the scope of a call of a module, whose copy is running."""
        parent = self._stack[-1] if self._stack else None
        node = None
        if parent is not None:
            node = self._create(
                parent.graph,
                "call_module",
                path,
                args,
                kwargs,
                self._node_of,
                path.rpartition(".")[2],
            )
            node.meta["origin"] = self.origins.of_module_call(self._running[-1])
        scope = Scope(
            path, module, fx.Graph(), self._calls[path], parent, node, args, kwargs, self._tick()
        )
        self._calls[path] += 1
        if node is not None:
            node.meta["scope"] = scope
        self._stack.append(scope)
        self._running.append(running)
        self._known.append({})
        self.recording.scopes.append(scope)
        for where, tensor in [*leaves(args), *leaves(kwargs)]:
            placeholder = self._known[-1].get(id(tensor))
            if placeholder is None:
                label = "_".join(str(key) for key in where)
                placeholder = scope.graph.create_node(
                    "placeholder", label, (), {}, name=f"input_{label}"
                )
                self._kept.append(tensor)
                self._note(placeholder, tensor, self._flat_of(tensor))
                self._known[-1][id(tensor)] = placeholder
            scope.inputs.append((where, placeholder))
            if getattr(module, "inplace", False) is True:  # dropout writes in train mode only
                self.writes.add(Write(scope.start, storage_of(tensor), path))

    def leave(self, module: nn.Module, output: Any) -> Any:
        """End the scope of a module call.

        **Returns:** the output. A tensor that the caller has already, because the module returns
        what it was given, is returned as an object of its own, so that it shows which of the two
        the caller reads on.
        """
        scope = self._stack[-1]
        self._kept.append(output)
        found = list(leaves(output))
        scope.outputs = [(path, self._node_of(tensor)) for path, tensor in found]
        scope.graph.create_node("output", "output", (tuple(node for _, node in scope.outputs),), {})
        self._pop()
        if scope.node is None:
            return output
        if isinstance(output, Tensor):
            flat = self._flat_of(output)
            if id(output) not in self._known[-1] and _holds((scope.args, scope.kwargs), output):
                self._capture(output)  # the caller finds it in an object that it passed, too
            if id(output) in self._known[-1] and not isinstance(output, nn.Parameter):
                output = another(output)
                self._kept.append(output)
                self._flat[id(output)] = flat
            self._note(scope.node, output, flat)
            self._known[-1][id(output)] = scope.node
            return output
        scope.node.meta["val"] = output
        scope.node.meta["time"] = self._tick()
        for path, tensor in found:
            leaf = self._leaf(scope.node, path, tensor)
            leaf.meta["flat"] = self._flat_of(tensor)
            self._known[-1][id(tensor)] = leaf
        return output

    def _pop(self) -> None:
        self._stack[-1].end = self._tick()
        super()._pop()
        self._running.pop()
        self._known.pop()

    # Nodes ---------------------------------------------------------------------------------

    def _create(
        self,
        graph: fx.Graph,
        op: str,
        target: Any,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        lookup: Callable[[Tensor], fx.Node],
        name: str,
    ) -> fx.Node:
        def argument(item: Any) -> Any:
            return lookup(item) if isinstance(item, Tensor) else item

        mapped = _mapped(tuple(args), argument), _mapped(dict(kwargs), argument)
        node = graph.create_node(op, target, *mapped, name=name)
        node.meta["time"] = self._tick()
        return node

    def _leaf(self, node: fx.Node, path: Any, tensor: Tensor) -> fx.Node:
        leaf = node.graph.create_node(
            "call_function", _leaf_of, (node, path), {}, name=f"{node.name}_leaf"
        )
        leaf.meta.update(val=tensor, time=self._tick(), leaf=path, storage=storage_of(tensor))
        return leaf

    def _node_of(self, tensor: Tensor) -> fx.Node:
        """Return the tensor's node in the current scope, made on first sight."""
        known: fx.Node | None = self._known[-1].get(id(tensor))
        if known is None:
            known = self._capture(tensor)
            unnamed = not known.meta["parameter"] and id(tensor) not in self._constants
            if unnamed and tensor.is_floating_point():
                self.recording.unseen.append(self._stack[-1].path)
        return known

    def _capture(self, tensor: Tensor) -> fx.Node:
        """Make a node for a tensor that comes from elsewhere than the current scope."""
        name = self._names.get(id(tensor))
        graph = self._stack[-1].graph
        node: fx.Node = graph.create_node("get_attr", name or "captured", (), {}, _as_name(name))
        node.meta["parameter"] = name is not None
        self._kept.append(tensor)
        self._note(node, tensor, self._flat_of(tensor))
        self._known[-1][id(tensor)] = node
        return node

    def _flat_of(self, tensor: Tensor) -> fx.Node:
        if id(tensor) not in self._flat:
            name = self._names.get(id(tensor))
            op = "placeholder" if name is None else "get_attr"
            flat = self.recording.flat.create_node(op, name or "input", (), {}, _as_name(name))
            flat.meta.update(val=tensor, storage=storage_of(tensor))
            self._kept.append(tensor)
            self._flat[id(tensor)] = flat
        return self._flat[id(tensor)]

    def _bind(self, tensor: Tensor, node: fx.Node) -> None:
        self._known[-1][id(tensor)] = node

    def _note(self, node: fx.Node, tensor: Tensor, flat: fx.Node) -> None:
        node.meta.update(val=tensor, flat=flat, time=self._tick(), storage=storage_of(tensor))


def _holds(arguments: Any, tensor: Tensor) -> bool:
    """Whether a tensor lies in one of the structures among a call's arguments."""
    args, kwargs = arguments
    structures = [item for item in (*args, *kwargs.values()) if not isinstance(item, Tensor)]
    return any(found is tensor for _, found in leaves(structures))


def _as_name(path: str | None) -> str | None:
    """Return a parameter's name as that of a node, which fx would take longer to find."""
    return None if path is None else path.replace(".", "_")


def _mapped(arguments: Any, change: Callable[[Any], Any]) -> Any:
    """Return arguments with every leaf changed; containers other than Python's own take longer."""
    items = arguments.values() if isinstance(arguments, dict) else arguments
    if all(isinstance(item, _MAPPED_FAST) for item in items):
        return map_aggregate(arguments, change)
    return tree_map(change, arguments)


def _leaf_of(value: Any, path: Any) -> Any:
    """Stand in recorded graphs for taking one tensor out of a structured output."""
    return get_leaf(value, path)
