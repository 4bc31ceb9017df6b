"""The rules, one a file."""

from ._blocks import Blocks as Blocks
from ._blocks import blocks as blocks
from ._downsample import Downsample as Downsample
from ._downsample import downsample as downsample
from ._head import Head as Head
from ._head import head as head
from ._residual import Residual as Residual
from ._residual import residual as residual

VCReg1 = head
VCReg2 = blocks
VCReg3 = downsample
VCReg4 = blocks | downsample
