"""Which axis of a tensor holds the channels, and which axes of which tensors are the same.

This floor knows graphs of functions alone: nodes, each with its tensor without data.
"""

# Each of these files says of a family of functions what they do to axes.
from . import _arithmetic, _layers, _shapes  # noqa: F401
from ._layout import ChannelAxes as ChannelAxes
from ._layout import Layout as Layout
from ._layout import UnionFind as UnionFind
from ._operations import axis_links as axis_links
