"""Build a module's new forward as a graph: the original one with demean and vcreg nodes."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import fx, nn

from placement_rules import Recording, Scope, Site

from .._config import VCRegConfig
from ._agreement import find_node
from ._inside import Inside, trace_inside
from ._nodes import (
    demean,
    demean_activation,
    get_argument,
    get_tensor,
    put_argument,
    put_tensor,
    vcreg,
)
from ._symbolic import TABLE


@dataclass(frozen=True)
class Edit:
    """One site of a module, as its forward sees it.

    **Attributes:**

    - `name`: the site's name.
    - `position`, `leaf`: where in the module it is.
    - `demeans`: whether the activation itself is demeaned.
    - `at`: the recorded call and node, needed while a forward is built around a node in its middle.
    """

    name: str
    position: str
    leaf: tuple[int | str, ...]
    demeans: bool
    at: tuple[Scope, fx.Node] | None = None

    @classmethod
    def of(cls, site: Site, config: VCRegConfig) -> Edit:
        """Return the edit for a planned site."""
        demeans = config.demean == "activations"
        return cls(site.name, site.position, site.leaf, demeans, (site.scope, site.node))

    def detached(self) -> Edit:
        """Return the edit without the recording, as it is kept with the module."""
        return replace(self, at=None)

    def found_in(self, recording: Recording) -> Edit:
        """Return a kept edit with its place in a new recording of the model."""
        for scope in recording.calls(self.name.partition(":")[0]):
            for node in scope.graph.nodes:
                if node.name == self.position:
                    return replace(self, at=(scope, node))
        return self

    @property
    def inside(self) -> bool:
        """Whether the site lies in the middle of the module's forward."""
        return self.position not in {"input", "output"}

    @property
    def key(self) -> str:
        """The site's name among those of its module, as an identifier."""
        parts = [self.position, *(str(key) for key in self.leaf)]
        if parts == ["input", "0"]:
            parts = ["input"]
        return "".join(c if c.isalnum() else "_" for c in "_".join(parts))

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
    - `inside`: the traced original forward with the nodes for sites in its middle, if any.
    """

    outer: fx.Graph
    inside: Inside | None = None


def build_forward(module: nn.Module, forward: Any, edits: Sequence[Edit]) -> Forward:
    """Return the forward of ``module`` with all of its sites.

    **Arguments:**

    - `module`: the module; it is not changed.
    - `forward`: its class's forward, before any rewriting.
    - `edits`: its sites.

    **Raises:** `InsideError` if a site lies in the middle of a forward that cannot be traced.
    """
    inside = None
    if within := [(edit, *edit.at) for edit in edits if edit.inside and edit.at is not None]:
        demeans = any(edit.demeans for edit, _, _ in within)
        inside = trace_inside(module, forward, within[0][1], in_eval=demeans)
        found = [
            (edit, find_node(inside.graph, module, scope, node)) for edit, scope, node in within
        ]
        for edit, node in found:
            _after(inside.graph, node, edit)
        inside.graph.lint()
    return Forward(_outer(forward, edits), inside)


def _outer(forward: Any, edits: Sequence[Edit]) -> fx.Graph:
    parameters = list(inspect.signature(forward).parameters.values())[1:]
    names = tuple(
        p.name for p in parameters if p.kind in {p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD}
    )
    graph = fx.Graph()
    args: Any = graph.create_node("placeholder", "*args", name="args")
    kwargs: Any = graph.create_node("placeholder", "**kwargs", name="kwargs")
    for edit in edits:
        if edit.position == "input":
            path = edit.leaf
            h = graph.call_function(get_argument, (args, kwargs, names, path))
            marked = _insert(graph, h, edit)
            call = graph.call_function(put_argument, (args, kwargs, names, path, marked))
            args = graph.call_function(_item, (call, 0))
            kwargs = graph.call_function(_item, (call, 1))
    output = graph.create_node(
        "call_module", "vcreg_original_forward", (args, kwargs), name="original_forward"
    )
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
