"""Rewritten models as graphs, files and pictures."""

from .._errors import ExportError as ExportError
from ._draw import draw as draw
from ._export import export as export
from ._folder import load_exported as load_exported
from ._graph_module import to_graph_module as to_graph_module
from ._metadata import read_metadata as read_metadata
from ._nodes import Demean as Demean
from ._nodes import VCReg as VCReg
from ._nodes import expect as expect
from ._two_modes import TwoModeGraphModule as TwoModeGraphModule
from ._two_modes import place as place
