"""Where in a model a regularizer attaches: recordings, layouts, rules.

This package knows models and graphs, and nothing of what is done at the sites it finds.
"""

import importlib as _importlib
import importlib.util as _find
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


if not _typing.TYPE_CHECKING:  # which knows the names from above

    def __getattr__(name: str) -> _typing.Any:
        """Import what needs torch when it is first asked for: a public name, or a room."""
        if name == "__all__":  # asked for by `from … import *`
            return [public for public in __dir__() if public[0] != "_"]
        if not name.startswith("_"):
            from . import _public

            found = vars(_public).get(name)
            if found is None and _find.find_spec(f"{__name__}.{name}") is not None:
                found = _importlib.import_module(f".{name}", __name__)
            if found is not None:
                globals()[name] = found
                return found
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    from . import _public

    return sorted({*globals(), *(name for name in vars(_public) if name[0] != "_")})
