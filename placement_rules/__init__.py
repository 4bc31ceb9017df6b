"""Where in a model a regularizer attaches: recordings, layouts, rules.

This package knows models and graphs, and nothing of what is done at the sites it finds.
"""

import importlib as _importlib
import importlib.util as _find
import sys as _sys
import typing as _typing

from ._errors import ExampleInputsError as ExampleInputsError
from ._errors import LayoutError as LayoutError
from ._errors import NoSiteError as NoSiteError
from ._errors import PlacementError as PlacementError
from ._errors import RecordingError as RecordingError
from ._errors import RuleSyntaxError as RuleSyntaxError
from ._errors import UserError as UserError

if _typing.TYPE_CHECKING:
    from ._public import *


def _lazy_names(
    package: str, elsewhere: _typing.Mapping[str, str]
) -> tuple[_typing.Callable[[str], _typing.Any], _typing.Callable[[], list[str]]]:
    """Return the ``__getattr__`` and the ``__dir__`` of a package whose names need torch.

    A name is imported when it is first asked for: one of the package's ``_public``, or a room.

    **Arguments:**

    - `elsewhere`: public names of rooms that ``_public`` leaves out, because they stand above it.
    """

    def get(name: str) -> _typing.Any:
        if name == "__all__":  # asked for by `from … import *`
            return [public for public in names() if public[0] != "_"]
        found = None
        if not name.startswith("_"):
            found = vars(_importlib.import_module("._public", package)).get(name)
            if name in elsewhere:
                found = getattr(_importlib.import_module(elsewhere[name], package), name)
            elif found is None and _find.find_spec(f"{package}.{name}") is not None:
                found = _importlib.import_module(f".{name}", package)
        if found is None:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        setattr(_sys.modules[package], name, found)
        return found

    def names() -> list[str]:
        public = vars(_importlib.import_module("._public", package))
        own = vars(_sys.modules[package])
        return sorted({*own, *elsewhere, *(name for name in public if name[0] != "_")})

    return get, names


if not _typing.TYPE_CHECKING:  # which knows the names from above
    __getattr__, __dir__ = _lazy_names(__name__, {})
