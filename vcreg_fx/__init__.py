"""Train any vision model with variance-covariance regularization (VCReg, arXiv 2306.13292)."""

import sys as _sys
import typing as _typing

from placement_rules import ExampleInputsError as ExampleInputsError
from placement_rules import LayoutError as LayoutError
from placement_rules import NoSiteError as NoSiteError
from placement_rules import PlacementError as PlacementError
from placement_rules import RecordingError as RecordingError
from placement_rules import RuleSyntaxError as RuleSyntaxError
from placement_rules import UserError as UserError
from placement_rules import _lazy_names

from ._errors import ExportError as ExportError
from ._errors import InsertionError as InsertionError
from ._version import __version__ as __version__

if _typing.TYPE_CHECKING:
    from ._public import *
    from .ablation import ablate as ablate

if "torch" in _sys.modules:  # torch.export.load asks for the operators of a program by their names
    from . import gradient as gradient

if not _typing.TYPE_CHECKING:  # which knows the names from above
    __getattr__, __dir__ = _lazy_names(__name__, {"ablate": ".ablation"})
