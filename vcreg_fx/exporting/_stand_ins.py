"""Stand-ins for a module: all that it has, under another class or with other arguments."""

from __future__ import annotations

import inspect
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from typing import Any

from torch import nn

from placement_rules import ExampleInputsError, candidate_inputs, leaves
from placement_rules._torch import FORWARD_HOOKS

from ..surgery import original_class
from ._example import Example


def shadow(module: nn.Module, cls: type[nn.Module] | None = None) -> nn.Module:
    """Return a module of another class with the same parameters, buffers, children, attributes.

    The class is by default the one that the module had before VCReg was inserted.
    """
    cls = original_class(module) if cls is None else cls
    made: nn.Module = cls.__new__(cls)
    made.__dict__.update({k: v for k, v in module.__dict__.items() if not k.startswith("vcreg_")})
    made.__dict__.update({name: OrderedDict() for name in FORWARD_HOOKS})  # tracing would run them
    return made


def with_given_arguments(
    model: nn.Module,
    example_inputs: tuple[Any, ...] | None,
    example_kwargs: Mapping[str, Any] | None,
) -> nn.Module:
    """Return a stand-in for the model whose forward takes only what holds tensors in the example.

    Other arguments of the example are fixed, and the rest keep their defaults.

    **Raises:** `ExampleInputsError` if the example does not fit the model's forward, or is needed.
    """
    cls = type(model)
    signature = inspect.signature(model.forward)
    names, spread, fixed = _given(model, signature, example_inputs, example_kwargs)

    def call(self: nn.Module, values: dict[str, Any]) -> Any:
        args = [values.pop(name) for name in spread]
        return cls.forward(self, *args, **values, **fixed)

    listed = ", ".join([*spread, *names])
    pairs = ", ".join(f"{name!r}: {name}" for name in [*spread, *names])
    namespace: dict[str, Any] = {"call": call}
    exec(f"def forward(self, {listed}):\n    return call(self, {{{pairs}}})\n", namespace)
    made = type(cls.__name__, (cls,), {"forward": namespace["forward"], "__module__": __name__})
    root = shadow(model, made)
    root.__dict__.update({k: v for k, v in model.__dict__.items() if k.startswith("vcreg_")})
    return root


def values_by_name(model: nn.Module, example: Example) -> dict[str, Any]:
    """Return the values of an example call under the names that the stand-in gives them."""
    signature = inspect.signature(model.forward)
    bound = signature.bind(*example.args, **example.kwargs)
    return {name: value for name, value, _ in _flat(signature, bound)}


def _flat(
    signature: inspect.Signature, bound: inspect.BoundArguments
) -> Iterator[tuple[str, Any, Any]]:
    """Yield name, value and kind of each argument; those of ``*args`` are numbered."""
    for name, value in bound.arguments.items():
        kind = signature.parameters[name].kind
        if kind is inspect.Parameter.VAR_POSITIONAL:
            yield from ((f"{name}_{index}", item, kind) for index, item in enumerate(value))
        elif kind is inspect.Parameter.VAR_KEYWORD:
            yield from ((key, item, kind) for key, item in value.items())
        else:
            yield name, value, kind


def _given(
    model: nn.Module,
    signature: inspect.Signature,
    args: tuple[Any, ...] | None,
    kwargs: Mapping[str, Any] | None,
) -> tuple[list[str], list[str], dict[str, Any]]:
    """Return names of tensor arguments, names for positional ones without a name, fixed values."""
    if args is None and kwargs is None:
        empty = inspect.Parameter.empty
        variadic = {inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD}
        needed = [
            p.name
            for p in signature.parameters.values()
            if p.default is empty and p.kind not in variadic
        ]
        if needed:
            return needed, [], {}
        found = next(candidate_inputs(model), None)
        if found is None:
            raise ExampleInputsError(
                f"No argument of {type(model).__name__}.forward is without a default, so it is "
                "open which ones the graph should take. Pass example_inputs=(tensor, …) or "
                "example_kwargs={name: tensor}."
            )
        args, kwargs = found.args, found.kwargs
    try:
        bound = signature.bind(*(args or ()), **(kwargs or {}))
    except TypeError as error:
        raise ExampleInputsError(
            f"The example does not fit {type(model).__name__}.forward{signature}: {error}."
        ) from error
    names: list[str] = []
    spread: list[str] = []
    fixed: dict[str, Any] = {}
    for name, value, kind in _flat(signature, bound):
        if kind is inspect.Parameter.VAR_POSITIONAL:
            spread += [*names, name]  # those before it have to be passed by position, too
            names = []
        elif kind is inspect.Parameter.POSITIONAL_ONLY:
            spread.append(name)
        elif any(leaves(value)):
            names.append(name)
        else:
            fixed[name] = value
    return names, spread, fixed
