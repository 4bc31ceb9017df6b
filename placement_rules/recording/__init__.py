"""What one forward pass of a model did, recorded without changing the model."""

from ._inputs import Inputs as Inputs
from ._inputs import candidate_inputs as candidate_inputs
from ._origin import Frame as Frame
from ._origin import function_of as function_of
from ._origin import without_dispatch as without_dispatch
from ._origin import wrapped_by as wrapped_by
from ._pass import Writes as Writes
from ._pass import is_recording as is_recording
from ._record import SYNTAX_TREES as SYNTAX_TREES
from ._record import record as record
from ._recording import Recording as Recording
from ._recording import Scope as Scope
from ._recording import is_batch_norm as is_batch_norm
from ._recording import keeps_container_forward as keeps_container_forward
from ._tree import Path as Path
from ._tree import format_path as format_path
from ._tree import get_leaf as get_leaf
from ._tree import is_same as is_same
from ._tree import leaves as leaves
from ._tree import replace_leaf as replace_leaf
