"""The public names of the core, which need torch: imported when one is first asked for."""

import placement_rules

from .exporting import draw as draw
from .exporting import export as export
from .exporting import to_graph_module as to_graph_module
from .functional import covariance_loss as covariance_loss
from .functional import variance_loss as variance_loss
from .functional import vcreg_loss as vcreg_loss
from .functional import vicreg_loss as vicreg_loss
from .gradient import VCRegConfig as VCRegConfig
from .site import Calibration as Calibration
from .site import CoefficientSchedule as CoefficientSchedule
from .site import LiveSite as LiveSite
from .site import Measurement as Measurement
from .site import SiteMeasurement as SiteMeasurement
from .site import calibrate as calibrate
from .site import measure as measure
from .site import metrics as metrics
from .surgery import Plan as Plan
from .surgery import get_config as get_config
from .surgery import get_configs as get_configs
from .surgery import insert as insert
from .surgery import penalty as penalty
from .surgery import plan as plan
from .surgery import remove as remove
from .surgery import set_loss_scale as set_loss_scale
from .surgery import sites as sites

rules = placement_rules
