"""Rewritten models as graphs, files and pictures."""

from ._draw import draw as draw
from ._graph_module import to_graph_module as to_graph_module
from ._node_modules import Demean as Demean
from ._node_modules import VCReg as VCReg
