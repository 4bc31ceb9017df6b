"""Inside form: rewrite one module's forward around a node in its middle.

The module is traced symbolically, on a copy, every child a leaf. Tracing bakes plain Python values
into the graph without a word, so the values it reads are noted, and compared at every call. It does
not see contexts (no_grad, autocast, checkpointing), and takes Python's decisions about a proxy for
those about a tensor; so contexts are refused, and it has to go through the recorded operations.
"""

from __future__ import annotations

import copy
import inspect
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx, nn
from torch._subclasses.fake_tensor import FakeCopyMode, FakeTensorMode

from placement_rules import Scope, leaves

from .._errors import InsideError
from ._agreement import compare, refusal
from ._graph_data import from_data, to_data
from ._reads import Read, is_plain, same, watch_reads
from ._symbolic import hold_to


@dataclass(frozen=True)
class Inside:
    """A module's forward as a graph.

    **Attributes:**

    - `graph`: the traced forward; its placeholders are the arguments in `given`.
    - `names`: the forward's positional parameters.
    - `given`: the parameters that held tensors when the model was recorded.
    - `fixed`: the values of all other parameters then, which calls have to repeat.
    - `read`: the plain attributes that the forward read then, which have to stay.
    - `in_eval`: whether it applies in eval mode too; else only in training.
    """

    graph: fx.Graph
    names: tuple[str, ...]
    given: tuple[str, ...]
    fixed: dict[str, Any]
    read: dict[Read, Any]
    in_eval: bool

    def applies(self, module: nn.Module) -> bool:
        """Whether this call needs the rewritten forward: elsewhere the original one is exact."""
        return self.in_eval or (module.training and torch.is_grad_enabled())

    def bind(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Any]:
        """Return the arguments of the graph for one call of the module.

        **Raises:** `InsideError` if the call, or an attribute that the forward reads, differs from
        what was recorded in anything but tensors.
        """
        where = type(module).__name__
        values = {**self.fixed, **dict(zip(self.names, args, strict=False)), **kwargs}
        for name, value in values.items():
            if name in self.given:
                continue
            checked = (value, self.fixed.get(name, self), where, name)
            if isinstance(value, fx.Proxy):
                value.tracer.create_proxy("call_function", hold_to, checked, {})
            else:
                hold_to(*checked)
        if missing := [name for name in self.given if name not in values]:
            raise InsideError(
                f"{where} was rewritten for calls with {', '.join(missing)}, and is now called "
                'without. Use a rule for module outputs, such as "blocks".'
            )
        for (path, name), value in self.read.items():
            now = getattr(module.get_submodule(path), name)
            if not same(now, value):
                raise InsideError(
                    f"{where} was rewritten with {f'{path}.{name}'.lstrip('.')} = {value!r}, which "
                    f"is {now!r} now. Call vcreg_fx.remove(model), then insert again."
                )
        return [values[name] for name in self.given]

    @property
    def signature(self) -> str:
        """What tells this from other graphs of equal code."""
        return f"{self.names}{self.given}{self.fixed}{self.read}{self.in_eval}"

    def to_data(self) -> tuple[Any, ...]:
        """Return plain data to pickle."""
        rest = (self.names, self.given, self.fixed, self.read, self.in_eval)
        return to_data(self.graph), *rest

    @classmethod
    def from_data(cls, data: tuple[Any, ...]) -> Inside:
        """Return what `to_data` described."""
        return cls(from_data(data[0]), *data[1:])


def trace_inside(module: nn.Module, forward: Any, scope: Scope, *, in_eval: bool) -> Inside:
    """Trace one module's own forward, as it was called in ``scope``.

    **Arguments:**

    - `module`: the module; it is not changed.
    - `forward`: its class's forward, before any rewriting.
    - `scope`: a recorded call of the module.
    - `in_eval`: whether the rewritten forward is to serve in eval mode too.

    **Raises:** `InsideError`, with the reason and the rules that would work.
    """
    names, given, fixed = _arguments(forward, scope)
    read: dict[Read, Any] = {}
    try:
        with FakeCopyMode(FakeTensorMode(allow_non_fake_inputs=True)):
            duplicate = copy.deepcopy(module)
        duplicate.train()
        _give_forward(duplicate, forward, given, fixed)
        with torch.random.fork_rng(devices=[]), watch_reads(duplicate, read):
            graph = _Tracer().trace(duplicate)
    except Exception as error:
        raise refusal(scope, f"tracing it failed: {type(error).__name__}: {error}") from error
    for (path, name), value in read.items():
        if not is_plain(value):
            raise refusal(scope, f"it reads {name!r}, an object whose parts may change later")
        if name == "training" and in_eval:
            raise refusal(
                scope, "it reads 'training', and demean=\"activations\" acts in eval mode too"
            )
        if name != "training" and not same(getattr(module.get_submodule(path), name), value):
            raise refusal(scope, f"it changes {name!r} while it runs")
    traced = Inside(graph, names, given, fixed, read, in_eval)
    compare(traced.graph, module, scope)
    return traced


class _Tracer(fx.Tracer):
    """Traces one module with its children as leaves, and refuses contexts that it cannot keep."""

    proxy_buffer_attributes = True

    def __init__(self) -> None:
        super().__init__()
        self._context = _context()

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """Keep every child whole."""
        return True

    def create_proxy(self, *args: Any, **kwargs: Any) -> fx.Proxy:
        """Make a node, unless it would run in another context than the module itself."""
        if _context() != self._context:
            raise InsideError("a part of it runs under no_grad, autocast or checkpointing")
        return super().create_proxy(*args, **kwargs)


def _context() -> tuple[Any, ...]:
    return (
        torch.is_grad_enabled(),
        torch.is_inference_mode_enabled(),
        torch.is_autocast_enabled("cpu"),
        torch.is_autocast_enabled("cuda"),
        torch._C._autograd._top_saved_tensors_default_hooks(True) is None,
    )


def _give_forward(
    duplicate: nn.Module, forward: Any, given: tuple[str, ...], fixed: dict[str, Any]
) -> None:
    """Give a copy a forward whose only parameters are those that held tensors."""

    def call(self: nn.Module, values: tuple[Any, ...]) -> Any:
        return forward(self, **dict(zip(given, values, strict=True)), **fixed)

    namespace: dict[str, Any] = {"call": call}
    listed = ", ".join(given)
    exec(f"def forward(self, {listed}):\n    return call(self, ({listed},))\n", namespace)
    name = type(duplicate).__name__
    object.__setattr__(
        duplicate, "__class__", type(name, (type(duplicate),), {"forward": namespace["forward"]})
    )


def _arguments(
    forward: Any, scope: Scope
) -> tuple[tuple[str, ...], tuple[str, ...], dict[str, Any]]:
    parameters = list(inspect.signature(forward).parameters.values())[1:]
    if any(p.kind is p.VAR_POSITIONAL for p in parameters) and len(scope.args) >= len(parameters):
        raise refusal(scope, "it takes any number of positional arguments")
    names = tuple(
        p.name for p in parameters if p.kind in {p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD}
    )
    values = {p.name: p.default for p in parameters if p.default is not p.empty}
    values |= dict(zip(names, scope.args, strict=False)) | scope.kwargs
    given = tuple(name for name, value in values.items() if any(leaves(value)))
    fixed = {name: value for name, value in values.items() if name not in given}
    if not given:
        raise refusal(scope, "its forward takes no tensor by name")
    for name, value in fixed.items():
        if not is_plain(value):
            raise refusal(scope, f"its argument {name} is a {type(value).__name__}")
    return names, given, fixed
