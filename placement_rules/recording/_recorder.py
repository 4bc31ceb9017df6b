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
from ._fast import Results, another
from ._origin import OriginFinder
from ._pass import FunctionCall, ModuleCall, Pass, Write
from ._recording import Recording, Scope
from ._tree import Path, get_leaf, leaves

_DISPATCH = inspect.unwrap(FakeTensorMode.__torch_dispatch__).__code__
_MAPPED_FAST = (Tensor, int, float, str, type(None))


class Recorder(Pass):
    """Collects the scopes of one forward pass of ``copy``, a disposable copy of ``model``."""

    def __init__(self, model: nn.Module, copy: nn.Module, results: Results) -> None:
        super().__init__(model, copy.eval(), results)
        self.recording = Recording(model, [], fx.Graph(), self.writes)
        self._running: list[nn.Module] = []  # the copied modules of the scopes on the stack
        self._origins = OriginFinder()
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

    def end(self) -> None:
        super().end()
        self._origins.forget()

    # Calls of functions --------------------------------------------------------------------

    def called(self, call: FunctionCall) -> None:
        origin = self._origins.of_call(self._running[-1], 2)
        if not call.written and any(frame.code is _DISPATCH for frame in origin):
            return  # a step of compiled code, as of torch.jit, seen by chance
        self._kept.append(call.output)
        name, scope, output = operation(call.func), self._stack[-1], call.output
        node = self._create(scope.graph, "call_function", call.func, call, self._node_of, name)
        whole = self.recording.flat
        flat = self._create(whole, "call_function", call.func, call, self._flat_of, name)
        node.meta.update(origin=origin, flat=flat)
        flat.meta.update(scope=scope, node=node)
        where = f"{scope.path}:{node.name}"
        for tensor in call.written:
            self._bind(tensor, node, flat)
            self.writes.add(Write(node.meta["time"], storage_of(tensor), where))
        if isinstance(output, Tensor):
            self._bind(output, node, flat)
        elif not call.written:
            node.meta["val"] = flat.meta["val"] = output
        for path, tensor in () if isinstance(output, Tensor) else call.made:
            leaf, flat_leaf = self._leaf(node, path, tensor), self._leaf(flat, path, tensor)
            leaf.meta["flat"], flat_leaf.meta["scope"] = flat_leaf, scope
            self._known[-1][id(tensor)], self._flat[id(tensor)] = leaf, flat_leaf

    def _bind(self, tensor: Tensor, node: fx.Node, flat: fx.Node) -> None:
        """Let a function's nodes stand for a tensor from here on."""
        self._known[-1][id(tensor)], self._flat[id(tensor)] = node, flat
        for one in (node, flat):
            one.meta.update(val=tensor, storage=storage_of(tensor))

    # Calls of modules ----------------------------------------------------------------------

    def enter(self, call: ModuleCall) -> None:
        parent = self._stack[-1] if self._stack else None
        node, path = None, call.path
        if parent is not None:
            name = path.rpartition(".")[2]
            node = self._create(parent.graph, "call_module", path, call, self._node_of, name)
            node.meta["origin"] = self._origins.of_module_call(self._running[-1])
        scope = Scope(path, call.module, fx.Graph(), self._calls[path], parent, node)
        scope.args, scope.kwargs, scope.start = call.args, call.kwargs, self._tick()
        self._calls[path] += 1
        if node is not None:
            node.meta["scope"] = scope
        self._stack.append(scope)
        self._running.append(call.running)
        self._known.append({})
        self.recording.scopes.append(scope)
        for where, tensor in call.tensors:
            placeholder = self._known[-1].get(id(tensor))
            if placeholder is None:
                label = "_".join(str(key) for key in where)
                placeholder = scope.graph.create_node(
                    "placeholder", label, (), {}, name=f"input_{label}"
                )
                self._kept.append(tensor)
                self._note(placeholder, tensor)
            scope.inputs.append((where, placeholder))
            if getattr(call.module, "inplace", False) is True:  # dropout writes in train mode only
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
            self._note(scope.node, output)
            return output
        scope.node.meta.update(val=output, time=self._tick())
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
        call: FunctionCall | ModuleCall,
        lookup: Callable[[Tensor], fx.Node],
        name: str,
    ) -> fx.Node:
        def argument(item: Any) -> Any:
            return lookup(item) if isinstance(item, Tensor) else item

        mapped = _mapped(tuple(call.args), argument), _mapped(dict(call.kwargs), argument)
        node = graph.create_node(op, target, *mapped, name=name)
        node.meta["time"] = self._tick()
        return node

    def _leaf(self, node: fx.Node, path: Path, tensor: Tensor) -> fx.Node:
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
        self._note(node, tensor)
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

    def _note(self, node: fx.Node, tensor: Tensor) -> None:
        """Let a node of the current scope stand for a tensor that came to it."""
        flat, storage = self._flat_of(tensor), storage_of(tensor)
        node.meta.update(val=tensor, flat=flat, time=self._tick(), storage=storage)
        self._known[-1][id(tensor)] = node


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


def _leaf_of(value: Any, path: Path) -> Any:
    """Stand in recorded graphs for taking one tensor out of a structured output."""
    return get_leaf(value, path)
