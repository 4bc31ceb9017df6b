"""`measure` before training, and `metrics` during it."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import Tensor, nn

import vcreg_fx
from tests.models import SMALL, resnet10, resnet18, step, vit_tiny


def loss(output: Tensor) -> Tensor:
    return output.square().mean()


def by_hand(model: nn.Module, x: Tensor, path: str, layout: str, **config: float) -> dict:
    """The numbers of one site from autograd and the reference losses."""
    seen: list[Tensor] = []
    handle = model.get_submodule(path).register_forward_hook(lambda _, __, out: seen.append(out))
    torch.manual_seed(0)
    task = loss(model(x))
    handle.remove()
    h = seen[0]
    (task_gradient,) = torch.autograd.grad(task, h)
    leaf = h.detach().requires_grad_()
    result = {"task": task_gradient.norm()}
    alpha, beta = config["alpha"], config["beta"]
    for name, weights in {
        "ratio": (alpha, beta),
        "variance_ratio": (alpha, 0.0),
        "covariance_ratio": (0.0, beta),
    }.items():
        penalty = vcreg_fx.vcreg_loss(leaf, *weights, layout=layout)
        (gradient,) = torch.autograd.grad(penalty, leaf)
        result[name] = gradient.norm() / task_gradient.norm()
    z = vcreg_fx.functional.flatten_samples(h.detach(), layout)
    result["std"] = (z.var(dim=0) + 1e-4).sqrt().mean()
    c = torch.corrcoef(z.T)
    d = len(c)
    result["correlation"] = (c.abs().sum() - d) / (d * (d - 1))
    result["variance_loss"] = vcreg_fx.variance_loss(z)
    result["covariance_loss"] = vcreg_fx.covariance_loss(z, delta=1.0)
    return {key: float(value) for key, value in result.items()}


@pytest.mark.parametrize(("name", "layout"), [("vit_tiny", "NLC"), ("resnet18", "NCHW")])
def test_measure_equals_autograd(name: str, layout: str) -> None:
    build, shape = SMALL[name]
    model, x = build().double(), torch.randn(shape, dtype=torch.float64)
    plain = copy.deepcopy(model).train()
    vcreg_fx.insert(model, "blocks", alpha=0.5, beta=0.25)
    torch.manual_seed(0)
    found = vcreg_fx.measure(model, x, loss)
    assert [row.site for row in found] == [site.name for site in vcreg_fx.sites(model)]
    for row in (found[0], found[-1]):
        path = row.site.partition(":")[0]
        expected = by_hand(copy.deepcopy(plain), x, path, layout, alpha=0.5, beta=0.25)
        for key, value in expected.items():
            assert math.isclose(getattr(row, key), value, rel_tol=1e-9), (row.site, key)


def test_measure_leaves_no_trace() -> None:
    model, x = resnet18().eval(), torch.randn(4, 3, 32, 32)
    model.bn1.train()
    vcreg_fx.insert(model, "blocks | head", demean="activations")
    before, state = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    modes = [module.training for module in model.modules()]
    vcreg_fx.measure(model, x, loss)
    assert [module.training for module in model.modules()] == modes
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())
    assert vcreg_fx.metrics(model) == {}
    assert all(site.probe is None for site in vcreg_fx.sites(model))


def test_measure_prints_and_becomes_a_data_frame() -> None:
    model = vcreg_fx.insert(vit_tiny(), "blocks | head")
    found = vcreg_fx.measure(model, (torch.randn(4, 3, 32, 32),), loss)
    lines = str(found).splitlines()
    assert len(lines) == 2 + 4 and lines[0].split()[:3] == ["site", "n", "d"]
    pandas = pytest.importorskip("pandas")
    frame = found.to_pandas()
    assert isinstance(frame, pandas.DataFrame)
    assert list(frame.index) == [site.name for site in vcreg_fx.sites(model)]
    assert frame.loc["head:input", "d"] == 192


def test_measure_under_checkpointing() -> None:
    model, x = vit_tiny().double(), torch.randn(4, 3, 32, 32, dtype=torch.float64)
    vcreg_fx.insert(model, "blocks")
    expected = vcreg_fx.measure(model, x, loss)
    model.set_grad_checkpointing()
    assert vcreg_fx.measure(model, x, loss) == expected


def test_what_cannot_be_measured_is_an_error() -> None:
    model, x = vit_tiny(), torch.randn(4, 3, 32, 32)
    with pytest.raises(vcreg_fx.InsertionError, match="not inserted"):
        vcreg_fx.measure(model, x, loss)
    vcreg_fx.insert(model, "blocks")
    model.requires_grad_(False)
    model.head.requires_grad_(True)
    with pytest.raises(vcreg_fx.InsertionError, match="frozen"):
        vcreg_fx.measure(model, x, loss)


@pytest.mark.parametrize("mode", ["gradient", "loss"])
@pytest.mark.parametrize("backend", ["fast", "naive"])
def test_metrics_of_the_last_step(mode: str, backend: str) -> None:
    model, x = vit_tiny().double(), torch.randn(4, 3, 32, 32, dtype=torch.float64)
    vcreg_fx.insert(model, "blocks | head", mode=mode, backend=backend)
    assert vcreg_fx.metrics(model) == {}
    step(model, x)
    found = vcreg_fx.metrics(model, prefix="train")
    sites = vcreg_fx.sites(model)
    assert len(found) == 6 * len(sites) + 1
    assert math.isclose(found["train/penalty"], sum(site.penalty for site in sites))
    for site in sites:
        assert math.isclose(found[f"train/{site.name}/penalty"], site.penalty)
        assert math.isclose(found[f"train/{site.name}/std"], float(site.std.mean()))
        assert 0 <= found[f"train/{site.name}/below_gamma"] <= 1
        assert found[f"train/{site.name}/nonfinite"] == 0
    reference = copy.deepcopy(model)
    vcreg_fx.remove(reference)
    h = reference.forward_features(x)
    assert math.isclose(found[f"train/{sites[0].name}/penalty"], sites[0].penalty)
    assert sites[0].samples == h.shape[0] * h.shape[1]


def test_schedules_by_assignment() -> None:
    model, x = vit_tiny().double(), torch.randn(4, 3, 32, 32, dtype=torch.float64)
    weak = vcreg_fx.insert(copy.deepcopy(model), "blocks", alpha=0.1, beta=0.2)
    vcreg_fx.insert(model, "blocks", alpha=9, beta=9)
    step(model, x)
    for site in vcreg_fx.sites(model):
        site.alpha, site.beta = 0.1, 0.2
    assert all(torch.equal(a, b) for a, b in zip(step(model, x)[1], step(weak, x)[1], strict=True))


def test_compiled_steps_have_metrics_and_follow_schedules() -> None:
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    model, x = resnet10().double(), torch.randn(4, 3, 32, 32, dtype=torch.float64)
    vcreg_fx.insert(model, "blocks | head", example_inputs=(x,))
    eager, compiled = copy.deepcopy(model), torch.compile(model, backend="aot_eager")
    for alpha in (0.64, 0.1, 2.0):
        for each in (model, eager):
            vcreg_fx.sites(each)[0].alpha = alpha
        expected = [g.clone() for g in step(eager, x)[1]]
        model.zero_grad()
        torch.manual_seed(1)
        weights = torch.linspace(-1, 1, 20, dtype=x.dtype).view(4, 5)
        (compiled(x) * weights).sum().backward()
        for found, wanted in zip([p.grad for p in model.parameters()], expected, strict=True):
            torch.testing.assert_close(found, wanted)
        numbers, others = vcreg_fx.metrics(model), vcreg_fx.metrics(eager)
        assert numbers.keys() == others.keys()
        assert all(math.isclose(numbers[key], others[key], rel_tol=1e-9) for key in numbers)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1


def test_a_criterion_that_takes_targets_is_refused_with_what_to_write():
    model = vcreg_fx.insert(nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 3)), "head",
                            example_inputs=(torch.zeros(2, 4),))  # fmt: skip
    with pytest.raises(vcreg_fx.InsertionError, match="loss=lambda output: cross_entropy"):
        vcreg_fx.measure(model, torch.randn(8, 4), nn.functional.cross_entropy)
