"""Trace a rewritten model: what happens at a site becomes two nodes."""

from __future__ import annotations

import copy
import operator
import random
from collections import OrderedDict
from collections.abc import Collection, Iterator, Mapping
from dataclasses import fields, is_dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn
from torch.fx.node import map_arg
from torch.fx.proxy import Attribute, TraceError

from placement_rules._torch import FORWARD_HOOKS, FakeCopyMode, FakeTensorMode

from .._shared.keeping import cuda_devices, keeping_randomness
from ..site import LiveSite, is_rewritten
from ..surgery import has_inside_site, is_covered, original_class, uninstall
from ._nodes import QUESTIONS, Demean, VCReg, expect


class SiteTracer(fx.Tracer):
    """Traces through rewritten modules.

    **Arguments:**

    - `whole`: the paths of the modules that are kept whole, besides those of torch.nn.
    - `decided`: the paths of the modules whose forward may ask for numbers and conditions.
      These are taken from the example call, and the graph checks them at every call.
    - `known`: what knows the example call, needed for these.

    **Attributes:**

    - `failed`: the path of the innermost module whose forward raised, None if none did.
    """

    def __init__(
        self,
        whole: Collection[str] = (),
        decided: Collection[str] = (),
        known: Known | None = None,
    ) -> None:
        super().__init__(param_shapes_constant=True)
        self.site_modules: dict[str, nn.Module] = {}
        self.failed: str | None = None
        self._whole = whole
        self._decided = decided
        self._known = known
        self._checked: set[tuple[fx.Node, str]] = set()

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """Keep torch's own modules whole, unless a site lies in them."""
        if any(is_rewritten(module) for module in m.modules()):
            return False
        return self._is_whole(m, module_qualified_name)

    def create_arg(self, a: Any) -> Any:
        """Keep the class of transformers' outputs, dictionaries that are dataclasses."""
        if isinstance(a, dict) and is_dataclass(a) and not isinstance(a, type):
            given = {item.name: getattr(a, item.name) for item in fields(a)}
            kwargs = {key: self.create_arg(v) for key, v in given.items() if v is not None}
            return self.create_node("call_function", type(a), (), kwargs)
        return super().create_arg(a)

    def call_module(self, m: nn.Module, forward: Any, args: Any, kwargs: Any) -> Any:
        """Remember where tracing failed first."""
        if self._known is not None and self._known.running:  # no part of what is traced
            return forward(*args, **kwargs)
        before = _random_state()
        try:
            output = super().call_module(m, forward, args, kwargs)
            _check_drawn(before)
        except Exception:
            if self.failed is None:
                self.failed = self.path_of_module(m)
            raise
        return output

    def trace(self, root: Any, concrete_args: dict[str, Any] | None = None) -> fx.Graph:
        before = _random_state()
        graph = super().trace(root, concrete_args)
        _check_drawn(before)
        return graph

    # What Python asks of proxies -------------------------------------------------------------

    def proxy(self, node: fx.Node) -> fx.Proxy:
        """Make a proxy, of the kind that can be asked where that may be needed."""
        return DecidingProxy(node, self) if self._decided else super().proxy(node)

    def to_bool(self, obj: fx.Proxy) -> bool:
        return bool(self.decide(obj, "condition"))

    def iter(self, obj: fx.Proxy) -> Iterator[Any]:
        return (obj[index] for index in range(self.decide(obj, "length")))  # type: ignore[index]

    def decide(self, obj: fx.Proxy, question: str) -> Any:
        """Return what a value's number, length or condition is in the example call.

        The graph checks it at every call.

        **Raises:** `TraceError` if it depends on data, or the module that asks is none that may.
        """
        path = self.scope.module_path
        if path not in self._decided or self._known is None:
            raise TraceError(
                "its control flow depends on traced values, such as a shape or what a tensor holds"
            )
        try:
            value = self._known.value(obj.node, self.root, self.site_modules)
        except Exception as error:
            raise TraceError(f"{obj.node.name}, which it asks for, is not known") from error
        answer_of, kinds = QUESTIONS[question]
        if not isinstance(value, kinds):
            raise TraceError(f"it asks for a {question} that depends on data: {obj.node.name}")
        answer = answer_of(value)
        if (obj.node, question) not in self._checked:
            self._checked.add((obj.node, question))
            where = path or type(self.root).__name__
            self.create_proxy("call_function", expect, (obj, question, answer, where), {})
        return answer

    # What rewritten forwards ask for --------------------------------------------------------

    def keeps(self, module: nn.Module) -> bool:
        """Whether the module's original forward is one node, between those of its sites."""
        if module is self.root or not can_be_whole(module):
            return False
        return self._is_whole(module, self.path_of_module(module))

    def original(self, module: nn.Module, args: Any, kwargs: Any) -> fx.Proxy:
        return self._call(self.path_of_module(module), shadow(module), args, kwargs)

    def demean(self, site: LiveSite, h: fx.Proxy) -> fx.Proxy:
        return self._call(_name("demean", site), Demean(site), (h,))

    def demean_activation(self, site: LiveSite, h: fx.Proxy, running_mean: Tensor) -> fx.Proxy:
        return self._call(_name("demean", site), Demean(site, running_mean), (h,))

    def vcreg(self, site: LiveSite, h: fx.Proxy, mean: fx.Proxy | None) -> fx.Proxy:
        args = (h,) if mean is None else (h, mean)
        return self._call(_name("vcreg", site), VCReg(site), args)

    # ----------------------------------------------------------------------------------------

    def targets(self) -> dict[str, Any]:
        """Return what the graph's targets name: modules, parameters, buffers, constants."""
        found: dict[str, Any] = {}
        for node in self.graph.nodes:
            target = str(node.target)
            if node.op == "call_module":
                found[target] = self.site_modules.get(target) or self.root.get_submodule(target)
            elif node.op == "get_attr":
                owner, _, name = target.rpartition(".")
                found[target] = getattr(self.root.get_submodule(owner), name)
        return found

    def _is_whole(self, module: nn.Module, path: str) -> bool:
        return path in self._whole or super().is_leaf_module(module, path)

    def _call(self, name: str, module: nn.Module, args: Any, kwargs: Any = None) -> fx.Proxy:
        self.site_modules.setdefault(name, module)
        proxy: fx.Proxy = self.create_proxy("call_module", name, tuple(args), dict(kwargs or {}))
        return proxy


def shadow(module: nn.Module, cls: type[nn.Module] | None = None) -> nn.Module:
    """Return a module of another class with the same parameters, buffers, children, attributes.

    The class is by default the one that the module had before VCReg was inserted.
    """
    cls = original_class(module) if cls is None else cls
    made: nn.Module = cls.__new__(cls)
    made.__dict__.update({k: v for k, v in module.__dict__.items() if not k.startswith("vcreg_")})
    made.__dict__.update({name: OrderedDict() for name in FORWARD_HOOKS})  # tracing would run them
    return made


def can_be_whole(module: nn.Module) -> bool:
    """Whether no site lies inside the module; those at its own inputs and outputs do not count."""
    inner = any(is_rewritten(child) for child in module.modules() if child is not module)
    return not inner and not has_inside_site(module)


def _check_drawn(before: tuple[Any, ...]) -> None:
    """Refuse a forward that drew random numbers itself: the graph would repeat them forever.

    **Raises:** `TraceError`.
    """
    if _random_state() != before:
        raise TraceError("it draws random numbers that do not come from a traced value")


def _random_state() -> tuple[Any, ...]:
    """Return what is equal as long as nobody draws a random number."""
    state: Any = np.random.get_state()
    torch_states = [torch.get_rng_state(), *map(torch.cuda.get_rng_state, cuda_devices())]
    drawn_by_torch = tuple(one.numpy().tobytes() for one in torch_states)
    return *drawn_by_torch, state[1].tobytes(), *state[2:], random.getstate()


def _name(kind: str, site: LiveSite) -> str:
    return f"{kind}_{''.join(c if c.isalnum() else '_' for c in site.name)}"


class DecidingProxy(fx.Proxy):
    """A traced value that can be a number or have a length; its tracer's ``decide`` says which."""

    def __getattr__(self, name: str) -> Attribute:
        return DecidingAttribute(self, name)

    def __int__(self) -> int:
        return int(self.tracer.decide(self, "number"))  # type: ignore[attr-defined]

    def __index__(self) -> int:
        return operator.index(self.tracer.decide(self, "number"))  # type: ignore[attr-defined]

    def __float__(self) -> float:
        return float(self.tracer.decide(self, "number"))  # type: ignore[attr-defined]

    def __len__(self) -> int:
        return int(self.tracer.decide(self, "length"))  # type: ignore[attr-defined]


class DecidingAttribute(DecidingProxy, Attribute):
    """An attribute of one, such as a tensor's shape."""


class Known:
    """Works out the values of traced nodes on fake tensors, one after the other, where asked for.

    **Arguments:**

    - `model`: the model, in the mode that it is traced in; a fake copy of it is made.
    - `example`: an example value for each argument of the graph, by name.

    **Attributes:**

    - `running`: whether it is running a module now.
    """

    def __init__(self, model: nn.Module, example: Mapping[str, Any]) -> None:
        self.running = False
        self._mode = FakeTensorMode(allow_non_fake_inputs=True)
        with FakeCopyMode(self._mode):
            self._model, self._example = copy.deepcopy((model, dict(example)))
        for module in list(self._model.modules()):
            if not is_covered(module):  # one that is does nothing without gradients, either
                uninstall(module)
        self._found: dict[fx.Node, Any] = {}

    def value(self, node: fx.Node, root: nn.Module, own: Mapping[str, nn.Module]) -> Any:
        """Return a node's value in the example call.

        `root` also holds the constants that tracing found; `own` are the nodes of its sites.
        """
        self.running = True
        try:
            with self._mode, torch.no_grad(), keeping_randomness():
                for earlier in node.graph.nodes:
                    if earlier not in self._found:
                        self._found[earlier] = self._run(earlier, root, own)
                    if earlier is node:
                        break
        finally:
            self.running = False
        return self._found[node]

    def _run(self, node: fx.Node, root: nn.Module, own: Mapping[str, nn.Module]) -> Any:
        target: Any = node.target
        args, kwargs = map_arg((node.args, node.kwargs), lambda given: self._found[given])
        if node.op == "placeholder":
            return self._example[target]
        if node.op == "get_attr":
            path, _, name = target.rpartition(".")
            owner = self._model.get_submodule(path)
            return getattr(owner if hasattr(owner, name) else root.get_submodule(path), name)
        if target is expect:
            return None
        if node.op == "call_method":
            return getattr(args[0], target)(*args[1:], **kwargs)
        if node.op == "call_module":
            if isinstance(own.get(target), (Demean, VCReg)):  # no matter, and its input
                return args[0]
            return self._model.get_submodule(target)(*args, **kwargs)
        return target(*args, **kwargs)
