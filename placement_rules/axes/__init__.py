"""Which axis of a tensor holds the channels, and which axes of which tensors are the same.

This floor knows graphs of functions alone: nodes, each with its tensor without data.
"""

from ._axis_rules import axis_links as axis_links
from ._channels import ChannelAxes as ChannelAxes
from ._channels import UnionFind as UnionFind
from ._layout import Layout as Layout
