"""The plain name of a torch function, however it was written."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ._torch import operator_name

_IN_PLACE = {"iadd": "add", "isub": "sub", "imul": "mul", "itruediv": "div"}
_REFLECTED = {"add", "sub", "mul", "truediv", "matmul", "pow"}


def operation(function: Callable[..., Any] | str) -> str:
    """Return the plain name of a torch function: ``add`` for ``+``, ``+=``, ``.add_`` alike.

    Operators of other libraries keep their namespace, ``mine::add``: they only share a name.
    """
    if isinstance(function, str):
        name = function
    elif (name := getattr(function, "__name__", type(function).__name__)) == "__get__":
        return str(getattr(function, "__self__", function).__name__)  # a property: Tensor.mT
    elif qualified := operator_name(getattr(function, "overloadpacket", function)):
        namespace, _, name = qualified.partition("::")
        if namespace != "aten":
            return qualified
    name = name.strip("_")
    if name.startswith("r") and name[1:] in _REFLECTED:
        name = name[1:]
    return _IN_PLACE.get(name, name)
