"""Infer channel axes: which axes of which tensors are the same, and which of them hold channels.

Every axis of every recorded tensor starts as a class of its own. Functions that carry an axis
along (additions, permutes, reshapes, poolings, …) join classes; layers that treat an axis as
channels leave evidence on its class: normalizations, convolutions, linear layers, parameters with
one number a channel. A tensor's channel axis is the one that has every kind of evidence that any
other axis has, and more. So a token-mixing linear layer (MLP-Mixer) does not confuse it, and where
kinds of evidence contradict each other, nothing is guessed.
"""

from __future__ import annotations

from torch import fx

from .._errors import LayoutError
from .._node import value
from ._layout import Layout
from ._operations import Axis, axis_links, channel_evidence


class UnionFind:
    """Classes of axes that are the same."""

    def __init__(self) -> None:
        self._parent: dict[Axis, Axis] = {}

    def find(self, axis: Axis) -> Axis:
        """Return the axis that stands for the class."""
        root = axis
        while (parent := self._parent.get(root, root)) != root:
            root = parent
        while axis != root:
            self._parent[axis], axis = root, self._parent.get(axis, root)
        return root

    def join(self, one: Axis, other: Axis) -> None:
        """Make one class of the two axes' classes."""
        self._parent[self.find(one)] = self.find(other)


class ChannelAxes(UnionFind):
    """The classes of the axes of a flat graph's tensors, and the evidence of channels on them."""

    def __init__(self, flat: fx.Graph, weights: set[fx.Node]) -> None:
        super().__init__()
        self._evidence: dict[Axis, set[str]] = {}
        for node in flat.nodes:
            for here, there in axis_links(node):
                self.join(here, there)
        for node in flat.nodes:
            for axis, kind in channel_evidence(node, weights):
                self._evidence.setdefault(self.find(axis), set()).add(kind)

    def layout(self, flat: fx.Node) -> Layout:
        """Return the layout of a flat node's tensor.

        **Raises:** `LayoutError` if no axis, or more than one, can be the channel axis.
        """
        shape = tuple(value(flat).shape)
        found = {
            axis: self._evidence[root]
            for axis in range(len(shape))
            if (root := self.find((flat, axis))) in self._evidence
        }
        if not found:
            raise LayoutError(
                f"no layer around the tensor of shape {shape} shows which axis holds channels"
            )
        best = max(found, key=lambda axis: len(found[axis]))
        if any(not kinds < found[best] for axis, kinds in found.items() if axis != best):
            listed = "; ".join(f"axis {a}: {', '.join(sorted(k))}" for a, k in found.items())
            raise LayoutError(
                f"more than one axis of the tensor of shape {shape} is treated as channels "
                f"({listed})"
            )
        return Layout(len(shape), best)
