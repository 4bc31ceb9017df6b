"""What others export and trace with works on a model with VCReg, called directly."""

from __future__ import annotations

import copy

import pytest
import timm
import torch
from torch import nn

import vcreg_fx
from tests.models import SMALL, step, task_loss


def both(
    name: str, rule: str = "blocks | head", **options
) -> tuple[nn.Module, nn.Module, torch.Tensor]:
    """Return a model with VCReg and the same without, in eval mode, and an input."""
    build, shape = SMALL[name]
    plain, x = build().eval(), torch.randn(shape)
    model = vcreg_fx.insert(copy.deepcopy(plain), rule, example_inputs=(x,), **options)
    return model, plain, x


def assert_no_trace(names) -> None:
    assert [name for name in map(str, names) if "vcreg" in name or "demean" in name] == []


@pytest.mark.parametrize("rule", ["blocks | head", "residual"])
@pytest.mark.parametrize(
    "name",
    [
        "resnet18",
        "vit_tiny",
        *(pytest.param(name, marks=pytest.mark.slow) for name in ("convnext", "swin")),
    ],
)
def test_in_eval_mode(name, rule):
    model, plain, x = both(name, rule)
    expected = plain(x)
    scripted = torch.jit.trace(model, (x,))
    assert torch.equal(scripted(x), expected)
    assert_no_trace(scripted.inlined_graph.nodes())
    traced = torch.fx.symbolic_trace(model)
    assert torch.equal(traced(x), expected)
    assert_no_trace(node.target for node in traced.graph.nodes)
    batch = torch.export.Dim("batch", min=1)
    program = torch.export.export(model, (x,), dynamic_shapes=({0: batch},))
    assert_no_trace(node.target for node in program.graph.nodes)
    assert torch.equal(program.module()(x), expected)
    assert torch.equal(program.module()(x[:1]), plain(x[:1]))


def test_strict_export():
    model, plain, x = both("resnet18")
    program = torch.export.export(model, (x,), strict=True)
    assert_no_trace(node.target for node in program.graph.nodes)
    assert torch.equal(program.module()(x), plain(x))
    program = torch.export.export(model.train(), (x,), strict=True)
    calls = [n for n in program.graph.nodes if n.target == torch.ops.vcreg_fx.vcreg.default]
    assert len(calls) == len(vcreg_fx.sites(model))


def test_onnx_export():
    runtime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    model, plain, x = both("resnet18")
    program = torch.onnx.export(model, (x,), dynamo=True, verbose=False)
    session = runtime.InferenceSession(program.model_proto.SerializeToString())
    (found,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    torch.testing.assert_close(torch.from_numpy(found), plain(x), rtol=1e-4, atol=1e-4)
    # Torch tries several ways to export. Dynamo's does not see that it is for ONNX; then the
    # operator is what ONNX has no function for.
    with pytest.raises(torch.onnx.errors.OnnxExporterError) as caught:
        torch.onnx.export(model.train(), (x,), dynamo=True, verbose=False)
    reasons = ("ONNX has no operator for VCReg", "No ONNX function found for <OpOverload(op='vcreg")
    causes = f"{caught.value} {caught.value.__cause__} {caught.value.__cause__.__cause__}"
    assert any(reason in causes for reason in reasons), causes


@pytest.mark.parametrize("options", [{}, {"rule": "residual"}, {"demean": "activations"}], ids=str)
@pytest.mark.parametrize("name", ["resnet18", "vit_tiny", "swin"])
def test_torchvision_feature_extractors(name, options):
    from torchvision.models.feature_extraction import (
        create_feature_extractor,
        get_graph_node_names,
    )

    model, plain, x = both(name, **options)
    last = get_graph_node_names(plain)[1][-1]
    model.eval()
    extractor = create_feature_extractor(model, [last])
    assert not extractor.training
    if "demean" not in options:
        assert torch.equal(extractor(x)[last], plain(x))
    # torchvision traces it in train mode, too; that graph trains with VCReg.
    state = copy.deepcopy(model.state_dict())
    _, expected = step(model.train(), x)
    expected = [gradient.clone() for gradient in expected]
    model.load_state_dict(state)
    model.zero_grad()
    torch.manual_seed(1)
    task_loss(extractor.train()(x)[last]).backward()
    assert all(torch.equal(p.grad, e) for p, e in zip(model.parameters(), expected, strict=True))


def test_timm_features():
    from timm.models._features import FeatureHookNet

    plain = timm.create_model("convnext_atto", num_classes=5).eval()
    x = torch.randn(2, 3, 64, 64)
    model = vcreg_fx.insert(copy.deepcopy(plain), "blocks", example_inputs=(x,))
    for wrap in (
        lambda m: FeatureHookNet(m, out_indices=(1, 3)),
        lambda m: lambda x: m.forward_intermediates(x, intermediates_only=True),
    ):
        found, expected = (wrap(copy.deepcopy(m))(x) for m in (model, plain))
        assert len(found) == len(expected) > 1
        assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))
    for hooked in (model, plain):
        seen = []
        hooked.stages[1].register_forward_hook(lambda *call, seen=seen: seen.append(call[2]))
        hooked(x)
        hooked.seen = seen[0]
    assert torch.equal(model.seen, plain.seen)


# Train mode ----------------------------------------------------------------------------------


@pytest.mark.parametrize("rule", ["blocks | head", "residual"])
def test_symbolic_tracing_in_train_mode_keeps_vcreg(rule):
    model, _, x = both("vit_tiny", rule)
    model.train()
    traced = torch.fx.symbolic_trace(model)
    _, expected = step(model, x)
    expected = [gradient.clone() for gradient in expected]
    model.zero_grad()
    torch.manual_seed(1)
    task_loss(traced(x)).backward()
    assert all(torch.equal(p.grad, e) for p, e in zip(model.parameters(), expected, strict=True))
    assert copy.deepcopy(traced)(x).shape == (4, 5)
    mask = torch.rand(5, 5) > 0.4  # the example was recorded without one
    mask.fill_diagonal_(True)
    gradients = []
    for each in (model, traced):
        model.zero_grad()
        torch.manual_seed(1)
        task_loss(each(x, mask)).backward()
        gradients.append([p.grad.clone() for p in model.parameters()])
    assert all(torch.equal(*pair) for pair in zip(*gradients, strict=True))
    assert not torch.equal(gradients[0][0], expected[0])


def test_export_in_train_mode_keeps_the_gradient():
    model, _, x = both("resnet18")
    program = torch.export.export(model.train(), (x,))
    state = copy.deepcopy(model.state_dict())
    _, expected = step(model, x)
    model.load_state_dict(state)
    module = program.module()
    task_loss(module(x)).backward()
    found = dict(module.named_parameters())
    for (name, _), gradient in zip(model.named_parameters(), expected, strict=True):
        assert torch.equal(found[name].grad, gradient)


def test_export_under_no_grad_in_train_mode_keeps_the_gradient():
    model, _, x = both("vit_tiny")
    with torch.no_grad():
        program = torch.export.export(model.train(), (x,))
    calls = [n for n in program.graph.nodes if n.target == torch.ops.vcreg_fx.vcreg.default]
    assert len(calls) == len(vcreg_fx.sites(model))


def test_jit_trace_in_train_mode_is_refused():
    model, _, x = both("resnet18")
    with pytest.raises(RuntimeError, match=r"torch\.jit\.trace in train mode"):
        torch.jit.trace(model.train(), (x,))


def test_export_of_penalties_is_refused():
    model, _, x = both("resnet18", mode="loss")
    with pytest.raises(RuntimeError, match='mode="loss"'):
        torch.export.export(model.train(), (x,))


def test_a_loss_scale_is_exported():
    model, _, x = both("vit_tiny")
    vcreg_fx.set_loss_scale(model, 8.0)
    module = torch.export.export(model.train(), (x,)).module()
    _, expected = step(model, x)
    task_loss(module(x)).backward()
    found = dict(module.named_parameters())
    for (name, _), gradient in zip(model.named_parameters(), expected, strict=True):
        assert torch.equal(found[name].grad, gradient)


# The operator --------------------------------------------------------------------------------


def arguments(
    shape=(3, 4, 2, 2), *, scale=None, delta=1.0, convention="exact", dtype=torch.float64
):
    h = torch.randn(shape, dtype=dtype, requires_grad=True)
    mean = h.detach().mean((0, 2, 3))
    alpha, beta = torch.tensor(0.6, dtype=dtype), torch.tensor(0.3, dtype=dtype)
    return (h, mean, alpha, beta, scale, 1, delta, 1.0, 1e-4, convention)


@pytest.mark.parametrize("options", [{}, {"delta": None}, {"shape": (1, 4, 1, 1)}], ids=str)
def test_the_operator_is_registered_in_full(options):
    torch.library.opcheck(torch.ops.vcreg_fx.vcreg.default, arguments(**options))


@pytest.mark.parametrize("scale", [None, torch.tensor(4.0, dtype=torch.float64)])
@pytest.mark.parametrize("delta", [None, 0.05])
def test_the_operators_gradient_is_that_of_the_loss(delta, scale):
    call = arguments(delta=delta, scale=scale)
    h = call[0]
    weights = torch.randn_like(h)
    (found,) = torch.autograd.grad((torch.ops.vcreg_fx.vcreg(*call) * weights).sum(), h)
    penalty = vcreg_fx.vcreg_loss(h, 0.6, 0.3, delta, layout="NCHW")
    (expected,) = torch.autograd.grad(penalty, h)
    torch.testing.assert_close(found, weights + expected * (1 if scale is None else scale))


def test_one_sample_has_no_penalty():
    call = arguments((1, 4, 1, 1))
    (found,) = torch.autograd.grad(torch.ops.vcreg_fx.vcreg(*call).sum(), call[0])
    assert torch.equal(found, torch.ones_like(found))


def test_second_order_is_refused():
    call = arguments()
    output = torch.ops.vcreg_fx.vcreg(*call).pow(2).sum()
    (gradient,) = torch.autograd.grad(output, call[0], create_graph=True)
    with pytest.raises(RuntimeError, match="create_graph=True"):
        gradient.sum().backward()


def test_other_fields_are_not_dropped(monkeypatch):
    from vcreg_fx.gradient import _exported as _operator

    monkeypatch.setitem(_operator._OTHERS, "gamma", 1.0)
    model, _, x = both("resnet18", gamma=2.0)
    with pytest.raises(RuntimeError, match=r"gamma=2\.0, which an exported program cannot keep"):
        torch.export.export(model.train(), (x,))
