"""Change a model: plan, then apply; and take VCReg out again."""

from . import _nodes
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
from ._plan import cells as cells
from ._plan import check_model as check_model
from ._plan import make_config as make_config
from ._plan import notes as notes
from ._plan import plan as plan

node_functions = _nodes
