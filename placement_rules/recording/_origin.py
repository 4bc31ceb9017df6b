"""Where in the source the call stands that made a recorded tensor."""

from __future__ import annotations

import sys
import types
from typing import Any, NamedTuple

import torch
from torch import nn

from .._torch import MODULE_CALLS

Method = tuple[type, str]  # the class that defines a method, and the name it has there


class Frame(NamedTuple):
    """One of the Python functions that were running.

    **Attributes:**

    - `code`: what it runs.
    - `instruction`: the byte offset of its current instruction.
    - `methods`: the methods of the recorded module that this code belongs to, if it runs one of
      them on that module (or a function written inside one of them, while that one runs).
    - `run`: a number that tells the runs of one function apart.
    """

    code: types.CodeType
    instruction: int
    methods: tuple[Method, ...]
    run: int


Origin = tuple[Frame, ...]  # from the call itself out to the module's forward


class OriginFinder:
    """Tells where the calls of a forward pass stand."""

    def __init__(self) -> None:
        self._methods: dict[type, dict[int, tuple[Method, ...]]] = {}
        self._nested: dict[type, set[int]] = {}  # functions written inside methods
        self._runs: dict[types.FrameType, int] = {}  # which keeps them, so that none is taken twice

    def forget(self) -> None:
        """Let go of the functions that ran, and of all that they held."""
        self._runs.clear()

    def of_call(self, module: nn.Module, depth: int) -> Origin:
        """Return the functions that run now, from a caller out to a module's forward.

        **Arguments:**

        - `module`: the module whose forward runs.
        - `depth`: which caller: 0 is the function that calls this.
        """
        return self._from(module, sys._getframe(depth + 1))

    def of_module_call(self, module: nn.Module) -> Origin:
        """Return the same for the call of a child that begins now, in one of its hooks."""
        frame: types.FrameType | None = sys._getframe(1)
        while frame is not None and frame.f_code not in _CALLING:
            frame = frame.f_back
        while frame is not None and frame.f_code in _CALLING:
            frame = frame.f_back
        return self._from(module, frame)

    def _from(self, module: nn.Module, frame: types.FrameType | None) -> Origin:
        cls, frames, doubtful = type(module), [], False
        methods = self._methods_of(cls)
        while frame is not None and frame.f_code not in _CALLING:
            code = frame.f_code
            own = methods.get(id(code), ())
            if own and id(code) in self._nested[cls]:
                doubtful = True
            elif own:
                on_it = frame.f_locals.get(next(iter(code.co_varnames), "")) is module
                own = own if on_it else ()
            run = self._runs.setdefault(frame, len(self._runs))
            frames.append(Frame(code, frame.f_lasti, own, run))
            frame = frame.f_back
        return tuple(self._without_left(cls, frames) if doubtful else frames)

    def _without_left(self, cls: type, frames: list[Frame]) -> list[Frame]:
        """Take functions whose method does not run any more for none of its own."""
        running: set[Method] = set()
        for place, frame in reversed(list(enumerate(frames))):
            if id(frame.code) not in self._nested[cls]:
                running.update(frame.methods)
            elif not running.intersection(frame.methods):
                frames[place] = frame._replace(methods=())
        return frames

    def _methods_of(self, cls: type) -> dict[int, tuple[Method, ...]]:
        """Return, for each function a class has, and those in it, the methods it belongs to."""
        if cls not in self._methods:
            found: dict[int, tuple[Method, ...]] = {}
            plain: set[int] = set()
            nested: set[int] = set()
            for base in cls.__mro__:
                for name in () if base in {nn.Module, object} else base.__dict__:
                    function = function_of(base, name)
                    codes = [] if function is None else _codes(function.__code__)
                    for code in codes:
                        found[id(code)] = (*found.get(id(code), ()), (base, name))
                    plain.update(id(code) for code in codes[:1])
                    nested.update(id(code) for code in codes[1:])
            self._methods[cls], self._nested[cls] = found, nested - plain
        return self._methods[cls]


def function_of(cls: type, name: str) -> types.FunctionType | None:
    """Return the function that a class itself defines under a name, without its decorators."""
    found = cls.__dict__.get(name)
    while isinstance(found, types.FunctionType):
        inner = wrapped_by(found, name)
        if inner is None:
            return found
        found = inner
    return None


def wrapped_by(function: types.FunctionType, name: str) -> Any:
    """Return what a decorator's function is around, if it is one; None if not.

    Decorators that follow the custom say it (``functools.wraps``). Of the others, one is known by
    the method that it holds.

    **Arguments:**

    - `function`: what a class has under the name.
    - `name`: of the method.
    """
    if "__wrapped__" in vars(function):
        return vars(function)["__wrapped__"]
    if function.__code__.co_name == name:
        return None
    held = [
        value
        for cell in function.__closure__ or ()
        if isinstance(value := _content(cell), types.FunctionType)
        and (value.__code__.co_name == name or "__wrapped__" in vars(value))
    ]
    return held[0] if len(held) == 1 else None


def _content(cell: types.CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # empty
        return None


def without_dispatch(origin: Origin) -> Origin:
    """Leave out torch's own way to its function modes.

    A Python function of torch that a mode sees (``F.relu``) hands itself over; the call of it
    stands in the frame behind these two.
    """
    handed_over = origin and origin[0].code is torch.overrides.handle_torch_function.__code__
    return origin[2:] if handed_over else origin


def _codes(code: types.CodeType) -> list[types.CodeType]:
    inner = [item for item in code.co_consts if isinstance(item, types.CodeType)]
    return [code, *(nested for item in inner for nested in _codes(item))]


# Between the call of a module and its forward stand these functions of torch.
_CALLING = frozenset(code for function in MODULE_CALLS for code in _codes(function.__code__))
