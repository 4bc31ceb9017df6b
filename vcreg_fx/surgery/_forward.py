"""A module's new forward as a graph: the original one with demean and vcreg nodes for its sites."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from torch import fx

from placement_rules import Recording, Scope, Site, operation

from ..site import TABLE, key_of
from ._graph_data import Shown
from ._nodes import (
    check_arguments,
    demean,
    demean_activation,
    get_argument,
    get_tensor,
    put_argument,
    put_tensor,
    vcreg,
)
from ._wrapping import Span


@dataclass(frozen=True)
class Place:
    """Where in the source of a module's class the tensor of a site is computed.

    **Attributes:**

    - `cls`, `method`: the class that defines the method, and the method's name.
    - `span`: the expression.
    - `execution`, `executions`: which of its executions in one call of the method makes the tensor,
      and how many there were.
    - `digest`: of the method's source.
    """

    cls: type
    method: str
    span: Span
    execution: int
    executions: int
    digest: str


@dataclass(frozen=True)
class Edit:
    """One site of a module, as its forward sees it; equal for modules that are alike.

    **Attributes:**

    - `name`: the site's name.
    - `position`, `leaf`: where in the module it is.
    - `place`: for a site in the middle of the forward, where in the source it is.
    - `demeans`: whether the activation itself is demeaned.
    - `at`: the recorded call and node, with which the module's graph is shown.
    """

    name: str = field(compare=False)
    position: str
    leaf: tuple[int | str, ...]
    place: Place | None
    demeans: bool = False
    at: tuple[Scope, fx.Node] | None = field(default=None, compare=False, repr=False)

    @classmethod
    def of(cls, site: Site, place: Place | None) -> Edit:
        """Return the edit for a planned site."""
        at = (site.scope, site.node)
        return cls(site.name, site.position, site.leaf, place, at=at)

    def detached(self) -> Edit:
        """Return the edit without the recording, as it is kept with the module."""
        return replace(self, at=None)

    def found_in(self, recording: Recording) -> Edit:
        """Return a kept edit with its node in a new recording of the model, for the shown graph."""
        for scope in recording.calls(self.name.partition(":")[0]):
            for node in scope.graph.nodes:
                if node.name == self.position:
                    return replace(self, at=(scope, node))
        return self

    @property
    def key(self) -> str:
        """The site's name among those of its module, as an identifier."""
        return key_of(self.name)

    @property
    def buffer(self) -> str | None:
        """The name of the running mean that ``demean="activations"`` adds to the module."""
        return f"vcreg_{self.key}_running_mean" if self.demeans else None


@dataclass(frozen=True)
class Forward:
    """A module's new forward.

    **Attributes:**

    - `outer`: takes ``*args, **kwargs``, calls ``self.vcreg_original_forward``, and holds the nodes
      for sites at the module's inputs and outputs.
    - `inside`: the sites in the middle of the original forward.
    - `shown`: the graph that the module's class shows.
    """

    outer: fx.Graph
    inside: tuple[Edit, ...]
    shown: fx.Graph


def build_forward(forward: Any, edits: Sequence[Edit]) -> Forward:
    """Return the forward of a module with all of its sites.

    **Arguments:**

    - `forward`: its class's forward, before any rewriting.
    - `edits`: its sites.
    """
    outer = _outer(forward, edits)
    inside = tuple(edit.detached() for edit in edits if edit.place is not None)
    within = [edit for edit in edits if edit.place is not None and edit.at is not None]
    return Forward(outer, inside, _recorded(within) if within else outer)


def _recorded(edits: Sequence[Edit]) -> fx.Graph:
    """Return the recorded graph of a module's call with the nodes of the sites in its middle."""
    assert edits[0].at is not None
    scope = edits[0].at[0]
    graph, prefix = fx.Graph(), f"{scope.path}."
    made: dict[fx.Node, fx.Node] = {}
    for node in scope.graph.nodes:
        copied = made[node] = graph.node_copy(node, lambda source: made[source])
        copied.meta = {}
        if not isinstance(copied.target, str) and not hasattr(copied.target, "__module__"):
            copied.target = Shown(operation(copied.target))  # a property, which cannot be printed
        if copied.op in {"call_module", "get_attr"}:
            copied.target = str(copied.target).removeprefix(prefix)
    for edit in edits:
        assert edit.at is not None
        _after(graph, made[edit.at[1]], edit)
    return graph


def _outer(forward: Any, edits: Sequence[Edit]) -> fx.Graph:
    parameters = list(inspect.signature(forward).parameters.values())[1:]
    names = tuple(
        p.name for p in parameters if p.kind in {p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD}
    )
    graph = fx.Graph()
    args: Any = graph.create_node("placeholder", "*args", name="args")
    kwargs: Any = graph.create_node("placeholder", "**kwargs", name="kwargs")
    given, nested = (args, kwargs), []
    for edit in edits:
        if edit.position == "input":
            path = edit.leaf
            h = graph.call_function(get_argument, (args, kwargs, names, path))
            marked = _insert(graph, h, edit)
            call = graph.call_function(put_argument, (args, kwargs, names, path, marked))
            args = graph.call_function(_item, (call, 0))
            kwargs = graph.call_function(_item, (call, 1))
            nested += [(edit.name, path, marked)] if len(path) > 1 else []
    output = graph.create_node(
        "call_module", "vcreg_original_forward", (args, kwargs), name="original_forward"
    )
    if nested:
        how = (given, (args, kwargs), names, tuple(nested), output)
        output = graph.call_function(check_arguments, how)
    for edit in edits:
        if edit.position == "output":
            if edit.leaf:
                h = graph.call_function(get_tensor, (output, edit.leaf))
                marked = _insert(graph, h, edit)
                output = graph.call_function(put_tensor, (output, edit.leaf, marked))
            else:
                output = _insert(graph, output, edit)
    graph.output(output)
    return graph


def _item(pair: tuple[Any, Any], index: int) -> Any:
    return pair[index]


def _after(graph: fx.Graph, node: fx.Node, edit: Edit) -> None:
    """Insert the site's nodes behind a node, for all that use its value."""
    users = list(node.users)
    with graph.inserting_after(node):
        anchor = graph.create_node("get_attr", "training", name="training")
    with graph.inserting_before(anchor.next):
        marked = _insert(graph, node, edit, anchor)
    for user in users:
        user.replace_input_with(node, marked)


def _insert(graph: fx.Graph, h: fx.Node, edit: Edit, training: fx.Node | None = None) -> fx.Node:
    """Insert a demean node and a vcreg node behind the activation; return the latter."""
    if training is None:
        training = graph.create_node("get_attr", "training", name="training")
    site = graph.create_node("get_attr", f"{TABLE}.{edit.key}", name=f"site_{edit.key}")
    mean: fx.Node | None = None
    if edit.buffer is None:
        mean = graph.call_function(demean, (site, h, training))
    else:
        running = graph.create_node("get_attr", edit.buffer, name="running_mean")
        h = graph.call_function(demean_activation, (site, h, training, running))
    return graph.call_function(vcreg, (site, h, mean, training))
