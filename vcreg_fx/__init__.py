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

from ._errors import ExportError as ExportError
from ._errors import InsertionError as InsertionError
from ._version import __version__ as __version__
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
