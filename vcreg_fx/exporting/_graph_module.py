"""A model with VCReg as one flat ``fx.GraphModule``."""

from __future__ import annotations

import inspect
import operator
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn

from placement_rules import ExampleInputsError, candidate_inputs, leaves
from placement_rules._torch import tables_of, unsaved_buffers_of

from .._errors import InsertionError
from .._shared.keeping import keeping_modes, keeping_randomness
from ..site import carry_insertions, insertions, live_sites
from ..surgery import original_class
from ._example import Example, find_example
from ._nodes import Demean, VCReg
from ._tracer import Known, SiteTracer, can_be_whole, shadow
from ._two_modes import TwoModeGraphModule, named_tensors, place

_OPERATORS = {
    getattr(operator, name) for name in dir(operator) if name.startswith("i") and name[1:] in
    {"add", "sub", "mul", "truediv", "floordiv", "pow", "matmul", "and", "or", "xor"}
}  # fmt: skip
# The example call that a user gave: its positional arguments, if any, and those by name.
Given = tuple[tuple[Any, ...] | None, Mapping[str, Any] | None]


def to_graph_module(
    model: nn.Module,
    example_inputs: tuple[Any, ...] | None = None,
    example_kwargs: Mapping[str, Any] | None = None,
) -> fx.GraphModule:
    """Return the model as one flat graph in which every demean and vcreg is a node.

    Parameters and live sites are shared with the model, so that training either trains both. The
    graph trains with the same gradients, and behaves in train and in eval mode as the model does:
    where the two differ it is a graph module with two graphs. Modules of torch.nn are single nodes,
    and so are modules that torch.fx cannot trace. Where such a module has sites inside, or is the
    model itself, what it asks of shapes and types is answered from the example, and nodes in the
    graph check these answers at every call.

    **Arguments:**

    - `model`: a model with VCReg inserted; it is not changed.
    - `example_inputs`, `example_kwargs`: arguments of one forward call, which become the graph's;
      all others keep their defaults. By default those without a default, or else those worked out
      from the model.

    **Returns:** a new ``fx.GraphModule`` whose vcreg nodes are modules (`Demean`, `VCReg`).

    **Raises:** `InsertionError` if nothing was inserted, or the model cannot be traced: where a
    module with a site inside goes a way that depends on data or on random numbers of its own.
    """
    return make_graph(model, (example_inputs, example_kwargs))


def make_graph(model: nn.Module, given: Given, *, decide_first: bool = False) -> fx.GraphModule:
    """Do what `to_graph_module` does; with `decide_first` in the opposite order.

    Modules that ask for sizes and conditions are then traced, taking these from the example call,
    and kept whole only where that fails.
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
        tracers = _trace(model, given, decide_first)
    result = _join(model, tracers[True], tracers[False])
    for path, module in result.named_modules(remove_duplicate=False):
        if path:
            where = module.site.path if isinstance(module, (Demean, VCReg)) else path
            module.training = modes.get(where, model.training)
    carry_insertions(insertions(model), result)
    return result


def _trace(model: nn.Module, given: Given, decide_first: bool) -> dict[bool, SiteTracer]:
    """Trace in both modes, keeping modules whole that cannot be traced.

    Where such a module has sites inside, its decisions are taken from the example call.
    """
    whole: set[str] = set()
    decided: set[str] = set()
    example: dict[str, Any] | None = None
    while True:
        tracers = {}
        if decided and example is None:
            example = _values_by_name(model, find_example(model, *given))
        for mode in (True, False):
            model.train(mode)
            root = _with_given_arguments(model, given)
            known = None if example is None else Known(model, example)
            tracer = tracers[mode] = SiteTracer(whole, decided, known)
            try:
                with keeping_randomness():
                    tracer.trace(root)
            except Exception as error:
                _relent(model, tracer, error, whole, decided, decide_first)
                break
            chain_writes(tracer.graph)
            tracer.graph.lint()
        else:
            return tracers


def _relent(
    model: nn.Module,
    tracer: SiteTracer,
    error: Exception,
    whole: set[str],
    decided: set[str],
    decide_first: bool,
) -> None:
    """Let the module that failed, and those of its class, be traced in an easier way.

    **Raises:** `InsertionError` if there is none.
    """
    path = tracer.failed or ""
    failed = model.get_submodule(path)
    alike = {
        name: module
        for name, module in model.named_modules(remove_duplicate=False)
        if original_class(module) is original_class(failed)
    }
    undecided = path not in whole | decided
    if decide_first and undecided:
        decided |= set(alike)
    elif path and path not in whole and can_be_whole(failed):
        whole |= {name for name, module in alike.items() if name and can_be_whole(module)}
    elif undecided:
        decided |= set(alike)
    else:
        reason = f"{type(error).__name__}: {error}"
        if error.__cause__ is not None:
            reason += f" ({type(error.__cause__).__name__}: {error.__cause__})"
        raise InsertionError(
            f"{type(model).__name__} cannot be traced as one graph, because "
            f"{_what_failed(model, path)} cannot be traced: {reason}\n"
            'vcreg_fx.export(model, path, format="pt2", training=True) does not need torch.fx.'
        ) from error


def _what_failed(model: nn.Module, path: str) -> str:
    if not path:
        return "its own forward"
    name = f"{path} ({type(model.get_submodule(path)).__name__})"
    sites = [site.name for site in live_sites(model) if f"{site.path}.".startswith(f"{path}.")]
    return f"{name} has sites inside ({', '.join(sites)}) and" if sites else name


def _join(model: nn.Module, training: SiteTracer, evaluation: SiteTracer) -> fx.GraphModule:
    first, second = training.targets(), evaluation.targets()
    _tell_apart(evaluation.graph, first, second)
    root = nn.Module()
    order = {path: index for index, (path, _) in enumerate(model.named_modules())}
    own_order = {path: index for index, path in enumerate(named_tensors(model))}

    def place_in_model(target: str) -> tuple[int, bool, int]:  # so that parameters keep their order
        owner = order.get(target.rpartition(".")[0], len(order))
        own = own_order.get(target, len(own_order))
        return order.get(target, owner), target not in order, own  # a module before its tensors

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
    for table, ordered in zip(tables_of(result), tables_of(root), strict=True):
        table.clear()  # torch.fx filled it in graph order
        table.update(ordered)
    unsaved_buffers_of(result).update(unsaved_buffers_of(root))  # lost up to torch 2.10
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


def chain_writes(graph: fx.Graph) -> None:
    """Let whatever follows an in-place write use its result instead of the tensor written to.

    They are the same tensor. But `torch.fx` does not know that, and takes a write whose result
    nobody uses for dead code: ``mask.div_(keep)`` in timm's drop path.
    """
    nodes = list(graph.nodes)
    for index, node in enumerate(nodes):
        if _writes(node) and node.args and isinstance(node.args[0], fx.Node):
            written: fx.Node = node.args[0]
            later: set[Any] = set(nodes[index + 1 :])
            for user in [user for user in written.users if user in later]:
                user.replace_input_with(written, node)


def _writes(node: fx.Node) -> bool:
    if node.op == "call_method":
        return str(node.target).endswith("_") and not str(node.target).endswith("__")
    return node.op == "call_function" and node.target in _OPERATORS


# The arguments that the graph takes --------------------------------------------------------------


def _with_given_arguments(model: nn.Module, given: Given) -> nn.Module:
    """Return a stand-in for the model whose forward takes only what holds tensors in the example.

    Other arguments of the example are fixed, and the rest keep their defaults.

    **Raises:** `ExampleInputsError` if the example does not fit the model's forward, or is needed.
    """
    cls = type(model)
    signature = inspect.signature(model.forward)
    names, spread, fixed = _given(model, signature, given)

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


def _values_by_name(model: nn.Module, example: Example) -> dict[str, Any]:
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
    model: nn.Module, signature: inspect.Signature, given: Given
) -> tuple[list[str], list[str], dict[str, Any]]:
    """Return names of tensor arguments, names for positional ones without a name, fixed values."""
    args, kwargs = given
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
