"""The generated class of a rewritten module: a subclass of its own class with a new forward."""

from __future__ import annotations

import copyreg
import functools
from typing import Any
from weakref import WeakValueDictionary

from torch import fx, nn

from .._errors import InsertionError
from .._live import LiveSite
from ._forward import Forward
from ._graph_data import from_data, to_data
from ._inside import Inside
from ._symbolic import TABLE, tracer_of
from ._watch import REGISTRY, watch_sites

_made: WeakValueDictionary[tuple[int, str, bool], type[nn.Module]] = WeakValueDictionary()


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
        source += f"{body}{forward.inside.signature}"
        code += "\n# original_forward, traced\n" + body.lstrip().replace(
            "def forward(", "def inside_forward(", 1
        )
    key = (id(original), source, watch)  # a made class keeps its original alive, and so its id
    made = _made.get(key)
    if made is None:
        made = _made[key] = _make(original, forward, watch, code)
    return made


def original_class(module: nn.Module) -> type[nn.Module]:
    """Return the class the module had before it was rewritten."""
    found: type[nn.Module] = type(module).__dict__.get("vcreg_original", type(module))
    return found


def table_of(module: nn.Module) -> dict[str, LiveSite]:
    """Return a module's live sites by key; empty if it has none."""
    table = module.__dict__.get(TABLE)
    return {} if table is None else dict(vars(table))


def is_rewritten(module: nn.Module) -> bool:
    """Whether the module's class is a generated one, or was derived from one."""
    return hasattr(type(module), "vcreg_original")


def is_covered(module: nn.Module) -> bool:
    """Whether something derived another class from the generated one (parametrizations do)."""
    return is_rewritten(module) and "vcreg_original" not in type(module).__dict__


def _make(original: type[nn.Module], forward: Forward, watch: bool, code: str) -> type[nn.Module]:
    inside = forward.inside
    traced = None if inside is None else _compile(inside.graph)
    rewritten = _compile(forward.outer)

    def original_forward(self: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if watch:
            watch_sites(self)
        if (tracer := tracer_of(*args, *kwargs.values())) is not None and tracer.keeps(self):
            return tracer.original(self, args, kwargs)
        if inside is None or traced is None or not inside.applies(self):
            return original.forward(self, *args, **kwargs)
        return traced(self, *inside.bind(self, args, kwargs))

    @functools.wraps(original.forward)
    def new_forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        if TABLE not in self.__dict__ and REGISTRY not in self.__dict__:
            return original.forward(self, *args, **kwargs)  # an instance made by type(module)(…)
        return rewritten(self, *args, **kwargs)

    def extra_repr(self: nn.Module) -> str:
        sites = ", ".join(f"vcreg[{site!r}]" for site in table_of(self).values())
        return ", ".join(part for part in (original.extra_repr(self), sites) if part)

    def reduce_ex(self: nn.Module, protocol: Any) -> Any:
        reduced = original.__reduce_ex__(self, protocol)
        if not (isinstance(reduced, tuple) and reduced[0] is copyreg.__newobj__):  # type: ignore[attr-defined]
            return reduced
        data = (to_data(forward.outer), None if inside is None else inside.to_data())
        return (_rebuild, (original, data, watch, *reduced[1][1:]), *reduced[2:])

    boundary = any(node.op == "get_attr" for node in forward.outer.nodes)
    graph = forward.outer if boundary or inside is None else inside.graph
    namespace: dict[str, Any] = {
        "__module__": original.__module__,
        "__qualname__": original.__qualname__,
        "__doc__": original.__doc__,
        "forward": new_forward,
        "vcreg_original_forward": original_forward,
        "extra_repr": extra_repr,
        "__reduce_ex__": reduce_ex,
        "vcreg_original": original,
    }
    for name, value in {"graph": graph, "code": code}.items():
        if not hasattr(original, name):
            namespace[name] = _ShownUnlessTaken(name, value)
    metaclass: Any = type(original)
    try:
        made: type[nn.Module] = metaclass(original.__name__, (original,), namespace)
    except Exception as error:
        raise InsertionError(
            f"{original.__name__} cannot be subclassed, as rewriting its forward needs: {error}. "
            "Use a rule that selects another module."
        ) from error
    return made


class _ShownUnlessTaken:
    """A class attribute that gives way to a child, parameter or buffer of the same name."""

    def __init__(self, name: str, value: Any) -> None:
        self.name, self.value = name, value

    def __get__(self, module: nn.Module | None, owner: type) -> Any:
        if module is not None:
            for table in (module._modules, module._parameters, module._buffers):
                if self.name in table:
                    return table[self.name]
        return self.value


def _compile(graph: fx.Graph) -> Any:
    python = graph.python_code("self")
    namespace = dict(python.globals)
    exec(compile(python.src, "<vcreg_fx forward>", "exec"), namespace)
    return namespace["forward"]


def _rebuild(original: type[nn.Module], data: Any, watch: bool, *args: Any) -> nn.Module:
    """Make an empty instance of the rewritten class, when a module is unpickled or copied."""
    outer, traced = data
    inside = None if traced is None else Inside.from_data(traced)
    cls = rewritten_class(original, Forward(from_data(outer), inside), watch)
    return cls.__new__(cls, *args)
