"""One flat graph with demean and vcreg nodes, that trains and evaluates as the model does."""

from __future__ import annotations

import pytest
import torch
from torch import fx

import vcreg_fx
from tests.models import SMALL, step, task_loss
from vcreg_fx.export import Demean, VCReg


@pytest.mark.parametrize("demean", ["statistics", "activations"])
@pytest.mark.parametrize("name", ["resnet18", "convnext_atto", "vit_tiny", "swin_t"])
def test_trains_and_evaluates_as_the_model_does(name: str, demean: str) -> None:
    build, shape = SMALL[name]
    model, x = build(), torch.randn(shape)
    vcreg_fx.insert(model, "blocks | head", demean=demean, example_inputs=(x,))
    graph = vcreg_fx.to_graph_module(model)
    assert isinstance(graph, fx.GraphModule)
    modules = dict(graph.named_modules())
    called = [modules[n.target] for n in graph.graph.nodes if n.op == "call_module"]
    count = len(vcreg_fx.sites(model))
    assert sum(isinstance(m, VCReg) for m in called) == count
    assert sum(isinstance(m, Demean) for m in called) == count
    output, expected = step(model, x)
    expected = [g.clone() for g in expected]
    model.zero_grad()
    torch.manual_seed(1)
    again = graph(x)
    task_loss(again).backward()
    assert torch.equal(again, output)
    assert all(torch.equal(p.grad, e) for p, e in zip(model.parameters(), expected, strict=True))
    graph.eval()
    assert torch.equal(graph(x), model.eval()(x))
    assert {id(p) for p in graph.parameters()} == {id(p) for p in model.parameters()}


def test_the_model_keeps_its_modes() -> None:
    model = vcreg_fx.insert(SMALL["resnet18"][0](), "blocks")
    model.layer1.eval()
    before = [module.training for module in model.modules()]
    graph = vcreg_fx.to_graph_module(model)
    assert [module.training for module in model.modules()] == before
    sites = {m.site.name: m.training for m in graph.modules() if isinstance(m, VCReg)}
    assert not sites["layer1.0:output"] and sites["layer2.0:output"]


def test_accepts_further_passes() -> None:
    model = vcreg_fx.insert(SMALL["resnet18"][0](), "blocks")
    graph = vcreg_fx.to_graph_module(model)
    before = len(graph.graph.nodes)
    graph.graph.eliminate_dead_code()
    graph.recompile()
    assert len(graph.graph.nodes) == before
    from torch.fx.passes.shape_prop import ShapeProp

    ShapeProp(graph).propagate(torch.randn(2, 3, 32, 32))
    node = next(n for n in graph.graph.nodes if "vcreg_layer1_0_output" in str(n.target))
    assert tuple(node.meta["tensor_meta"].shape) == (2, 64, 8, 8)
