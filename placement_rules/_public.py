"""The public names of the package, which need torch: imported when one is first asked for."""

from ._node import operation as operation
from .axes import Layout as Layout
from .recording import Frame as Frame
from .recording import Inputs as Inputs
from .recording import Recording as Recording
from .recording import Scope as Scope
from .recording import candidate_inputs as candidate_inputs
from .recording import format_path as format_path
from .recording import function_of as function_of
from .recording import get_leaf as get_leaf
from .recording import is_recording as is_recording
from .recording import is_same as is_same
from .recording import leaves as leaves
from .recording import record as record
from .recording import replace_leaf as replace_leaf
from .recording import without_dispatch as without_dispatch
from .recording import wrapped_by as wrapped_by
from .rules import *
from .structure import Places as Places
from .structure import arguments_of as arguments_of
from .structure import places_of as places_of
