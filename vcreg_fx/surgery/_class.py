"""The generated class of a rewritten module: a subclass of its own class with a new forward."""

from __future__ import annotations

import copyreg
import functools
from typing import Any

from torch import fx, nn

from .._live import LiveSite
from ._forward import TABLE, Forward
from ._graph_data import from_data, to_data
from ._inside import Inside
from ._watch import watch_sites

_made: dict[tuple[type, str, bool], type[nn.Module]] = {}


class SiteTable:
    """The live sites of one module, as attributes; outside the module tree."""

    def __init__(self, **sites: Any) -> None:
        self.__dict__.update(sites)


def rewritten_class(original: type[nn.Module], forward: Forward, watch: bool) -> type[nn.Module]:
    """Return the subclass of ``original`` whose forward is ``forward``.

    It keeps its class's name, qualified name, module and forward signature, so that programs that
    compare those see no difference; equal rewritings share one class.

    **Arguments:**

    - `original`: the module's class.
    - `forward`: the new forward.
    - `watch`: whether it is the model that VCReg was inserted into, which reports lost sites.
    """
    source = forward.outer.python_code("self").src
    code = source
    if forward.inside is not None:
        body = forward.inside.graph.python_code("self").src
        source += f"{body}{forward.inside.names}{forward.inside.given}{forward.inside.fixed}"
        code += "\n# original_forward, traced\n" + body.lstrip().replace(
            "def forward(", "def inside_forward(", 1
        )
    key = (original, source, watch)
    if key not in _made:
        _made[key] = _make(original, forward, watch, code)
    return _made[key]


def original_class(module: nn.Module) -> type[nn.Module]:
    """Return the class the module had before it was rewritten."""
    found: type[nn.Module] = getattr(type(module), "vcreg_original", type(module))
    return found


def table_of(module: nn.Module) -> dict[str, LiveSite]:
    """Return a module's live sites by key; empty if it has none."""
    table = module.__dict__.get(TABLE)
    return {} if table is None else dict(vars(table))


def is_rewritten(module: nn.Module) -> bool:
    """Whether the module's class is a generated one."""
    return hasattr(type(module), "vcreg_original")


def _make(original: type[nn.Module], forward: Forward, watch: bool, code: str) -> type[nn.Module]:
    inside = forward.inside
    traced = None if inside is None else _compile(inside.graph)

    def original_forward(self: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if watch:
            watch_sites(self)
        if inside is None or traced is None:
            return original.forward(self, *args, **kwargs)
        return traced(self, *inside.bind(original.__name__, args, kwargs))

    new_forward = functools.wraps(original.forward)(_compile(forward.outer))

    def extra_repr(self: nn.Module) -> str:
        sites = ", ".join(f"vcreg[{site!r}]" for site in table_of(self).values())
        return ", ".join(part for part in (original.extra_repr(self), sites) if part)

    def reduce_ex(self: nn.Module, protocol: Any) -> Any:
        reduced = original.__reduce_ex__(self, protocol)
        if not (isinstance(reduced, tuple) and reduced[0] is copyreg.__newobj__):  # type: ignore[attr-defined]
            return reduced
        data = (to_data(forward.outer), None if inside is None else _inside_data(inside))
        return (_rebuild, (original, data, watch, *reduced[1][1:]), *reduced[2:])

    boundary = any(node.op == "get_attr" for node in forward.outer.nodes)
    namespace: dict[str, Any] = {
        "__module__": original.__module__,
        "__qualname__": original.__qualname__,
        "__doc__": original.__doc__,
        "forward": new_forward,
        "original_forward": original_forward,
        "extra_repr": extra_repr,
        "__reduce_ex__": reduce_ex,
        "vcreg_original": original,
    }
    if not hasattr(original, "graph"):  # a GraphModule keeps its own
        graph = forward.outer if boundary or inside is None else inside.graph
        namespace |= {"graph": graph, "code": code}
    metaclass: Any = type(original)
    made: type[nn.Module] = metaclass(original.__name__, (original,), namespace)
    return made


def _compile(graph: fx.Graph) -> Any:
    python = graph.python_code("self")
    namespace = dict(python.globals)
    exec(compile(python.src, "<vcreg_fx forward>", "exec"), namespace)
    return namespace["forward"]


def _inside_data(inside: Inside) -> tuple[Any, ...]:
    return to_data(inside.graph), inside.names, inside.given, inside.fixed


def _rebuild(original: type[nn.Module], data: Any, watch: bool, *args: Any) -> nn.Module:
    """Make an empty instance of the rewritten class, when a module is unpickled or copied."""
    outer, traced = data
    inside = None if traced is None else Inside(from_data(traced[0]), *traced[1:])
    cls = rewritten_class(original, Forward(from_data(outer), inside), watch)
    return cls.__new__(cls, *args)
