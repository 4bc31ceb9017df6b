"""What a forward pass did: one small graph for every module call, in execution order."""

from __future__ import annotations

import warnings
from bisect import bisect_left
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from itertools import accumulate, tee
from math import inf, prod
from typing import Any, TypeVar, cast

from torch import fx, nn

from .._errors import LayoutError
from .._node import is_activation, reached, value
from .._torch import BASES_OF_BATCH_NORMS
from ..axes import ChannelAxes, Layout
from ._pass import Key, TrainingPass, Write, Writes, keys_of
from ._tree import Path, get_leaf

Made = TypeVar("Made")
_CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)


@dataclass(eq=False)
class Scope:
    """One call of one module, seen one level deep.

    In `graph`, functions and methods are ``call_function`` nodes, each child module that was
    called is one ``call_module`` node, parameters and buffers are ``get_attr`` nodes. A node's
    ``meta`` holds ``val`` (its tensor, without data), ``time`` (its place in the whole recording),
    ``flat`` (the node of `Recording.flat` with the same value), for calls ``origin`` (where in the
    source the call stands) and, for a ``call_module`` node, ``scope`` (the call it stands for).
    """

    path: str
    module: nn.Module
    graph: fx.Graph
    call: int = 0
    parent: Scope | None = None
    node: fx.Node | None = None
    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = field(default_factory=dict)
    start: int = 0
    end: int = 0
    inputs: list[tuple[Path, fx.Node]] = field(default_factory=list)
    outputs: list[tuple[Path, fx.Node]] = field(default_factory=list)

    @property
    def children(self) -> Iterator[Scope]:
        """The module calls made directly by this one, in order."""
        for node in self.graph.nodes:
            if node.op == "call_module":
                yield node.meta["scope"]

    @cached_property
    def named(self) -> dict[str, fx.Node]:
        """The nodes of the graph by name, once the call has ended."""
        return {node.name: node for node in self.graph.nodes}

    @property
    def above(self) -> Iterator[Scope]:
        """The calls around this one, the innermost first."""
        if self.parent is not None:
            yield self.parent
            yield from self.parent.above

    @property
    def activations(self) -> list[fx.Node]:
        """The floating-point tensors that the call returned."""
        return [node for _, node in self.outputs if is_activation(node)]

    def border(self, node: fx.Node) -> tuple[str, Path] | None:
        """Return whether a node is an ``"output"`` or ``"input"`` of the call, and its path."""
        for name, border in (("output", self.outputs), ("input", self.inputs)):
            for path, found in border:
                if found is node:
                    return name, path
        return None

    @cached_property
    def keys(self) -> dict[fx.Node, Key]:
        """What the nodes have in the pass in train mode."""
        return keys_of(self.graph)

    @cached_property
    def reads(self) -> dict[int, tuple[tuple[int, ...], tuple[float, ...]]]:
        """For each storage, when the call's own nodes get it, and its last read up to each.

        What a call returns is read later than anything that it does.
        """
        found: dict[int, list[tuple[int, float]]] = {}
        for node in self.graph.nodes:
            if "storage" in node.meta:
                ends = (inf if user.op == "output" else user.meta["time"] for user in node.users)
                read = (node.meta["time"], max(ends, default=0.0))
                found.setdefault(node.meta["storage"], []).append(read)
        columns = {storage: zip(*sorted(reads), strict=True) for storage, reads in found.items()}
        return {at: (times, tuple(accumulate(ends, max))) for at, (times, ends) in columns.items()}

    def __repr__(self) -> str:
        """Name the module and its call."""
        return f"Scope({self.path or '(root)'}: {type(self.module).__name__}, call {self.call})"


@dataclass(eq=False)
class Recording:
    """One forward pass of a model, recorded without arithmetic.

    **Attributes:**

    - `model`: the user's model, which the recording never ran and never changed.
    - `scopes`: the module calls in the order they began; the first is the model's own.
    - `flat`: all functions that ran, in one graph: how tensors flow through module borders.
    - `writes`: the in-place writes.
    - `unseen`: where tensors came from calls that could not be recorded, as of scripted functions.
    - `run_training`: runs a pass in train mode, if the model can run without data there.
    - `run_again`: records passes on inputs of other sizes, one by one, as far as the model takes
      them.
    """

    model: nn.Module
    scopes: list[Scope]
    flat: fx.Graph
    writes: Writes
    unseen: list[str] = field(default_factory=list)
    run_training: Callable[[], TrainingPass | None] = field(default=lambda: None, repr=False)
    run_again: Callable[[], Iterator[Recording]] = field(default=lambda: iter(()), repr=False)
    _told: bool = field(default=False, repr=False)
    _made: dict[Callable[..., Any], Any] = field(default_factory=dict, repr=False)

    @cached_property
    def in_training(self) -> TrainingPass | None:
        """The pass in train mode, made when it is first asked for."""
        found = self.run_training()
        self.run_training = lambda: found  # and lets go of the copied model
        return found

    @property
    def what_is_unseen(self) -> str | None:
        """A sentence on tensors whose making was not recorded, if there are any."""
        if not self.unseen:
            return None
        paths = ", ".join(path or "the model itself" for path in dict.fromkeys(self.unseen))
        return (
            f"In {paths}, tensors come from calls that cannot be recorded, as those of scripted "
            "functions and compiled extensions: sums in them are not seen."
        )

    def tell_unseen(self) -> None:
        """Warn once of tensors whose making was not recorded, where a rule looks for sums."""
        if (told := self.what_is_unseen) is not None and not self._told:
            self._told = True
            warnings.warn(f"{told} Their blocks can be named: modules(…).", stacklevel=2)

    def on_other_sizes(self) -> Iterator[Recording]:
        """Return recordings of the model on inputs of other sizes; each is made once."""
        self._again, found = tee(self._again)
        return found

    @cached_property
    def _again(self) -> Iterator[Recording]:
        return self.run_again()

    def once(self, make: Callable[[Recording], Made]) -> Made:
        """Return what a function makes of the recording, made when it is first asked for."""
        if make not in self._made:
            self._made[make] = make(self)
        return cast("Made", self._made[make])

    @property
    def root(self) -> Scope:
        """The call of the model itself."""
        return self.scopes[0]

    @cached_property
    def _by_path(self) -> dict[str, list[Scope]]:
        calls: dict[str, list[Scope]] = {}
        for scope in self.scopes:
            calls.setdefault(scope.path, []).append(scope)
        return calls

    def calls(self, path: str) -> list[Scope]:
        """Return the calls of the module at ``path``, in order; empty if it was never called."""
        return self._by_path.get(path, [])

    def takers(self, flat: fx.Node) -> list[tuple[Scope, Path, fx.Node]]:
        """Return the module calls that a tensor was given to, in order, and where they have it."""
        return self._takers.get(flat, [])

    @cached_property
    def _takers(self) -> dict[fx.Node, list[tuple[Scope, Path, fx.Node]]]:
        takers: dict[fx.Node, list[tuple[Scope, Path, fx.Node]]] = {}
        for scope in self.scopes:
            for path, given in scope.inputs:
                takers.setdefault(given.meta["flat"], []).append((scope, path, given))
        return takers

    @cached_property
    def weights(self) -> set[fx.Node]:
        """The nodes of `flat` that are parameters or buffers, or computed from these alone."""
        found: set[fx.Node] = set()
        for node in self.flat.nodes:
            sources = node.all_input_nodes
            if node.op == "get_attr" or (sources and all(source in found for source in sources)):
                found.add(node)
        return found

    @cached_property
    def axes(self) -> ChannelAxes:
        """The channel axes of all recorded tensors, worked out once."""
        return ChannelAxes(self.flat, self.weights)

    def layout(self, node: fx.Node) -> Layout:
        """Return the layout of a node's tensor.

        **Raises:** `LayoutError` if the channel axis cannot be inferred with certainty.
        """
        return self.axes.layout(node.meta["flat"])

    @cached_property
    def _leading_on(self) -> set[fx.Node]:
        """The nodes of `flat` on which the model's outputs depend, views and their bases alike."""
        together: dict[int, list[fx.Node]] = {}
        for node in self.flat.nodes:
            if "storage" in node.meta:
                together.setdefault(node.meta["storage"], []).append(node)
        return reached(
            (output.meta["flat"] for _, output in self.root.outputs),
            lambda n: (*n.all_input_nodes, *together.pop(n.meta.get("storage", -1), ())),
        )

    @cached_property
    def _last_read(self) -> dict[int, int]:
        """When each storage is last read by what the model's outputs depend on."""
        last: dict[int, int] = {}
        for reader in self._leading_on:
            for source in reader.all_input_nodes:
                if (storage := source.meta.get("storage")) is not None:
                    last[storage] = max(last.get(storage, 0), reader.meta.get("time", 0))
        return last

    def leads_on(self, node: fx.Node) -> bool:
        """Whether the model's output depends on a node's tensor."""
        return node.meta["flat"] in self._leading_on

    def outlives(self, scope: Scope, node: fx.Node) -> bool:
        """Whether the model's output depends on what is read of a tensor after a call has ended."""
        flat = node.meta["flat"]
        if scope.parent is None or any(n.meta["flat"] is flat for _, n in self.root.outputs):
            return True
        return self._last_read.get(node.meta["storage"], 0) > scope.end

    def changes_for_caller(self, scope: Scope, node: fx.Node) -> bool:
        """Whether a call writes to an argument of its own that its caller reads on later."""
        if scope.parent is None:
            return False
        storage = node.meta["storage"]
        if not self.writes.within(storage, scope.start, scope.end):
            return False
        times, reads = scope.parent.reads.get(storage, ((), ()))
        earlier = bisect_left(times, scope.start)  # what the caller had before it made this call
        return earlier > 0 and reads[earlier - 1] > scope.end

    def is_read(self, scope: Scope, path: Path) -> bool:
        """Whether the caller of a module reads what that call returned at ``path``."""
        if scope.node is None or scope.parent is None:
            return True
        leaves = [user for user in scope.node.users if "leaf" in user.meta]
        node = scope.node if not path else next(n for n in leaves if n.meta["leaf"] == path)
        passed_on = [place for place, output in scope.parent.outputs if output is node]
        return any(user.op != "output" for user in node.users) or any(
            self.is_read(scope.parent, place) for place in passed_on
        )

    def is_by_value(self, scope: Scope, path: Path) -> bool:
        """Whether a tensor that is put at a path of what a call returned is seen there alone.

        A dict that a module changes and returns may be its caller's own, who sees it as well.
        """
        around = None if scope.node is None else scope.node.meta["val"]
        for key in path[:-1]:
            around = get_leaf(around, (key,))
        return not path or isinstance(around, tuple)

    def is_read_after(self, scope: Scope, node: fx.Node) -> bool:
        """Whether the model's output depends on what reads this very tensor after a call."""
        flat = node.meta["flat"]
        return any(n.meta["flat"] is flat for _, n in self.root.outputs) or any(
            user.meta.get("time", 0) > scope.end and user in self._leading_on for user in flat.users
        )

    def locations(self, node: fx.Node) -> int | None:
        """Return the number of locations of a node's tensor, per example; None if unknown."""
        shape = value(node).shape
        try:
            layout = self.layout(node)
        except LayoutError:
            return None
        return prod(int(shape[axis]) for axis in layout.sample_axes[1:])

    def write_after(self, node: fx.Node) -> Write | None:
        """Return the first in-place write to the node's storage after the node ran, if any."""
        return self.writes.after(node.meta["storage"], node.meta["time"])

    def written_in_training(self, scope: Scope, node: fx.Node) -> Write | None:
        """Return the first write to the node's tensor in train mode, if it was found there."""
        if self.in_training is None:
            return None
        if (border := scope.border(node)) is not None:
            name, path = border
            return self.in_training.written(scope.path, scope.call, (name, 0, path))
        key = scope.keys.get(node)
        return None if key is None else self.in_training.written(scope.path, scope.call, key)


def keeps_container_forward(module: nn.Module) -> bool:
    """Whether the module is a plain container: it only calls its children (or is not called)."""
    return isinstance(module, _CONTAINERS) and (
        getattr(type(module), "forward", None)
        in {nn.Sequential.forward, nn.ModuleList.forward, nn.ModuleDict.forward}
    )


def is_batch_norm(module: nn.Module) -> bool:
    """Whether ``convert_sync_batchnorm`` would rebuild the module."""
    return isinstance(module, BASES_OF_BATCH_NORMS)
