"""Infer channel axes: which axes of which tensors are the same, and which of them hold channels.

Every axis of every recorded tensor starts as a class of its own. Functions that carry an axis
along (additions, permutes, reshapes, poolings, …) join classes; layers that treat an axis as
channels leave evidence on its class. A tensor's channel axis is the one with the strongest kind of
evidence: a normalization's over a convolution's, or a per-channel parameter's, over a linear
layer's. A linear layer counts least because token-mixing layers (MLP-Mixer) apply it to locations.
Two axes with equally strong evidence are an error.
"""

from __future__ import annotations

from enum import IntEnum

from torch import fx

from ._axis_rules import axis_links, channel_evidence
from ._errors import LayoutError
from ._layout import Layout
from ._recording import value

Axis = tuple[fx.Node, int]


class Evidence(IntEnum):
    """How surely an axis holds channels."""

    LINEAR = 1
    CONVOLUTION = 2
    NORMALIZATION = 3


class ChannelAxes:
    """Union-find over the axes of a flat graph's tensors."""

    def __init__(self, flat: fx.Graph) -> None:
        self._parent: dict[Axis, Axis] = {}
        self._evidence: dict[Axis, Evidence] = {}
        for node in flat.nodes:
            for here, there in axis_links(node):
                self._join(here, there)
        for node in flat.nodes:
            for axis, kind in channel_evidence(node):
                root = self._find(axis)
                found = Evidence[kind]
                self._evidence[root] = max(found, self._evidence.get(root, found))

    def layout(self, flat: fx.Node) -> Layout:
        """Return the layout of a flat node's tensor.

        **Raises:** `LayoutError` if no axis, or more than one, can be the channel axis.
        """
        shape = tuple(value(flat).shape)
        found = {
            axis: self._evidence[root]
            for axis in range(len(shape))
            if (root := self._find((flat, axis))) in self._evidence
        }
        if not found:
            raise LayoutError(
                f"no layer around the tensor of shape {shape} shows which axis holds channels"
            )
        strongest = max(found.values())
        axes = [axis for axis, evidence in found.items() if evidence == strongest]
        if len(axes) > 1:
            raise LayoutError(
                f"axes {axes} of the tensor of shape {shape} are all treated as channels by a "
                f"{strongest.name.lower()} layer"
            )
        return Layout(len(shape), axes[0])

    def same(self, one: Axis, other: Axis) -> bool:
        """Whether two axes were found to be the same."""
        return self._find(one) == self._find(other)

    def _find(self, axis: Axis) -> Axis:
        root = axis
        while (parent := self._parent.get(root, root)) != root:
            root = parent
        while axis != root:
            self._parent[axis], axis = root, self._parent.get(axis, root)
        return root

    def _join(self, one: Axis, other: Axis) -> None:
        self._parent[self._find(one)] = self._find(other)
