"""Change a model: plan, then apply."""

from . import _nodes as node_functions
from ._class import SiteTable as SiteTable
from ._class import is_covered as is_covered
from ._class import is_rewritten as is_rewritten
from ._class import original_class as original_class
from ._graph_data import from_data as from_data
from ._graph_data import to_data as to_data
from ._install import carry_insertions as carry_insertions
from ._install import check_uncovered as check_uncovered
from ._install import has_inside_site as has_inside_site
from ._install import insertions as insertions
from ._install import live_sites as live_sites
from ._install import named_sites as named_sites
from ._install import replace_site as replace_site
from ._install import uninstall as uninstall
from ._install import unwrapped as unwrapped
from ._plan import Plan as Plan
from ._plan import check_model as check_model
from ._plan import make_config as make_config
from ._plan import plan as plan
from ._suspend import suspended as suspended
from ._symbolic import TABLE as TABLE
from ._table import align as align
from ._table import notes as notes
from ._watch import Insertion as Insertion

__all__ = [
    "TABLE",
    "Insertion",
    "Plan",
    "SiteTable",
    "align",
    "carry_insertions",
    "check_model",
    "check_uncovered",
    "from_data",
    "has_inside_site",
    "insertions",
    "is_covered",
    "is_rewritten",
    "live_sites",
    "make_config",
    "named_sites",
    "node_functions",
    "notes",
    "original_class",
    "plan",
    "replace_site",
    "suspended",
    "to_data",
    "uninstall",
    "unwrapped",
]
