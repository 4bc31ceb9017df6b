"""How a training loop scales its loss, and the injected gradient with it."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch

import vcreg_fx
from tests.models import relative_error, resnet18, task_loss
from vcreg_fx.site._loss_scale import LossScale


def gradients(model: torch.nn.Module, x: torch.Tensor, factor: float = 1.0) -> list[torch.Tensor]:
    model.zero_grad()
    (task_loss(model(x)) * factor).backward()
    return [p.grad.clone() for p in model.parameters()]


@pytest.mark.parametrize("scale", [65536.0, torch.tensor(1024.0)])
@pytest.mark.parametrize("backend", ["fast", "naive"])
def test_a_scaled_loss_gives_scaled_gradients(scale: object, backend: str) -> None:
    model, x = resnet18().double(), torch.randn(4, 3, 32, 32, dtype=torch.float64)
    vcreg_fx.insert(model, "blocks", alpha=5.0, backend=backend)
    expected = gradients(model, x)
    vcreg_fx.set_loss_scale(model, scale)
    found = [g / float(scale) for g in gradients(model, x, float(scale))]
    assert relative_error(found, expected) <= 1e-12


def test_accumulation() -> None:
    model = resnet18().double().eval()  # batch norms by running statistics: micro-batches add up
    vcreg_fx.insert(model, "head", alpha=5.0)
    model.fc.train()
    parts = torch.randn(2, 4, 3, 32, 32, dtype=torch.float64)
    expected = [sum(pair) / 2 for pair in zip(*(gradients(model, x) for x in parts), strict=True)]
    vcreg_fx.set_loss_scale(model, accumulation_steps=2)
    model.zero_grad()
    for x in parts:
        (task_loss(model(x)) / 2).backward()
    assert relative_error([p.grad for p in model.parameters()], expected) <= 1e-12


def test_a_grad_scaler_is_read_at_every_step() -> None:
    model, x = resnet18(), torch.randn(4, 3, 32, 32)
    vcreg_fx.insert(model, "blocks", alpha=5.0)
    expected = gradients(model, x)
    scaler = torch.amp.GradScaler("cpu", init_scale=256.0, growth_interval=1)
    vcreg_fx.set_loss_scale(model, scaler)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    scales = []
    for _ in range(3):
        model.zero_grad()
        scaler.scale(task_loss(model(x))).backward()
        scaler.unscale_(optimizer)
        assert relative_error([p.grad for p in model.parameters()], expected) <= 1e-4
        scales.append(scaler.get_scale())
        scaler.step(optimizer)
        scaler.update()
    assert scales == [256.0, 512.0, 1024.0]


def test_float16_without_a_loss_scale_is_an_error() -> None:
    x = torch.randn(4, 3, 32, 32)
    half = vcreg_fx.insert(resnet18().half(), "blocks", example_inputs=(x.half(),))
    with pytest.raises(RuntimeError, match="set_loss_scale"):
        half(x.half())
    model = vcreg_fx.insert(resnet18(), "blocks")
    with torch.autocast("cpu", torch.float16), pytest.raises(RuntimeError, match="set_loss_scale"):
        model(x)
    vcreg_fx.set_loss_scale(model, 1.0)
    with torch.autocast("cpu", torch.float16):
        model(x)
    with torch.autocast("cpu", torch.bfloat16):
        vcreg_fx.insert(resnet18(), "blocks")(x).float().sum().backward()


def test_loss_mode_needs_no_scale() -> None:
    model, x = resnet18().double(), torch.randn(4, 3, 32, 32, dtype=torch.float64)
    reference = vcreg_fx.insert(copy.deepcopy(model), "blocks", alpha=5.0)
    expected = gradients(reference, x)
    vcreg_fx.insert(model, "blocks", alpha=5.0, mode="loss")
    ((task_loss(model(x)) + vcreg_fx.penalty(model)) * 1024.0).backward()
    found = [p.grad / 1024.0 for p in model.parameters()]
    assert relative_error(found, expected) <= 1e-12


def test_the_penalty_is_the_sum_and_reading_clears_it() -> None:
    model, x = resnet18(), torch.randn(4, 3, 32, 32)
    vcreg_fx.insert(model, "blocks", mode="loss")
    model(x)
    total = vcreg_fx.penalty(model)
    assert total.item() == pytest.approx(sum(site.penalty for site in vcreg_fx.sites(model)))
    assert total.requires_grad and vcreg_fx.penalty(model).item() == 0
    model.eval()(x)
    assert vcreg_fx.penalty(model).item() == 0


def test_penalties_that_nobody_reads_are_reported() -> None:
    model, x = resnet18(), torch.randn(2, 3, 32, 32)
    vcreg_fx.insert(model, "head", mode="loss")
    with pytest.warns(UserWarning, match="older ones are dropped"):
        for _ in range(66):
            model(x)


def test_scales_that_are_none() -> None:
    with pytest.raises(ValueError, match="accumulation_steps=0"):
        LossScale(1.0, 0)
    with pytest.raises(TypeError, match="GradScaler"):
        LossScale("big")
    with pytest.raises(ValueError, match="one number"):
        LossScale(torch.ones(2))


def test_a_pickled_scale_is_a_number() -> None:
    scale = LossScale(torch.amp.GradScaler("cpu", init_scale=8.0), 2)
    assert float(scale.read()) == 4.0
    assert float(pickle.loads(pickle.dumps(scale)).read()) == 4.0
    assert copy.deepcopy(scale).scale is scale.scale
