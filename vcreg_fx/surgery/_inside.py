"""Inside form: the module's own source with the expressions of its sites wrapped.

A site in the middle of a forward is the value of an expression in the source of that forward, or of
another method that it calls. That method is compiled again with the expression in a call of
``vcreg``, which returns the tensor with the site's nodes behind it. Nothing else changes, so that
whatever the forward does besides stays as it is.
"""

from __future__ import annotations

import itertools
import types
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import fx, nn

from placement_rules import Frame, Recording, Scope, Site, function_of, operation, without_dispatch

from .._errors import InsideError
from ..site import TABLE
from ._forward import Edit, Place
from ._nodes import demean, demean_activation, get_tensor, put_tensor, vcreg
from ._source import Source
from ._wrapping import SourceError, Span, Wrapping, rewrapped


def refusal(scope: Scope, position: str, reason: str) -> InsideError:
    """Return the error for a forward that cannot be rewritten in its middle."""
    return InsideError(
        f"{scope.path or 'the model itself'} ({type(scope.module).__name__}) cannot be rewritten "
        f"in the middle of its forward, at {position}: {reason}. Rules for module outputs work, "
        'such as "blocks" or "head"; so does moving this step of the forward into a module of its '
        "own."
    )


def _called(node: fx.Node) -> fx.Node:
    """Return the call that made a tensor, or the structure that it is part of."""
    source = node.args[0] if "leaf" in node.meta else node
    if not isinstance(source, fx.Node) or "origin" not in source.meta:
        raise SourceError("no call in its forward computes it")
    return source


class OwnCall(NamedTuple):
    """The call, in a method of the module, whose value a tensor is.

    **Attributes:**

    - `frame`: the method, or a function written inside it.
    - `name`: what it calls.
    - `run`: the run of the method, in which executions can be counted; None if it has ended.
    - `indirect`: the runs of functions that called something by another name than its own, so that
      something else may stand in between.
    """

    frame: Frame
    name: str
    run: int | None
    indirect: tuple[int, ...]

    def span(self, source: Source) -> Span:
        """Return where the call stands in the method's source."""
        return source.span_of(self.frame.code, self.frame.instruction, self.name)


class Alike:
    """The nodes of a scope whose tensors are values of one expression.

    **Attributes:**

    - `order`: the nodes, with their places in the order in which they ran.
    - `runs`: the runs of the method that computed them.
    - `joined`: whether one run of a function in between computed several of them.
    """

    def __init__(self) -> None:
        self.order: dict[fx.Node, int] = {}
        self.runs: set[int | None] = set()
        self.joined = False
        self._within: set[int] = set()

    def add(self, node: fx.Node, call: OwnCall) -> None:
        """Take up the next node."""
        self.order[node] = len(self.order)
        self.runs.add(call.run)
        for run in call.indirect:
            self.joined |= run in self._within
            self._within.add(run)


class PlaceFinder:
    """Finds where in the source the sites of a recording are computed.

    Every function is read once, and every recorded call is looked at once, however many sites a
    forward has.
    """

    def __init__(self, recording: Recording) -> None:
        self._recording = recording
        self._methods: dict[tuple[type, str], Source] = {}
        self._functions: dict[int, Source] = {}  # by the id of the code
        self._calls: dict[fx.Node, OwnCall | SourceError] = {}
        self._alike: dict[tuple[Scope, int], dict[Span, Alike]] = {}

    def find(self, site: Site) -> Place:
        """Return where in the source a site's tensor is computed.

        **Raises:** `InsideError` if that is no one place, or one that cannot be rewritten.
        """
        found: set[Place] = set()
        for scope in self._recording.calls(site.path):
            if (node := scope.named.get(site.position)) is not None:
                try:
                    found.add(self._place(scope, _called(node)))
                except SourceError as error:
                    raise refusal(scope, site.position, str(error)) from error
        if len(found) != 1:
            reason = "different calls of the module compute it at different places"
            raise refusal(site.scope, site.position, reason)
        return found.pop()

    def _place(self, scope: Scope, node: fx.Node) -> Place:
        call = self._own_call(node)
        (cls, method), *_ = call.frame.methods
        source = self._method(cls, method)
        span = call.span(source)
        alike = self._alike_in(scope, call.frame.code)[span]
        if alike.joined:
            raise SourceError(
                f"one call in {method} computes several tensors like it, of which it returns one "
                "at most, as sum does"
            )
        if len(alike.order) > 1 and (None in alike.runs or len(alike.runs) > 1):
            raise SourceError(
                f"its place in {method} is passed {len(alike.order)} times in one call of the "
                "module, which cannot be told apart there"
            )
        return Place(cls, method, span, alike.order[node], len(alike.order), source.digest)

    def _alike_in(self, scope: Scope, code: types.CodeType) -> dict[Span, Alike]:
        """Return, for each expression of a function, the nodes whose tensors are its values."""
        if (scope, id(code)) not in self._alike:
            found = self._alike[scope, id(code)] = {}
            for node in scope.graph.nodes:
                if any(frame.code is code for frame in node.meta.get("origin", ())):
                    try:
                        call = self._own_call(node)
                        if call.frame.code is code:
                            span = call.span(self._method(*call.frame.methods[0]))
                            found.setdefault(span, Alike()).add(node, call)
                    except SourceError:  # no value of an expression there
                        continue
        return self._alike[scope, id(code)]

    def _own_call(self, node: fx.Node) -> OwnCall:
        """Return the call in the innermost method of the module that makes a node's tensor.

        **Raises:** `SourceError` if what is called there returns something else, or the method
        could not be exchanged.
        """
        if node not in self._calls:
            try:
                self._calls[node] = self._look_for_own_call(node)
            except SourceError as error:
                self._calls[node] = error
        found = self._calls[node]
        if isinstance(found, SourceError):
            raise found
        return found

    def _look_for_own_call(self, node: fx.Node) -> OwnCall:
        frames = without_dispatch(node.meta["origin"])
        own = [frame for frame in frames if frame.methods]
        if not own:
            where = f"{frames[0].code.co_name}, " if frames else ""
            raise SourceError(
                f"it is computed in {where}outside of the methods of its class, or where a "
                "method's first parameter no longer names the module"
            )
        if all(name != "forward" for _, name in own[-1].methods):
            raise SourceError(
                f"it is computed in {own[-1].methods[0][1]}, which is called from outside of "
                "forward, as a hook is"
            )
        name, indirect = _name(node), []
        for frame in frames[: frames.index(own[0]) + 1]:
            source, place = self._source_of(frame), (frame.code, frame.instruction, name)
            if frame is not own[0] and not source.returns(*place):
                raise SourceError(
                    f"it is computed in {frame.code.co_name}, a function that is not the module's "
                    "and that returns something else"
                )
            if node.op == "call_function" and not source.names(*place):
                indirect.append(frame.run)
            if frame is not own[0]:
                name = frame.code.co_name
        for inner, outer in itertools.pairwise(own):
            names = {name for _, name in inner.methods}
            if outer.methods == inner.methods:
                continue
            if not any(self._method(*outer.methods[0]).looks_up(name) for name in names):
                (cls, method), *_ = outer.methods
                raise SourceError(
                    f"{cls.__name__}.{method} calls {' or '.join(sorted(names))} in a way that "
                    "cannot be redirected"
                )
        function = function_of(*own[0].methods[0])
        code = None if function is None else function.__code__
        runs = [frame.run for frame in own if frame.code is code]
        return OwnCall(own[0], name, runs[0] if runs else None, tuple(indirect))

    def _method(self, cls: type, method: str) -> Source:
        if (cls, method) not in self._methods:
            self._methods[cls, method] = _source(cls, method)
        return self._methods[cls, method]

    def _source_of(self, frame: Frame) -> Source:
        """Return the source of what a frame runs: the module's method, or another function."""
        if frame.methods:
            return self._method(*frame.methods[0])
        code = frame.code
        if id(code) not in self._functions:
            cells = tuple(types.CellType() for _ in code.co_freevars)
            function = types.FunctionType(code, {}, code.co_name, None, cells)
            self._functions[id(code)] = Source(function)
        return self._functions[id(code)]


def _name(node: fx.Node) -> str:
    if node.op == "call_module":
        return str(node.target).rpartition(".")[2]
    return operation(node.target)


def _source(cls: type, method: str) -> Source:
    function = function_of(cls, method)
    if function is None:
        raise SourceError(f"{cls.__name__} has no function {method} any more")
    return Source(function)


# The new methods ---------------------------------------------------------------------------


@dataclass(frozen=True)
class NewMethod:
    """A method with its sites: the class it is defined in, its name, itself, its text."""

    cls: type
    name: str
    function: types.FunctionType
    text: str


def new_methods(edits: Sequence[Edit]) -> list[NewMethod]:
    """Return the methods with the sites that are marked in them.

    **Raises:** `InsideError` if the source is no longer what it was when the sites were planned.
    """
    together: dict[tuple[type, str], list[Edit]] = {}
    for edit in edits:
        if edit.place is not None:
            together.setdefault((edit.place.cls, edit.place.method), []).append(edit)
    made = []
    for (cls, method), here in together.items():
        try:
            source = _source(cls, method)
            if any(edit.place and edit.place.digest != source.digest for edit in here):
                raise SourceError(
                    "its source has changed since VCReg was inserted. Insert into the model anew"
                )
            old = source.function
            new, text = source.rewritten(_wrappings(here), _marker(here))
            outer = rewrapped(method, cls.__dict__[method], old, new)
        except SourceError as error:
            raise InsideError(f"{cls.__name__}.{method} cannot be rewritten: {error}.") from error
        names = [name for name, value in vars(cls).items() if value is cls.__dict__[method]]
        made += [NewMethod(cls, name, outer, text) for name in names]
    return made


def _wrappings(edits: Sequence[Edit]) -> list[Wrapping]:
    by_span: dict[Span, list[tuple[Edit, Place]]] = {}
    for edit in edits:
        if (place := edit.place) is not None:
            by_span.setdefault(place.span, []).append((edit, place))
    found = []
    for span, here in by_span.items():
        leaf = here[0][0].leaf
        sites: list[str | None] = [None] * max(place.executions for _, place in here)
        for edit, place in here:
            if sites[place.execution] is not None or edit.leaf != leaf:
                raise SourceError(f"line {span.line + 1} of it computes more than one site at once")
            sites[place.execution] = edit.key
        found.append(Wrapping(span, tuple(sites), leaf))
    return found


def _marker(edits: Sequence[Edit]) -> Callable[..., Any]:
    """Return the function that rewritten source calls at its sites."""
    buffers: Mapping[str, str | None] = {edit.key: edit.buffer for edit in edits}

    def mark_site(
        module: nn.Module,
        sites: str | tuple[str | None, ...],
        value: Any,
        executions: dict[Any, int] | None = None,
        leaf: tuple[int | str, ...] = (),
    ) -> Any:
        table = module.__dict__.get(TABLE)
        if table is None:  # an instance made by type(module)(…)
            return value
        key: str | None
        if isinstance(sites, str):
            key = sites
        else:
            assert executions is not None
            count = executions.get(sites, 0)
            executions[sites] = count + 1
            if count >= len(sites):
                return _one_too_many(module, sites, value)
            key = sites[count]
        if key is None:
            return value
        h = get_tensor(value, leaf)
        site, buffer, mean = getattr(table, key), buffers[key], None
        if buffer is None:
            mean = demean(site, h, module.training)
        else:
            h = demean_activation(site, h, module.training, getattr(module, buffer))
        marked = vcreg(site, h, mean, module.training)
        return put_tensor(value, leaf, marked) if leaf else marked

    return mark_site


def _one_too_many(module: nn.Module, sites: tuple[str | None, ...], value: Any) -> Any:
    if not (module.training and torch.is_grad_enabled()):
        return value
    raise InsideError(
        f"{type(module).__name__} was recorded with {len(sites)} passes of a loop that has the "
        f"sites {[site for site in sites if site is not None]}, and now makes more. Insert with "
        "example_inputs as you train on them."
    )
