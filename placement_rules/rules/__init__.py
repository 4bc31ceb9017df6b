"""The rules, one a file."""

from typing import Any

from ._at import at as at
from ._blocks import blocks as blocks
from ._custom import custom as custom
from ._downsample import downsample as downsample
from ._head import head as head
from ._modules import modules as modules
from ._names import register
from ._pattern import pattern as pattern
from ._pick import every as every
from ._pick import first as first
from ._pick import last as last
from ._residual import residual as residual
from ._series import Series as Series
from ._series import each as each
from ._series import leave_one_out as leave_one_out
from ._series import prefixes as prefixes
from ._stages import stage as stage
from ._stages import stages as stages

VCReg1 = head
VCReg2 = blocks
VCReg3 = downsample
VCReg4 = blocks | downsample

_named: dict[str, Any] = {
    "VCReg1": VCReg1,
    "VCReg2": VCReg2,
    "VCReg3": VCReg3,
    "VCReg4": VCReg4,
    "at": at,
    "blocks": blocks,
    "downsample": downsample,
    "every": every,
    "first": first,
    "head": head,
    "last": last,
    "modules": modules,
    "residual": residual,
    "stage": stage,
    "stages": stages,
}
for _name, _rule in _named.items():
    register(_name, _rule)
