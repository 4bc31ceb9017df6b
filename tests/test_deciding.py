"""Graphs of models whose forward asks for shapes and types: answered from the example, checked."""

from __future__ import annotations

import copy
import io

import pytest
import timm
import torch
from torch import nn

import vcreg_fx
from tests.test_graph_module import Residual, gradients
from vcreg_fx.exporting import VCReg, expect


class Asking(nn.Module):
    """Its own forward decides by type, number of axes and size, and has sites inside."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Residual(nn.Linear(4, 4)) for _ in range(2))
        self.head = nn.Linear(4, 2)

    def forward(self, x):
        if x.dtype != self.head.weight.dtype:
            x = x.to(self.head.weight.dtype)
        if len(x.shape) == 3 and int(x.shape[1]) > 1:
            x = x.mean(1, keepdim=True)
        for block, _ in zip(self.blocks, range(x.shape[-1]), strict=False):
            x = block(x)
        *_, width = x.shape
        return self.head(x.flatten(1) if x.ndim > 2 else x.view(-1, width))


def asking(*shape):
    model, x = Asking(), torch.randn(shape)
    vcreg_fx.insert(model, "blocks | head", example_inputs=(x,))
    return model, x


@pytest.mark.parametrize("shape", [(6, 4), (6, 5, 4), (6, 1, 4)])
def test_shapes_and_types_are_answered_from_the_example(shape):
    model, x = asking(*shape)
    graph = vcreg_fx.to_graph_module(model, (x,))
    assert sum(isinstance(module, VCReg) for module in graph.modules()) == 3
    expected, found = gradients(model, model, x), gradients(graph, model, x)
    assert all(torch.equal(found[key], expected[key]) for key in expected)
    for size in (1, 2, 7):
        other = torch.randn(size, *shape[1:])
        assert torch.equal(graph.eval()(other), model.eval()(other))


def test_another_way_through_the_forward_is_an_error():
    model, x = asking(6, 5, 4)
    graph = vcreg_fx.to_graph_module(model, (x,))
    buffer = io.BytesIO()
    torch.save(graph, buffer)
    buffer.seek(0)
    for made in (graph, copy.deepcopy(graph), torch.load(buffer, weights_only=False)):
        made.graph.eliminate_dead_code()
        made.recompile()
        for other in (x.double(), x[:, 0], x[:, :1]):
            with pytest.raises(vcreg_fx.InsertionError, match="forward of Asking depends on"):
                made(other)
    expect(3, "number", 3, "model")


class Pair(nn.Module):
    """A module that torch.fx cannot trace, with more than one output."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, x):
        return (self.linear(x) if x.sum() > 0 else x), x


class First(nn.Module):
    def forward(self, pair):
        return pair[0]


def test_a_site_in_the_output_of_a_module_that_is_kept_whole():
    model, x = nn.Sequential(Pair(), First(), nn.Linear(4, 2)), torch.rand(6, 4)
    vcreg_fx.insert(model, vcreg_fx.rules.at("0:output[0]"), example_inputs=(x,))
    graph = vcreg_fx.to_graph_module(model)
    assert type(graph.get_submodule("0")) is Pair
    expected, found = gradients(model, model, x), gradients(graph, model, x)
    assert all(torch.equal(found[key], expected[key]) for key in expected)


class ReadsAhead(nn.Module):
    """Reads a weight's type before it calls the layer, as the positions of XCiT do."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x):
        return x + self.layer((x * self.layer.weight.mean()).to(self.layer.weight.dtype))


def test_a_weight_that_is_read_before_its_layer_is_called():
    model, x = nn.Sequential(ReadsAhead(), nn.Dropout(0.5), nn.Linear(4, 2)), torch.randn(6, 4)
    vcreg_fx.insert(model, "blocks", example_inputs=(x,))
    graph = vcreg_fx.to_graph_module(model)
    expected, found = gradients(model, model, x), gradients(graph, model, x)
    assert all(torch.equal(found[key], expected[key]) for key in expected)


class LayerDrop(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x):
        return x if self.training and torch.rand([]) < 0.5 else self.inner(x)


def test_what_is_drawn_while_tracing_is_not_baked_in():
    model, x = nn.Sequential(LayerDrop(nn.Linear(4, 4)), nn.Linear(4, 2)), torch.randn(6, 4)
    vcreg_fx.insert(model, "head", example_inputs=(x,))
    before = torch.get_rng_state()
    graph = vcreg_fx.to_graph_module(model)
    assert torch.equal(torch.get_rng_state(), before)
    assert type(graph.get_submodule("0")) is LayerDrop  # kept whole
    model = nn.Sequential(LayerDrop(Residual(nn.Linear(4, 4))), nn.Linear(4, 2))
    vcreg_fx.insert(model, "blocks", example_inputs=(x,))
    with pytest.raises(vcreg_fx.InsertionError, match="0 .LayerDrop.* draws random numbers"):
        vcreg_fx.to_graph_module(model)


def vit():
    transformers = pytest.importorskip("transformers")
    config = transformers.ViTConfig(
        image_size=32, patch_size=16, num_labels=5, hidden_size=16, num_hidden_layers=2,
        num_attention_heads=2, intermediate_size=32,
    )  # fmt: skip
    return transformers.ViTForImageClassification(config), torch.randn(3, 3, 32, 32)


def small_vit():
    return timm.create_model("test_vit2", num_classes=5), torch.randn(2, 3, 64, 64)


def edgenext():
    return timm.create_model("edgenext_xx_small", num_classes=5), torch.randn(2, 3, 64, 64)


def mobilevit():
    return timm.create_model("mobilevit_xxs", num_classes=5), torch.randn(2, 3, 64, 64)


@pytest.mark.parametrize("build", [vit, small_vit, edgenext, mobilevit])
def test_models_that_ask(build, tmp_path):
    """Exported code is compared with the model by `export` itself, gradients too."""
    model, x = build()
    vcreg_fx.insert(model, "blocks | head", example_inputs=(x,))
    folder = vcreg_fx.export(model, tmp_path / "exported", example_inputs=(x,))
    code = (folder / "model.py").read_text()
    assert "_known" not in code
    assert ("from vcreg_fx.exporting import expect as" in code) == ("expect(" in code)


@pytest.mark.parametrize(
    ("demean", "training"), [("statistics", True), ("activations", True), ("activations", False)]
)
def test_models_that_call_their_layers_in_another_way_while_exported(demean, training, tmp_path):
    """transformers makes attention masks then; `export` compares with the model, gradients too."""
    model, x = vit()
    vcreg_fx.insert(model, "residual", demean=demean, example_inputs=(x,))
    path = vcreg_fx.export(model, tmp_path / "vit.pt2", training=training, example_inputs=(x,))
    targets = [node.target for node in torch.export.load(path).graph.nodes]
    assert targets.count(torch.ops.vcreg_fx.vcreg.default) == (4 if training else 0)


def test_a_site_whose_class_was_changed_again():
    model, x = asking(6, 5, 4)
    nn.utils.parametrizations.weight_norm(model.head)
    graph = vcreg_fx.to_graph_module(model, (x,))
    assert torch.equal(graph.eval()(x), model.eval()(x))
