"""What functions do to axes: a register that is filled by one file for each family of functions.

A function that is in no family joins no axes and shows no channels: what it does is not known.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Set
from dataclasses import dataclass
from typing import Any

from torch import Tensor, fx

from .._node import operation

Axis = tuple[fx.Node, int]
Link = tuple[Axis, Axis]
Evidence = tuple[Axis, str]
Effect = Callable[["Made"], Iterator[Any]]
Key = tuple[str, object]

LINEAR = "linear layer"  # the kind of evidence of all that mixes channels with weights
_LINKS: dict[Key, Effect] = {}
_EVIDENCE: dict[Key, Effect] = {}


def links(*names: str, part: object = None) -> Callable[[Effect], Effect]:
    """Say of which functions an effect yields pairs of axes that are the same.

    **Arguments:**

    - `names`: of the functions; ``"pool"`` stands for all that have it in their name.
    - `part`: of functions that return several tensors: the path of one, or ``"each"``.
    """
    return _into(_LINKS, names, part)


def evidence(*names: str, part: object = None) -> Callable[[Effect], Effect]:
    """Say of which functions an effect yields axes that are treated as channels, and by what."""
    return _into(_EVIDENCE, names, part)


def _into(
    table: dict[Key, Effect], names: Iterable[str], part: object
) -> Callable[[Effect], Effect]:
    def mark(effect: Effect) -> Effect:
        table.update(dict.fromkeys([(name, part) for name in names], effect))
        return effect

    return mark


def axis_links(node: fx.Node) -> Iterator[Link]:
    """Yield pairs of axes that a function leaves the same: (axis of the output, of an input)."""
    return _effect(_LINKS, node, frozenset())


def channel_evidence(node: fx.Node, weights: Set[fx.Node]) -> Iterator[Evidence]:
    """Yield axes that a function treats as channels, with the kind of the evidence.

    **Arguments:**

    - `weights`: the nodes that are parameters, or computed from these alone.
    """
    if node.op == "get_attr":
        wide = [axis for axis, size in enumerate(shape_of(node)) if size > 1]
        if len(wide) == 1 and node.meta["val"].is_floating_point():  # a scale or bias per channel
            return iter([((node, wide[0]), "parameter")])
    return _effect(_EVIDENCE, node, weights)


def _effect(table: dict[Key, Effect], node: fx.Node, weights: Set[fx.Node]) -> Iterator[Any]:
    path = node.meta.get("leaf")
    call = node if path is None else node.args[0]
    if not isinstance(call, fx.Node) or call.op != "call_function":
        return iter(())
    if not isinstance(node.meta.get("val"), Tensor):
        return iter(())
    made = Made(node, call, weights)
    name = "pool" if "pool" in made.name else made.name
    effect = table.get((name, path)) or (path is not None and table.get((name, "each")))
    return effect(made) if effect else iter(())


@dataclass(frozen=True)
class Made:
    """A tensor that a function made.

    **Attributes:**

    - `node`: its node.
    - `call`: the call of the function: the same node, or that of all results, if it is a part.
    - `weights`: the nodes that are parameters, or computed from these alone.
    """

    node: fx.Node
    call: fx.Node
    weights: Set[fx.Node]

    @property
    def name(self) -> str:
        """The function's plain name."""
        return operation(self.call.target)

    @property
    def shape(self) -> tuple[int, ...]:
        """The tensor's shape."""
        return shape_of(self.node)

    @property
    def ndim(self) -> int:
        """The tensor's number of axes."""
        return ndim_of(self.node)

    @property
    def sources(self) -> list[fx.Node]:
        """What the function was given."""
        return self.call.all_input_nodes

    @property
    def source(self) -> Any:
        """The function's first argument; None if that is no node."""
        args, kwargs = self.call.args, self.call.kwargs
        first = args[0] if args else kwargs.get("input", kwargs.get("query"))
        return first if isinstance(first, fx.Node) else None

    def argument(self, index: int, *names: str) -> Any:
        """Return an argument, given by position or by one of the names; None if it was not."""
        if len(self.call.args) > index:
            return self.call.args[index]
        return next((self.call.kwargs[n] for n in names if n in self.call.kwargs), None)

    def links(self, pairs: Iterable[tuple[int, int]], source: Any = None) -> Iterator[Link]:
        """Yield links to an argument, by default the first, of pairs of an axis here and there."""
        source = self.source if source is None else source
        if source is not None:
            yield from (((self.node, here), (source, there)) for here, there in pairs)

    def in_order(self, axes: Iterable[int] | None = None) -> Iterator[Link]:
        """Say that axes, by default all, are the first argument's; their sizes may change."""
        known = min(self.ndim, ndim_of(self.source))
        axes = range(known) if axes is None else axes
        return self.links((axis, axis) for axis in axes if axis < known)

    def without(self, dims: Any, new: int = 0) -> Iterator[Link]:
        """Say that the first argument's axes in `dims` are gone, or hold something else now.

        **Arguments:**

        - `dims`: one or several numbers of axes; anything else says nothing.
        - `new`: how many axes stand before all others that were not there.
        """
        given = [dims] if isinstance(dims, int) and not isinstance(dims, bool) else dims
        before = ndim_of(self.source)
        if not before or not isinstance(given, (tuple, list)) or not given:
            return iter(())
        if not all(isinstance(dim, int) for dim in given):
            return iter(())
        gone = {dim % before for dim in given}
        kept = [axis for axis in range(before) if axis not in gone]
        if self.ndim == before + new:  # the others stand where they stood
            return self.links((new + axis, axis) for axis in kept)
        fits = self.ndim == len(kept) + new
        return self.links((new + here, axis) for here, axis in enumerate(kept if fits else ()))

    def leading(self, source: fx.Node, last: int) -> Iterator[Link]:
        """Say that all axes but the last ones are an argument's, where they are of equal size."""
        there, here = shape_of(source), self.shape
        axes = range(len(here) - last if len(there) == len(here) else 0)
        return self.links(((axis, axis) for axis in axes if there[axis] == here[axis]), source)

    def last(self, *others: fx.Node | None) -> Iterator[Evidence]:
        """Yield the last axes of the tensor, and of others, as channels of a linear layer."""
        nodes = [node for node in (self.node, *others) if node is not None]
        return iter([((node, ndim_of(node) - 1), LINEAR) for node in nodes])


def shape_of(node: fx.Node | None) -> tuple[int, ...]:
    """Return the shape of a node's tensor; empty if it stands for none."""
    tensor = None if node is None else node.meta.get("val")
    return tuple(tensor.shape) if isinstance(tensor, Tensor) else ()


def ndim_of(node: fx.Node | None) -> int:
    """Return the number of axes of a node's tensor; 0 if it stands for none."""
    return len(shape_of(node))
