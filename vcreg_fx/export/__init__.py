"""Rewritten models as graphs, files and pictures."""

from ._draw import draw as draw
from ._errors import ExportError as ExportError
from ._export import export as export
from ._graph_module import to_graph_module as to_graph_module
from ._known import expect as expect
from ._metadata import read_metadata as read_metadata
from ._node_modules import Demean as Demean
from ._node_modules import VCReg as VCReg
from ._two_modes import TwoModeGraphModule as TwoModeGraphModule
from ._two_modes import place as place
from ._weights import load_exported as load_exported
