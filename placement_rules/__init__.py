"""Where in a model a regularizer attaches: recordings, layouts, rules.

This package knows models and graphs, and nothing of what is done at the sites it finds.
"""

from ._errors import ExampleInputsError as ExampleInputsError
from ._errors import LayoutError as LayoutError
from ._errors import NoSiteError as NoSiteError
from ._errors import PlacementError as PlacementError
from ._errors import RecordingError as RecordingError
from ._errors import RuleSyntaxError as RuleSyntaxError
from ._inputs import Inputs as Inputs
from ._inputs import candidate_inputs as candidate_inputs
from ._layout import Layout as Layout
from ._names import register as register
from ._operation import operation as operation
from ._origin import Frame as Frame
from ._origin import function_of as function_of
from ._origin import without_dispatch as without_dispatch
from ._origin import wrapped_by as wrapped_by
from ._parse import parse as parse
from ._pass import is_recording as is_recording
from ._record import record as record
from ._recording import Recording as Recording
from ._recording import Scope as Scope
from ._rule import Filter as Filter
from ._rule import Rule as Rule
from ._site import Site as Site
from ._site import resolve as resolve
from ._spot import Spot as Spot
from ._tree import format_path as format_path
from ._tree import get_leaf as get_leaf
from ._tree import is_same as is_same
from ._tree import leaves as leaves
from ._tree import replace_leaf as replace_leaf
from ._unrecorded import unrecorded as unrecorded
from .rules import Series as Series
from .rules import VCReg1 as VCReg1
from .rules import VCReg2 as VCReg2
from .rules import VCReg3 as VCReg3
from .rules import VCReg4 as VCReg4
from .rules import at as at
from .rules import blocks as blocks
from .rules import custom as custom
from .rules import downsample as downsample
from .rules import each as each
from .rules import every as every
from .rules import first as first
from .rules import head as head
from .rules import last as last
from .rules import leave_one_out as leave_one_out
from .rules import modules as modules
from .rules import pattern as pattern
from .rules import prefixes as prefixes
from .rules import residual as residual
from .rules import stage as stage
from .rules import stages as stages
