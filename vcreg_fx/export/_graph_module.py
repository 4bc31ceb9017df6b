"""A model with VCReg as one flat ``fx.GraphModule``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn

from .._errors import InsertionError
from ..surgery import carry_insertions, insertions, live_sites, original_class
from ._arguments import with_given_arguments
from ._modes import keeping_modes
from ._node_modules import Demean, VCReg
from ._tracer import SiteTracer, can_be_whole
from ._two_modes import TwoModeGraphModule, place
from ._writes import chain_writes


def to_graph_module(
    model: nn.Module,
    example_inputs: tuple[Any, ...] | None = None,
    example_kwargs: Mapping[str, Any] | None = None,
) -> fx.GraphModule:
    """Return the model as one flat graph in which every demean and vcreg is a node.

    Parameters and live sites are shared with the model, so that training either trains both. The
    graph trains with the same gradients, and behaves in train and in eval mode as the model does:
    where the two differ it is a graph module with two graphs. Modules of torch.nn are single nodes,
    and so are modules that torch.fx cannot trace.

    **Arguments:**

    - `model`: a model with VCReg inserted; it is not changed.
    - `example_inputs`, `example_kwargs`: arguments of one forward call, which become the graph's;
      all others keep their defaults. By default those without a default, or else those worked out
      from the model.

    **Returns:** a new ``fx.GraphModule`` whose vcreg nodes are modules (`Demean`, `VCReg`).

    **Raises:** `InsertionError` if nothing was inserted, or the model cannot be traced: where a
    module that torch.fx cannot trace has a site inside.
    """
    if not live_sites(model):
        raise InsertionError(
            "VCReg was not inserted into this model: call vcreg_fx.insert(model) first, or use "
            "torch.fx.symbolic_trace for a graph without VCReg."
        )
    if isinstance(model, fx.GraphModule):
        raise InsertionError("This is a graph module already, with VCReg as nodes.")
    modes = {path: module.training for path, module in model.named_modules(remove_duplicate=False)}
    with keeping_modes(model):
        tracers = _trace(model, example_inputs, example_kwargs)
    result = _join(model, tracers[True], tracers[False])
    for path, module in result.named_modules(remove_duplicate=False):
        if path:
            where = module.site.path if isinstance(module, (Demean, VCReg)) else path
            module.training = modes.get(where, model.training)
    carry_insertions(insertions(model), result)
    return result


def _trace(
    model: nn.Module,
    example_inputs: tuple[Any, ...] | None,
    example_kwargs: Mapping[str, Any] | None,
) -> dict[bool, SiteTracer]:
    """Trace in both modes, keeping modules whole that cannot be traced."""
    whole: set[str] = set()
    while True:
        tracers = {}
        for mode in (True, False):
            model.train(mode)
            root = with_given_arguments(model, example_inputs, example_kwargs)
            tracer = tracers[mode] = SiteTracer(whole)
            try:
                with torch.random.fork_rng(devices=[]):
                    tracer.trace(root)
            except Exception as error:
                whole |= _keep_whole(model, tracer, error)
                break
            chain_writes(tracer.graph)
            tracer.graph.lint()
        else:
            return tracers


def _keep_whole(model: nn.Module, tracer: SiteTracer, error: Exception) -> set[str]:
    """Return the paths of the module that failed and of those like it.

    **Raises:** `InsertionError` if it is the model itself, or a site lies inside.
    """
    path = tracer.failed
    reason = f"{type(error).__name__}: {error}"
    other = 'vcreg_fx.export(model, path, format="pt2", training=True) does not need torch.fx.'
    if not path:
        raise InsertionError(
            f"{type(model).__name__} cannot be traced as one graph, because its own forward cannot "
            f"be: {reason}\n{other}"
        ) from error
    failed = model.get_submodule(path)
    if not can_be_whole(failed):
        inside = [
            site.name
            for site in live_sites(model)
            if site.path == path or site.path.startswith(f"{path}.")
        ]
        raise InsertionError(
            f"{type(model).__name__} cannot be traced as one graph: {path} "
            f"({type(failed).__name__}) has sites inside ({', '.join(inside)}) and cannot be "
            f"traced: {reason}\n{other}"
        ) from error
    return {
        name
        for name, module in model.named_modules(remove_duplicate=False)
        if name and original_class(module) is original_class(failed) and can_be_whole(module)
    }


def _join(model: nn.Module, training: SiteTracer, evaluation: SiteTracer) -> fx.GraphModule:
    first, second = training.targets(), evaluation.targets()
    _tell_apart(evaluation.graph, first, second)
    root = nn.Module()
    order = {path: index for index, (path, _) in enumerate(model.named_modules())}

    def place_in_model(target: str) -> int:  # so that parameters keep their order
        return order.get(target, order.get(target.rpartition(".")[0], len(order)))

    saved = set(model.state_dict())  # and not the constants that tracing found
    found = {**second, **first}
    for target in sorted(found, key=place_in_model):
        place(root, target, found[target], persistent=target in saved)
    root.training = model.training
    graphs = (training.graph, evaluation.graph)
    sources = {graph.python_code("self").src for graph in graphs}
    name = type(model).__name__
    result = (
        fx.GraphModule(root, graphs[0], name)
        if len(sources) == 1
        else TwoModeGraphModule(root, *graphs, name)
    )
    for table in ("_modules", "_parameters", "_buffers"):  # which torch.fx fills in graph order
        getattr(result, table).clear()
        getattr(result, table).update(getattr(root, table))
    return result


def _tell_apart(graph: fx.Graph, first: dict[str, Any], second: dict[str, Any]) -> None:
    """Rename constants of the second graph that the first has under the same name."""
    for node in graph.nodes:
        target = str(node.target)
        one, other = first.get(target), second.get(target)
        if not (isinstance(one, Tensor) and isinstance(other, Tensor)) or one is other:
            continue
        if one.dtype != other.dtype or not torch.equal(one, other):
            node.target = f"evaluation_{target}"
            second[node.target] = other
