"""A model with VCReg as one flat ``fx.GraphModule``."""

from __future__ import annotations

import inspect
from typing import Any

from torch import Tensor, fx, nn

from .._errors import InsertionError
from .._live import LiveSite
from ..surgery import is_rewritten, live_sites
from ._node_modules import Demean, VCReg


class TwoModeGraphModule(fx.GraphModule):
    """A graph module with one graph for training and one for evaluation.

    For models whose forward branches on ``self.training``, which tracing decides once and for all.
    """

    def __init__(self, root: dict[str, Any], training: fx.Graph, evaluation: fx.Graph) -> None:
        super().__init__(root, training, "TwoModeGraphModule")
        self.training_graph = training
        self.evaluation_graph = evaluation

    def train(self, mode: bool = True) -> TwoModeGraphModule:
        """Set the mode, and use the graph that was traced in it."""
        if mode != self.training:
            self.graph = self.training_graph if mode else self.evaluation_graph
        super().train(mode)
        return self


def to_graph_module(model: nn.Module) -> fx.GraphModule:
    """Return the model as one flat graph in which every demean and vcreg is a node.

    Parameters and live sites are shared with the model, so that training either trains both. The
    graph trains with the same gradients, and behaves in train and in eval mode as the model does.

    **Arguments:**

    - `model`: a model with VCReg inserted; it is not changed.

    **Returns:** a new ``fx.GraphModule`` whose vcreg nodes are modules (`Demean`, `VCReg`).

    **Raises:** `InsertionError` if nothing was inserted, or the model cannot be traced whole.
    """
    if not live_sites(model):
        raise InsertionError(
            "VCReg was not inserted into this model: call vcreg_fx.insert(model) first, or use "
            "torch.fx.symbolic_trace for a graph without VCReg."
        )
    modes = {module: module.training for module in model.modules()}
    tracers = {}
    try:
        for mode in (True, False):
            model.train(mode)
            tracers[mode] = _trace(model)
    finally:
        for module, mode in modes.items():
            module.training = mode
    graphs = {mode: tracer.graph for mode, tracer in tracers.items()}
    root = tracers[True].targets(model) | tracers[False].targets(model)
    if graphs[True].python_code("self").src == graphs[False].python_code("self").src:
        result = fx.GraphModule(root, graphs[True], type(model).__name__)
    else:
        result = TwoModeGraphModule(root, graphs[True], graphs[False])
    for module in result.modules():
        owner = (
            model.get_submodule(module.site.path) if isinstance(module, (Demean, VCReg)) else module
        )
        module.training = modes.get(owner, model.training)
    if isinstance(result, TwoModeGraphModule):
        result.graph = graphs[model.training]
    return result


def _trace(model: nn.Module) -> _SiteTracer:
    defaults = {
        name: parameter.default
        for name, parameter in inspect.signature(model.forward).parameters.items()
        if parameter.default is not parameter.empty
    }
    tracer = _SiteTracer(model)
    try:
        tracer.trace(model, concrete_args=defaults)
    except Exception as error:
        raise InsertionError(
            f"{type(model).__name__} cannot be traced as one graph: {type(error).__name__}: {error}"
        ) from error
    tracer.graph.lint()
    return tracer


class _SiteTracer(fx.Tracer):
    """Traces through rewritten modules, and turns what happens at a site into two nodes."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__(param_shapes_constant=True)
        self.site_modules: dict[str, nn.Module] = {}
        self._model = model

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """Keep torch's own modules whole, unless a site lies in them."""
        holds_site = any(is_rewritten(module) for module in m.modules())
        return super().is_leaf_module(m, module_qualified_name) and not holds_site

    def demean(self, site: LiveSite, h: fx.Proxy) -> fx.Proxy:
        """Make a demean node that returns the mean."""
        return self._call(site, "demean", Demean(site), h)

    def demean_activation(self, site: LiveSite, h: fx.Proxy, running_mean: Tensor) -> fx.Proxy:
        """Make a demean node that returns the demeaned activation."""
        return self._call(site, "demean", Demean(site, running_mean), h)

    def vcreg(self, site: LiveSite, h: fx.Proxy, mean: fx.Proxy | None) -> fx.Proxy:
        """Make a vcreg node."""
        return self._call(site, "vcreg", VCReg(site), *([h] if mean is None else [h, mean]))

    def targets(self, model: nn.Module) -> dict[str, Any]:
        """Return what the graph's targets name: modules, parameters, buffers, constants."""
        found: dict[str, Any] = {}
        for node in self.graph.nodes:
            target = str(node.target)
            if node.op == "call_module":
                found[target] = self.site_modules.get(target) or model.get_submodule(target)
            elif node.op == "get_attr":
                owner, _, name = target.rpartition(".")
                found[target] = getattr(model.get_submodule(owner), name)
        return found

    def _call(self, site: LiveSite, kind: str, module: nn.Module, *args: Any) -> fx.Proxy:
        where = "".join(c if c.isalnum() else "_" for c in site.name)
        name = f"{kind}_{where}"
        self.site_modules.setdefault(name, module)
        proxy: fx.Proxy = self.create_proxy("call_module", name, args, {})
        return proxy
