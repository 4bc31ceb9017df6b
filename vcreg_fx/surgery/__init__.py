"""Change a model: plan, then apply."""

from . import _nodes as node_functions
from ._class import is_rewritten as is_rewritten
from ._install import check_uncovered as check_uncovered
from ._install import insertions as insertions
from ._install import live_sites as live_sites
from ._install import replace_site as replace_site
from ._install import uninstall as uninstall
from ._plan import Plan as Plan
from ._plan import make_config as make_config
from ._plan import plan as plan
from ._table import notes as notes

__all__ = [
    "Plan",
    "check_uncovered",
    "insertions",
    "is_rewritten",
    "live_sites",
    "make_config",
    "node_functions",
    "notes",
    "plan",
    "replace_site",
    "uninstall",
]
