"""Train any vision model with variance-covariance regularization (VCReg, arXiv 2306.13292)."""

import importlib as _importlib
import importlib.util as _find
import sys as _sys
import typing as _typing

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

if _typing.TYPE_CHECKING:
    from ._public import *
    from .ablation import ablate as ablate

if "torch" in _sys.modules:  # torch.export.load asks for the operators of a program by their names
    from . import gradient as gradient


if not _typing.TYPE_CHECKING:  # which knows the names from above

    def __getattr__(name: str) -> _typing.Any:
        """Import what needs torch when it is first asked for: a public name, or a room."""
        if name == "__all__":  # asked for by `from … import *`
            return [public for public in __dir__() if public[0] != "_"]
        if not name.startswith("_"):
            from . import _public

            found = vars(_public).get(name)
            if name == "ablate":
                found = _importlib.import_module(".ablation", __name__).ablate
            elif found is None and _find.find_spec(f"{__name__}.{name}") is not None:
                found = _importlib.import_module(f".{name}", __name__)
            if found is not None:
                globals()[name] = found
                return found
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    from . import _public

    return sorted({*globals(), "ablate", *(name for name in vars(_public) if name[0] != "_")})
