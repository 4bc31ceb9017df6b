"""One flat graph with demean and vcreg nodes, that trains and evaluates as the model does."""

from __future__ import annotations

import copy
import io

import pytest
import torch
from torch import fx, nn

import vcreg_fx
from tests.models import SMALL, step, task_loss
from vcreg_fx.exporting import Demean, TwoModeGraphModule, VCReg


@pytest.mark.parametrize("demean", ["statistics", "activations"])
@pytest.mark.parametrize("name", ["resnet18", "convnext", "vit_tiny", "swin"])
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
    assert tuple(node.meta["tensor_meta"].shape) == (2, 16, 8, 8)


# Copies, passes ------------------------------------------------------------------------------


def gradients(graph, model, x):
    """Gradients of a graph by the names of the model's parameters, from a fixed seed."""
    graph.zero_grad()
    torch.manual_seed(1)
    task_loss(graph(x)).backward()
    found = dict(graph.named_parameters())
    return {name: found[name].grad.clone() for name, _ in model.named_parameters()}


def through_pickle(graph):
    buffer = io.BytesIO()
    torch.save(graph, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=False)


def without_dead_code(graph):
    for mode in (False, True):
        graph.train(mode)
        graph.graph.eliminate_dead_code()
        graph.recompile()
    return graph


def transformed(graph):
    def change(one):
        return fx.Transformer(one).transform()

    return graph.transform(change) if isinstance(graph, TwoModeGraphModule) else change(graph)


@pytest.mark.parametrize("make", [copy.deepcopy, through_pickle, without_dead_code, transformed])
@pytest.mark.parametrize(
    ("name", "rule", "two"),
    [
        ("resnet18", "blocks", False),
        ("convnext", "blocks", True),
        ("vit_tiny", "residual", False),
    ],
)
def test_copies_and_passes_keep_both_modes(name, rule, two, make):
    build, shape = SMALL[name]
    model, x = build(), torch.randn(shape)
    vcreg_fx.insert(model, rule, example_inputs=(x,))
    graph = vcreg_fx.to_graph_module(model)
    assert isinstance(graph, TwoModeGraphModule) == two
    state = copy.deepcopy(model.state_dict())
    expected = gradients(graph, model, x)
    for mode in (True, False):  # made in either mode
        other = make(graph.train(mode))
        other.load_state_dict(state)
        if make is not transformed:  # by torch.fx, which keeps no order
            assert list(other.state_dict()) == list(state)
        found = gradients(other.train(), model, x)
        assert all(torch.equal(found[key], expected[key]) for key in expected)
        other.load_state_dict(state)
        model.load_state_dict(state)
        assert torch.equal(other.eval()(x), model.eval()(x))
        assert len(vcreg_fx.sites(other)) == len(vcreg_fx.sites(model))


def test_a_graph_put_in_place_stays_there():
    model = vcreg_fx.insert(SMALL["convnext"][0](), "blocks")
    graph = vcreg_fx.to_graph_module(model)
    changed = copy.deepcopy(graph.graph)
    graph.graph = changed
    graph.eval()
    assert graph.graph is graph.evaluation_graph
    graph.train()
    assert graph.graph is changed


def test_parameters_keep_their_order():
    model = vcreg_fx.insert(SMALL["swin"][0](), "blocks")
    graph = vcreg_fx.to_graph_module(model)
    assert [n for n, _ in graph.named_parameters()] == [n for n, _ in model.named_parameters()]
    assert vcreg_fx.get_config(graph) == vcreg_fx.get_config(model)
    with pytest.raises(vcreg_fx.InsertionError, match="part of this graph module"):
        vcreg_fx.remove(graph)
    with pytest.raises(vcreg_fx.InsertionError, match="graph module already"):
        vcreg_fx.to_graph_module(graph)


# What torch.fx cannot trace ------------------------------------------------------------------


class Branching(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, x):
        return self.linear(x) if x.sum() > 0 else -self.linear(x)


class Residual(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x):
        return x + self.inner(x)


def test_modules_that_cannot_be_traced_stay_whole():
    model = nn.Sequential(*(Residual(Branching()) for _ in range(3)), nn.Linear(4, 2))
    x = torch.randn(6, 4)
    vcreg_fx.insert(model, "blocks | head", example_inputs=(x,))
    graph = vcreg_fx.to_graph_module(model)
    called = [graph.get_submodule(n.target) for n in graph.graph.nodes if n.op == "call_module"]
    assert [type(m).__name__ for m in called if not isinstance(m, (Demean, VCReg))] == [
        "Branching", "Branching", "Branching", "Linear"
    ]  # fmt: skip
    expected = gradients(model, model, x)
    found = gradients(graph, model, x)
    assert all(torch.equal(found[key], expected[key]) for key in expected)


def test_a_site_at_a_module_that_cannot_be_traced():
    model = nn.Sequential(Residual(nn.Linear(4, 4)), Branching())
    x = torch.randn(6, 4)
    vcreg_fx.insert(model, vcreg_fx.rules.at("1:output"), example_inputs=(x,))
    graph = vcreg_fx.to_graph_module(model)
    expected, found = gradients(model, model, x), gradients(graph, model, x)
    assert all(torch.equal(found[key], expected[key]) for key in expected)
    assert type(graph.get_submodule("1")) is Branching


def test_a_site_inside_a_module_that_cannot_be_traced_is_refused():
    class Outer(Branching):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Sequential(Residual(nn.Linear(4, 4)), Residual(nn.Linear(4, 4)))

    model, x = nn.Sequential(Outer(), nn.Linear(4, 2)), torch.randn(6, 4)
    vcreg_fx.insert(model, "blocks", example_inputs=(x,))
    with pytest.raises(vcreg_fx.InsertionError, match=r"0 \(Outer\) has sites inside \(0\.linear"):
        vcreg_fx.to_graph_module(model)
    model = vcreg_fx.insert(Outer(), "blocks", example_inputs=(x,))
    with pytest.raises(vcreg_fx.InsertionError, match="its own forward cannot be traced"):
        vcreg_fx.to_graph_module(model)
    assert all(module.training for module in model.modules())


def test_transformers_model():
    pytest.importorskip("transformers")
    from tests.test_export import videomae

    model, x = videomae(), torch.randn(3, 4, 3, 32, 32)
    vcreg_fx.insert(model, "residual", example_inputs=(x,))
    graph = vcreg_fx.to_graph_module(model)
    assert sum(isinstance(m, VCReg) for m in graph.modules()) == 4
    for mode in (True, False):
        graph.train(mode)
        model.train(mode)
        assert torch.equal(graph(x).logits, model(x).logits)


# Arguments -----------------------------------------------------------------------------------


class Arguments(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.block = Residual(nn.Linear(4, 4))
        self.other = Residual(nn.Linear(4, 4))

    def forward(self, x, *more, gain=1.0, bias=None, **named):
        x = self.other(self.block(x) * gain)
        for tensor in (*more, *named.values()):
            x = x + tensor
        return x if bias is None else x + bias


@pytest.mark.parametrize(
    ("count", "kwargs"),
    [(0, {}), (2, {}), (1, {"bias": True}), (0, {"gain": 2.0, "bias": True, "extra": True})],
)
def test_the_graph_takes_what_holds_tensors(count, kwargs):
    x = torch.randn(3, 4)
    args = (x, *(torch.randn(3, 4) for _ in range(count)))
    kwargs = {key: torch.randn(3, 4) if value is True else value for key, value in kwargs.items()}
    model = vcreg_fx.insert(Arguments(), "blocks", example_inputs=args, example_kwargs=kwargs)
    graph = vcreg_fx.to_graph_module(model, args, kwargs)
    tensors = {key: value for key, value in kwargs.items() if isinstance(value, torch.Tensor)}
    assert torch.equal(graph(*args, **tensors), model(*args, **kwargs))


class Positional(Arguments):
    def forward(self, x, /, y, *more):
        return super().forward(x, 2 * y, *more)


def test_arguments_by_position_keep_their_places():
    x, y, z = torch.randn(3, 3, 4)
    model = vcreg_fx.insert(Positional(), "blocks", example_inputs=(x, y, z))
    graph = vcreg_fx.to_graph_module(model, (x, y, z))
    assert torch.equal(graph(x, y, z), model(x, y, z))


def test_examples_that_do_not_fit():
    model = vcreg_fx.insert(SMALL["resnet18"][0](), "blocks")
    with pytest.raises(vcreg_fx.ExampleInputsError, match="does not fit"):
        vcreg_fx.to_graph_module(model, (torch.randn(2, 3, 32, 32),), {"nonsense": 3})


def test_parameters_read_in_another_order_keep_theirs():
    class ReadsBackwards(nn.Module):
        def __init__(self):
            super().__init__()
            self.first = nn.Parameter(torch.randn(4))
            self.second = nn.Parameter(torch.randn(4))
            self.layer = nn.Linear(4, 4)

        def forward(self, x):
            return self.layer(x * self.second + self.first)

    x = torch.randn(3, 4)
    model = vcreg_fx.insert(ReadsBackwards(), "modules('layer')", example_inputs=(x,))
    graph = vcreg_fx.to_graph_module(model)
    assert list(graph.state_dict()) == list(model.state_dict())
