"""Infer channel axes: which axes of which tensors are the same, and which of them hold channels.

Every axis of every recorded tensor starts as a class of its own. Functions that carry an axis
along (additions, permutes, reshapes, poolings, …) join classes; layers that treat an axis as
channels leave evidence on its class: normalizations, convolutions, linear layers, parameters with
one number a channel. A tensor's channel axis is the one that has every kind of evidence that any
other axis has, and more. So a token-mixing linear layer (MLP-Mixer) does not confuse it, and where
kinds of evidence contradict each other, nothing is guessed.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import fx

from .._errors import LayoutError
from .._node import value
from ._operations import Axis, axis_links, channel_evidence

_NAMES = {
    (2, 1): "NC",
    (3, 1): "NCL",
    (3, 2): "NLC",
    (4, 1): "NCHW",
    (4, 3): "NHWC",
    (5, 1): "NCTHW",
    (5, 4): "NTHWC",
}


@dataclass(frozen=True)
class Layout:
    """The number of axes of a tensor and which of them holds the channels.

    Every other axis holds samples: each spatial location counts as a sample of its own.

    **Arguments:**

    - `ndim`: number of axes.
    - `axis`: index of the channel axis, ``0 <= axis < ndim``.
    """

    ndim: int
    axis: int

    def __post_init__(self) -> None:
        """Check that the axis exists."""
        if not 0 <= self.axis < self.ndim:
            raise LayoutError(f"A tensor with {self.ndim} axes has no axis {self.axis}.")

    @classmethod
    def parse(cls, text: str | Layout) -> Layout:
        """Read a layout such as ``"NCHW"``: one letter an axis, ``C`` for the channels.

        **Raises:** `LayoutError` if there is not exactly one ``C`` or a letter is repeated.
        """
        if isinstance(text, Layout):
            return text
        letters = text.strip().upper()
        if letters.count("C") != 1 or len(set(letters)) != len(letters) or not letters.isalpha():
            raise LayoutError(
                f"{text!r} is not a layout. Write one letter an axis and exactly one C for the "
                'channel axis: "NC", "NLC", "NCHW", "NHWC", "NCTHW", "NTHWC".'
            )
        return cls(len(letters), letters.index("C"))

    @property
    def sample_axes(self) -> tuple[int, ...]:
        """Every axis but the channel axis."""
        return tuple(axis for axis in range(self.ndim) if axis != self.axis)

    def __str__(self) -> str:
        """Return the usual name (``"NCHW"``), or letters with ``C`` at the channel axis."""
        if name := _NAMES.get((self.ndim, self.axis)):
            return name
        others = iter("NABDEFGHIJKLM")
        return "".join("C" if axis == self.axis else next(others) for axis in range(self.ndim))


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
