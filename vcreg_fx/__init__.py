"""Train any vision model with variance-covariance regularization (VCReg, arXiv 2306.13292)."""

import importlib as _importlib
import typing as _typing

import placement_rules
from placement_rules import ExampleInputsError as ExampleInputsError
from placement_rules import LayoutError as LayoutError
from placement_rules import NoSiteError as NoSiteError
from placement_rules import PlacementError as PlacementError
from placement_rules import RecordingError as RecordingError
from placement_rules import RuleSyntaxError as RuleSyntaxError
from placement_rules import UserError as UserError

from ._calibrate import Calibration as Calibration
from ._calibrate import calibrate as calibrate
from ._config import VCRegConfig as VCRegConfig
from ._errors import ExportError as ExportError
from ._errors import InsertionError as InsertionError
from ._insert import get_config as get_config
from ._insert import get_configs as get_configs
from ._insert import insert as insert
from ._insert import penalty as penalty
from ._insert import remove as remove
from ._insert import set_loss_scale as set_loss_scale
from ._insert import sites as sites
from ._live import LiveSite as LiveSite
from ._measure import Measurement as Measurement
from ._measure import SiteMeasurement as SiteMeasurement
from ._measure import measure as measure
from ._metrics import metrics as metrics
from ._schedule import CoefficientSchedule as CoefficientSchedule
from ._version import __version__ as __version__
from .exporting import draw as draw
from .exporting import export as export
from .exporting import to_graph_module as to_graph_module
from .functional import covariance_loss as covariance_loss
from .functional import variance_loss as variance_loss
from .functional import vcreg_loss as vcreg_loss
from .functional import vicreg_loss as vicreg_loss
from .surgery import Plan as Plan
from .surgery import plan as plan

if _typing.TYPE_CHECKING:
    from .ablation import ablate as ablate

rules = placement_rules


def __getattr__(name: str) -> _typing.Any:
    """Import what stands above the core when it is first asked for."""
    if name == "ablate":
        from .ablation import ablate

        return ablate
    if name == "integrations":
        return _importlib.import_module(".integrations", __name__)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), "ablate", "integrations"])
