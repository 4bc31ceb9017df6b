"""The generated class of a rewritten module: a subclass of its own class with a new forward."""

from __future__ import annotations

import copyreg
import functools
import types
from typing import Any
from weakref import WeakValueDictionary

import torch
from torch import Tensor, fx, nn

from placement_rules._torch import tables_of

from .._errors import InsertionError
from ..gradient import SITE
from ..site import MASKS, REGISTRY, TABLE, is_rewritten, run_noted, table_of, watch_sites
from ._forward import Forward
from ._graph_data import from_data, to_data, to_shown_data
from ._inside import NewMethod, new_methods
from ._nodes import tracer_of

_made: WeakValueDictionary[tuple[Any, ...], type[nn.Module]] = WeakValueDictionary()


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
    # A made class keeps its original alive, and so its id.
    key = (id(original), source, forward.inside, str(forward.shown), watch)
    made = _made.get(key)
    if made is None:
        made = _made[key] = _make(original, forward, watch, source)
    return made


def original_class(module: nn.Module) -> type[nn.Module]:
    """Return the class the module had before it was rewritten."""
    found: type[nn.Module] = type(module).__dict__.get("vcreg_original", type(module))
    return found


def is_covered(module: nn.Module) -> bool:
    """Whether something derived another class from the generated one (parametrizations do)."""
    return is_rewritten(module) and "vcreg_original" not in type(module).__dict__


def set_aside(model: nn.Module) -> None:
    """Give the modules of a copied model their own classes back; their sites stay with them."""
    for module in model.modules():
        if is_rewritten(module) and not is_covered(module):
            object.__setattr__(module, "__class__", original_class(module))


def _make(original: type[nn.Module], forward: Forward, watch: bool, code: str) -> type[nn.Module]:
    methods = new_methods(forward.inside)
    bases, own = _bases(original, methods)
    inside: Any = own.pop("forward", original.forward)
    rewritten = _compile(forward.outer)
    for method in methods:
        code += f"\n# {method.cls.__name__}.{method.name}\n{method.text}"

    def original_forward(self: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if watch:
            watch_sites(self)
        if (tracer := tracer_of(*args, *kwargs.values())) is not None and tracer.keeps(self):
            return tracer.original(self, args, kwargs)
        if not watch or torch.compiler.is_compiling():
            return inside(self, *args, **kwargs)
        try:
            return inside(self, *args, **kwargs)
        except RuntimeError as error:
            if (named := _named_error(self, error)) is None:
                raise
            raise named from error

    @functools.wraps(original.forward)
    def new_forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        if TABLE not in self.__dict__ and REGISTRY not in self.__dict__:
            return original.forward(self, *args, **kwargs)  # an instance made by type(module)(…)
        if watch and MASKS in self.__dict__:
            return run_noted(self, rewritten, args, kwargs)
        return rewritten(self, *args, **kwargs)

    for name in [name for name in vars(new_forward) if name.startswith("_torchdynamo")]:
        del vars(new_forward)[name]  # a forward that compiles itself would be run in its place

    def extra_repr(self: nn.Module) -> str:
        sites = ", ".join(f"vcreg[{site!r}]" for site in table_of(self).values())
        return ", ".join(part for part in (original.extra_repr(self), sites) if part)

    def reduce_ex(self: nn.Module, protocol: Any) -> Any:
        reduced = original.__reduce_ex__(self, protocol)
        if not (isinstance(reduced, tuple) and reduced[0] is copyreg.__newobj__):  # type: ignore[attr-defined]
            return reduced
        shown = None if forward.shown is forward.outer else to_shown_data(forward.shown)
        data = (to_data(forward.outer), forward.inside, shown)
        return (_rebuild, (original, data, watch, *reduced[1][1:]), *reduced[2:])

    namespace: dict[str, Any] = {
        **own,
        "__module__": original.__module__,
        "__qualname__": original.__qualname__,
        "__doc__": original.__doc__,
        "forward": new_forward,
        "vcreg_original_forward": original_forward,
        "extra_repr": extra_repr,
        "__reduce_ex__": reduce_ex,
        "vcreg_original": original,
    }
    for name, value in {"graph": forward.shown, "code": code}.items():
        if not hasattr(original, name):
            namespace[name] = _ShownUnlessTaken(name, value)
    metaclass: Any = type(original)
    try:
        made: type[nn.Module] = metaclass(original.__name__, bases, namespace)
    except Exception as error:
        raise InsertionError(
            f"{original.__name__} cannot be subclassed, as rewriting its forward needs: {error}. "
            "Use a rule that selects another module."
        ) from error
    return made


def _bases(
    original: type[nn.Module], methods: list[NewMethod]
) -> tuple[tuple[type, ...], dict[str, types.FunctionType]]:
    """Return the bases of a generated class, and the methods that are its own.

    A method that a class further up defines, and the module's class calls by ``super()``, has its
    place right before that class.
    """
    own: dict[str, types.FunctionType] = {}
    above: dict[type, dict[str, types.FunctionType]] = {}
    for method in methods:
        first = next(cls for cls in original.__mro__ if method.name in vars(cls))
        table = own if first is method.cls else above.setdefault(method.cls, {})
        table[method.name] = method.function
    ordered = [cls for cls in original.__mro__ if cls in above]
    kept = ("__module__", "__qualname__", "__doc__")
    return (
        original,
        *(
            type(cls)(cls.__name__, (cls,), {**{k: getattr(cls, k) for k in kept}, **above[cls]})
            for cls in ordered
        ),
    ), own


class _ShownUnlessTaken:
    """A class attribute that gives way to a child, parameter or buffer of the same name."""

    def __init__(self, name: str, value: Any) -> None:
        self.name, self.value = name, value

    def __get__(self, module: nn.Module | None, owner: type) -> Any:
        if module is not None:
            for table in tables_of(module):
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
    outer, inside, shown = data
    graph = from_data(outer)
    forward = Forward(graph, inside, graph if shown is None else from_data(shown))
    cls = rewritten_class(original, forward, watch)
    return cls.__new__(cls, *args)


# Unforeseen writes to a site's tensor ---------------------------------------------------------

_VIEWS = 4  # how many views of a site's tensor are followed


def _named_error(model: nn.Module, error: RuntimeError) -> RuntimeError | None:
    """Return what to raise for autograd's refusal of a write to a site's tensor; None for others.

    Autograd refuses since a site that returns no copy returns a view.
    """
    if "custom Function" not in str(error) or "inplace" not in str(error):
        return None
    found = _site_in(error.__traceback__)
    if found is None:
        tables = [vars(m.__dict__[TABLE]) for m in model.modules() if TABLE in m.__dict__]
        free = [site.name for table in tables for site in table.values() if not site.clones]
        found = f"{SITE} {' or '.join(free)}"
    return RuntimeError(
        f"{found}: the model writes to its tensor in place, which the recording has not shown, so "
        "that the site returned no copy. Write y = x * m instead of x.mul_(m), or to a clone of "
        "it; or insert with example_inputs= with which it is written to, or use a rule that "
        f"leaves this module out. ({error})"
    )


def _site_in(traceback: types.TracebackType | None) -> str | None:
    """Return the title of the site whose tensor one of the running functions holds, if any."""
    frames = []
    while traceback is not None:
        frames.append(traceback.tb_frame)
        traceback = traceback.tb_next
    for frame in reversed(frames):
        for value in list(frame.f_locals.values()):
            if isinstance(value, Tensor) and (title := _title(value)) is not None:
                return title
    return None


def _title(tensor: Tensor) -> str | None:
    try:
        node: Any = tensor.grad_fn
    except RuntimeError:  # a view whose base was written to
        return None
    for _ in range(_VIEWS):
        if node is None or node.name().startswith(SITE):
            return None if node is None else str(node.name())
        above = [function for function, _ in node.next_functions if function is not None]
        node = above[0] if len(above) == 1 else None
    return None
