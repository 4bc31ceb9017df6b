"""Change a model: plan, then apply; and take VCReg out again."""

from . import _nodes as node_functions
from ._class import is_covered as is_covered
from ._class import original_class as original_class
from ._graph_data import from_data as from_data
from ._graph_data import to_data as to_data
from ._insert import get_config as get_config
from ._insert import get_configs as get_configs
from ._insert import insert as insert
from ._insert import penalty as penalty
from ._insert import remove as remove
from ._insert import set_loss_scale as set_loss_scale
from ._insert import sites as sites
from ._install import has_inside_site as has_inside_site
from ._install import suspended as suspended
from ._install import uninstall as uninstall
from ._plan import Plan as Plan
from ._plan import check_model as check_model
from ._plan import make_config as make_config
from ._plan import notes as notes
from ._plan import plan as plan

__all__ = [
    "Plan",
    "check_model",
    "from_data",
    "get_config",
    "get_configs",
    "has_inside_site",
    "insert",
    "is_covered",
    "make_config",
    "node_functions",
    "notes",
    "original_class",
    "penalty",
    "plan",
    "remove",
    "set_loss_scale",
    "sites",
    "suspended",
    "to_data",
    "uninstall",
]
