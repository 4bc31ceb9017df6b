"""A model with VCReg inserted: the same model, with the exact gradient in its training step."""

from __future__ import annotations

import copy
import io
import pickle

import pytest
import timm
import torch
import torchvision
from torch import nn

import vcreg_fx
from tests.models import SMALL, naive_step, relative_error, resnet18, step

TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-12}


def boundary_places(model: nn.Module, rule: str, x: torch.Tensor) -> list[tuple[str, str, str]]:
    planned = vcreg_fx.plan(model, rule, example_inputs=(x,))
    assert all(site.form == "boundary" for site in planned.sites)
    return [(site.path, site.position, str(site.layout)) for site in planned.sites]


@pytest.mark.parametrize("rule", ["blocks", "head | blocks | downsample"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", SMALL)
def test_gradients_equal_the_naive_losses(name: str, dtype: torch.dtype, rule: str) -> None:
    build, shape = SMALL[name]
    model, x = build().to(dtype), torch.randn(shape, dtype=dtype)
    if name == "vit_tiny":
        rule = rule.replace(" | downsample", "")
    config = {"alpha": 2.0, "beta": 3.0, "delta": 0.5}
    places = boundary_places(model, rule, x)
    expected = [g.clone() for g in naive_step(copy.deepcopy(model), x, places, **config)]
    plain, _ = step(copy.deepcopy(model), x)
    vcreg_fx.insert(model, rule, example_inputs=(x,), **config)
    output, found = step(model, x)
    assert torch.equal(output, plain)
    assert relative_error(found, expected) <= TOLERANCE[dtype]


@pytest.mark.parametrize("mode", ["gradient", "loss"])
@pytest.mark.parametrize("backend", ["fast", "naive"])
def test_modes_and_backends_agree(mode: str, backend: str) -> None:
    model, x = resnet18().double(), torch.randn(4, 3, 32, 32, dtype=torch.float64)
    places = boundary_places(model, "blocks", x)
    expected = [g.clone() for g in naive_step(copy.deepcopy(model), x, places)]
    vcreg_fx.insert(model, "blocks", mode=mode, backend=backend)
    _, found = step(model, x)
    assert relative_error(found, expected) <= 1e-12


ZOO = {
    "tv/vit_b_32": (torchvision.models.vit_b_32, 224),
    "tv/convnext_tiny": (torchvision.models.convnext_tiny, 64),
    "timm/convnext_tiny": (lambda: timm.create_model("convnext_tiny"), 64),
    "timm/convnext_atto": (lambda: timm.create_model("convnext_atto"), 64),
    "tv/resnet50": (torchvision.models.resnet50, 64),
    "timm/resnet50": (lambda: timm.create_model("resnet50"), 64),
    "tv/swin_t": (torchvision.models.swin_t, 64),
    "timm/swin_t": (lambda: timm.create_model("swin_tiny_patch4_window7_224", img_size=64), 64),
    "tv/efficientnet_b0": (torchvision.models.efficientnet_b0, 64),
    "timm/efficientnet_b0": (lambda: timm.create_model("efficientnet_b0"), 64),
    "timm/mixer_s32": (lambda: timm.create_model("mixer_s32_224"), 224),
    "timm/deit_distilled": (
        lambda: timm.create_model("deit_tiny_distilled_patch16_224", img_size=64),
        64,
    ),
    "tv/r3d_18": (torchvision.models.video.r3d_18, 32),
}


@pytest.mark.parametrize("name", ZOO)
def test_nothing_else_changes(name: str) -> None:
    build, side = ZOO[name]
    model = build()
    original = copy.deepcopy(model)
    shape = (2, 3, 4, side, side) if "r3d" in name else (2, 3, side, side)
    x = torch.randn(shape)
    vcreg_fx.insert(model, "blocks | head", example_inputs=(x,))

    def names(items: object) -> list[str]:
        return [name for name, _ in items]

    for listing in ("named_parameters", "named_buffers", "named_modules"):
        assert names(getattr(model, listing)()) == names(getattr(original, listing)())
    assert list(model.state_dict()) == list(original.state_dict())
    for one, other in zip(model.modules(), original.modules(), strict=True):
        assert isinstance(one, type(other)) and type(one).__name__ == type(other).__name__
        assert type(one).__module__ == type(other).__module__
        assert one._non_persistent_buffers_set == other._non_persistent_buffers_set
    with torch.no_grad():
        for training in (False, True):
            outputs = []
            for each in (model, original):
                each.train(training)
                torch.manual_seed(3)
                outputs.append(each(x))
            first, second = ([o] if isinstance(o, torch.Tensor) else list(o) for o in outputs)
            assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("name", ["resnet18", "convnext", "vit_tiny"])
def test_remove_gives_back_the_original(name: str) -> None:
    build, shape = SMALL[name]
    model, x = build(), torch.randn(shape)
    original = copy.deepcopy(model)
    _, expected = step(original, x)
    rule = "blocks | residual" if name == "vit_tiny" else "blocks | head"
    vcreg_fx.insert(model, rule, demean="activations")
    assert vcreg_fx.remove(model) is model
    for one, other in zip(model.modules(), original.modules(), strict=True):
        assert type(one) is type(other) and one.__dict__.keys() == other.__dict__.keys()
    assert list(model.state_dict()) == list(original.state_dict())
    _, found = step(model, x)
    assert all(torch.equal(f, e) for f, e in zip(found, expected, strict=True))
    assert vcreg_fx.sites(model) == []


def test_timms_methods_work_and_include_vcreg() -> None:
    model = timm.create_model("vit_tiny_patch16_224", img_size=32, depth=2, num_classes=5)
    x = torch.randn(4, 3, 32, 32)
    places = boundary_places(model, "blocks", x)
    expected = [g.clone() for g in naive_step(copy.deepcopy(model), x, places)]
    vcreg_fx.insert(model, "blocks")
    assert model.no_weight_decay() and model.group_matcher()
    model.set_grad_checkpointing()
    _, found = step(model, x)
    assert relative_error(found, expected) <= 1e-5
    model.set_grad_checkpointing(False)
    model.zero_grad()
    model.forward_features(x).square().mean().backward()
    assert all(site.penalty is not None for site in vcreg_fx.sites(model))


def test_the_inside_form_equals_the_naive_losses() -> None:
    """The first residual add of a ViT block, which no hook can see, is dropout + input."""
    model = torchvision.models.VisionTransformer(32, 16, 2, 2, 16, 32, num_classes=5).double()
    x = torch.randn(4, 3, 32, 32, dtype=torch.float64)
    expected_model = copy.deepcopy(model)
    seen = []
    for block in expected_model.encoder.layers:
        block.ln_2.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
        block.register_forward_hook(lambda _, args, output: seen.append(output))
    output = expected_model(x)
    loss = (output * torch.linspace(-1, 1, output.numel(), dtype=x.dtype).view_as(output)).sum()
    (loss + sum(vcreg_fx.vcreg_loss(h, layout="NLC") for h in seen)).backward()
    expected = [p.grad for p in expected_model.parameters()]
    vcreg_fx.insert(model, "residual")
    assert len(vcreg_fx.sites(model)) == 4
    _, found = step(model, x)
    assert relative_error(found, expected) <= 1e-12


def test_demeaned_activations() -> None:
    """Appendix A: the mean is subtracted in training, a running mean in eval."""
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2)).double()
    x = torch.randn(8, 3, dtype=torch.float64)
    h = model[0](x).detach()
    weight, bias = model[1].weight.detach(), model[1].bias.detach()
    vcreg_fx.insert(model, "head", demean="activations", example_inputs=(x,))
    torch.testing.assert_close(model(x), (h - h.mean(dim=0)) @ weight.T + bias)
    assert "1.vcreg_input_running_mean" in model.state_dict()
    for _ in range(400):
        model(x)
    model.eval()
    torch.testing.assert_close(model(x), (h - h.mean(dim=0)) @ weight.T + bias)
    model.train()
    model(x).sum().backward()
    _, found = step(model, x)
    leaf = copy.deepcopy(model)
    vcreg_fx.remove(leaf)
    h = leaf[0](x)
    z = h - h.mean(dim=0)
    output = leaf[1](z)
    scale = torch.linspace(-1, 1, output.numel(), dtype=x.dtype).view_as(output)
    leaf.zero_grad()
    ((output * scale).sum() + vcreg_fx.vcreg_loss(z)).backward()
    assert relative_error(found, [p.grad for p in leaf.parameters()]) <= 1e-12


def test_an_in_place_write_further_down_is_met_with_a_clone() -> None:
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 3, 3, padding=1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x + self.conv(x)

    model = nn.Sequential(Block(), nn.ReLU(inplace=True), Block(), nn.Flatten(), nn.Linear(192, 2))
    x = torch.randn(4, 3, 8, 8)
    planned = vcreg_fx.plan(model, "blocks", example_inputs=(x,))
    assert [site.clone for site in planned.sites] == ["1", None]
    assert "in place" in str(planned)
    reference = copy.deepcopy(model)
    reference[1] = nn.ReLU()
    expected = naive_step(reference, x, [("0", "output", "NCHW"), ("2", "output", "NCHW")])
    for mode in ("gradient", "loss"):
        each = copy.deepcopy(model)
        vcreg_fx.insert(each, "blocks", example_inputs=(x,), mode=mode)
        _, found = step(each, x)
        assert relative_error(found, expected) <= 1e-5


def test_inert_in_eval_mode_and_without_gradients() -> None:
    model, x = resnet18(), torch.randn(2, 3, 32, 32)
    vcreg_fx.insert(model, "blocks")
    with torch.no_grad():
        model(x)
    with torch.inference_mode():
        model(x)
    model.eval()
    model(x).sum().backward()
    assert all(site.penalty is None for site in vcreg_fx.sites(model))


def test_copies_and_pickles_keep_vcreg() -> None:
    model, x = SMALL["vit_tiny"][0](), torch.randn(4, 3, 32, 32)
    vcreg_fx.insert(model, "residual | head", alpha=0.5, demean="activations")
    vcreg_fx.sites(model)[0].alpha = 0.25
    vcreg_fx.set_loss_scale(model, 4.0)
    _, expected = step(model, x)
    expected = [g.clone() for g in expected]
    buffer = io.BytesIO()
    torch.save(model, buffer)
    buffer.seek(0)
    loaded = torch.load(buffer, weights_only=False)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model)), loaded):
        assert [type(m) for m in other.modules()] == [type(m) for m in model.modules()]
        assert [s.alpha for s in vcreg_fx.sites(other)] == [s.alpha for s in vcreg_fx.sites(model)]
        _, found = step(other, x)
        assert all(torch.equal(f, e) for f, e in zip(found, expected, strict=True))
        vcreg_fx.sites(other)[0].alpha = 9.0
        assert vcreg_fx.sites(model)[0].alpha == 0.25


def test_a_second_insert_adds_other_sites() -> None:
    model, x = SMALL["vit_tiny"][0]().double(), torch.randn(4, 3, 32, 32, dtype=torch.float64)
    both = copy.deepcopy(model)
    vcreg_fx.insert(model, "residual - blocks", alpha=0.1, example_inputs=(x,))
    vcreg_fx.insert(model, "blocks", alpha=0.2, example_inputs=(x,))
    vcreg_fx.insert(both, "residual", alpha=0.1, example_inputs=(x,))
    for site in vcreg_fx.sites(both):
        if site.position == "output":
            site.alpha = 0.2
    assert {s.name: s.alpha for s in vcreg_fx.sites(model)} == {
        s.name: s.alpha for s in vcreg_fx.sites(both)
    }
    _, found = step(model, x)
    _, expected = step(both, x)
    assert relative_error(found, expected) <= 1e-12
    assert len(vcreg_fx.get_configs(model)) == 2
    with pytest.raises(vcreg_fx.InsertionError, match="2 times"):
        vcreg_fx.get_config(model)


def test_get_config_reproduces_the_insertion() -> None:
    model = resnet18()
    vcreg_fx.insert(model, vcreg_fx.rules.blocks | vcreg_fx.rules.head, beta=0.04, delta=None)
    vcreg_fx.sites(model)[2].beta = 0.5
    config = vcreg_fx.get_config(model)
    other = vcreg_fx.insert(resnet18(), **config)
    assert vcreg_fx.get_config(other) == config
    assert vcreg_fx.sites(other)[2].beta == 0.5


def test_two_inputs_on_one_module_and_structured_outputs() -> None:
    class Mix(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(4, 4)

        def forward(self, x: torch.Tensor, *, skip: torch.Tensor) -> dict[str, torch.Tensor]:
            return {"sum": skip + self.linear(x), "other": x}

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Linear(4, 4)
            self.mix = nn.ModuleList(Mix() for _ in range(2))
            self.head = nn.Linear(4, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.first(x)
            for mix in self.mix:
                x = mix(x, skip=x)["sum"]
            return self.head(x)

    model, x = Model().double(), torch.randn(6, 4, dtype=torch.float64)
    planned = vcreg_fx.plan(model, "blocks", example_inputs=(x,))
    assert [site.name for site in planned.sites] == [
        "mix.0:output['sum']",
        "mix.1:output['sum']",
    ]
    reference = copy.deepcopy(model)
    seen = []
    for mix in reference.mix:
        mix.register_forward_hook(lambda _, args, output: seen.append(output["sum"]))
    output = reference(x)
    scale = torch.linspace(-1, 1, output.numel(), dtype=x.dtype).view_as(output)
    ((output * scale).sum() + sum(vcreg_fx.vcreg_loss(h) for h in seen)).backward()
    planned.apply()
    _, found = step(model, x)
    assert relative_error(found, [p.grad for p in reference.parameters()]) <= 1e-12


def test_a_block_called_twice_is_regularized_at_each_call() -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem = nn.Linear(3, 4)
            self.layer = nn.TransformerEncoderLayer(4, 2, 8, 0.0, batch_first=True)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.stem(x)
            return self.layer(self.layer(x)).mean(dim=1)

    model, x = Model().double(), torch.randn(3, 5, 3, dtype=torch.float64)
    (site,) = vcreg_fx.plan(model, "blocks", example_inputs=(x,)).sites
    assert site.calls == 2
    expected = naive_step(copy.deepcopy(model), x, [("layer", "output", "NLC")])
    expected = [g.clone() for g in expected]
    vcreg_fx.insert(model, "blocks", example_inputs=(x,))
    _, found = step(model, x)
    assert relative_error(found, expected) <= 1e-12


def test_a_printed_model_shows_its_sites() -> None:
    model = vcreg_fx.insert(resnet18(), "blocks", alpha=0.32)
    assert "vcreg[layer1.0:output (NCHW, d=16, α=0.32, β=0.08)]" in repr(model)
    assert "demean" in model.layer1[0].code and "vcreg" in model.layer1[0].code
    assert any("vcreg" in node.name for node in model.layer1[0].graph.nodes)


def test_a_replaced_module_is_reported_once_by_name() -> None:
    model = timm.create_model("resnet18", num_classes=5)
    vcreg_fx.insert(model, "head | blocks")
    model.reset_classifier(3)
    model.eval()(torch.randn(2, 3, 32, 32))
    model.train()
    with pytest.warns(UserWarning, match="fc:input") as caught:
        model(torch.randn(2, 3, 32, 32))
        model(torch.randn(2, 3, 32, 32))
    assert len(caught) == 1


def test_a_training_step_on_the_meta_device() -> None:
    """Nothing is computed there, but shapes and memory can be worked out."""
    build, shape = SMALL["resnet18"]
    with torch.device("meta"):
        model = vcreg_fx.insert(build(), "blocks")
        model(torch.empty(shape)).sum().backward()
    assert all(p.grad is not None for p in model.parameters())


@pytest.mark.parametrize("rule", ["head", "blocks", "residual", "blocks | downsample"])
def test_a_model_with_demeaned_activations_is_planned_as_the_plain_one(rule: str) -> None:
    build, _ = SMALL["convnext"]
    before = vcreg_fx.plan(build(), rule)
    model = vcreg_fx.insert(build(), "residual | head | downsample", demean="activations")
    after = vcreg_fx.plan(model, rule)
    assert [site.to_dict() for site in after.sites] == [site.to_dict() for site in before.sites]
