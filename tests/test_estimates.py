"""Estimates of the gradient: unbiased where they say so, repeatable, and cheap in memory."""

from __future__ import annotations

import copy
import math
import statistics

import pytest
import torch
from torch import Tensor, nn

import vcreg_fx
from placement_rules import Layout
from tests.models import SMALL, relative_error, resnet10, task_loss
from tests.test_gradient import make_site, reference_gradient
from vcreg_fx import VCRegConfig
from vcreg_fx.gradient._estimate import is_due

NC = Layout.parse("NC")


def features(n: int = 512, d: int = 24) -> Tensor:
    torch.manual_seed(1)
    return 0.5 * torch.randn(n, d, dtype=torch.float64) @ torch.randn(d, d, dtype=torch.float64)


def draws(h: Tensor, count: int, **config: object) -> list[Tensor]:
    """Return what VCReg adds in each of ``count`` steps."""
    site = make_site(NC, VCRegConfig(**config))
    found = []
    for _ in range(count):
        leaf = h.clone().requires_grad_()
        out = site.regularize(leaf, site.reference_mean(leaf))
        found += torch.autograd.grad(out, leaf, torch.zeros_like(out))
    return found


def projections(found: list[Tensor], exact: Tensor) -> tuple[float, float]:
    """Return the mean of ⟨estimate, exact⟩ / ⟨exact, exact⟩, and its standard error."""
    values = [float((one * exact).sum() / exact.square().sum()) for one in found]
    return statistics.mean(values), statistics.stdev(values) / math.sqrt(len(values))


@pytest.mark.parametrize("interval", [2, 5, 8])
def test_interval_is_unbiased(interval: int) -> None:
    h = features()
    mean, deviation = projections(draws(h, 200, interval=interval), reference_gradient(h, NC))
    assert abs(mean - 1) <= 3 * deviation + 1e-12
    assert deviation <= math.sqrt(interval / 200)


@pytest.mark.parametrize("interval", [1, 2, 5, 8])
def test_one_step_of_each_interval_is_due_and_which_one_varies(interval: int) -> None:
    places = []
    for window in range(100):
        due = [
            place for place in range(interval) if is_due(window * interval + place, interval, "a")
        ]
        assert len(due) == 1
        places += due
    assert set(places) == set(range(interval))


def test_an_estimated_step_is_the_exact_gradient_times_the_interval() -> None:
    h = features()
    exact = reference_gradient(h, NC)
    found = draws(h, 24, interval=4)
    assert sum(bool(one.any()) for one in found) == 6
    for one in found:
        if one.any():
            torch.testing.assert_close(one, 4 * exact)


def test_sampled_covariance_gradient_is_unbiased_without_delta() -> None:
    h = features()
    exact = reference_gradient(h, NC, alpha=0.0, delta=None)
    found = draws(h, 200, sample=64, alpha=0.0, delta=None)
    mean, deviation = projections(found, exact)
    assert abs(mean - 1) <= 3 * deviation
    assert deviation < 0.1
    assert all(int(one.any(dim=1).sum()) == 32 for one in found)  # half of the samples receive


def test_sampled_variance_gradient_has_a_bias_that_falls_with_m() -> None:
    torch.manual_seed(0)
    h = 0.3 * torch.randn(4096, 8, dtype=torch.float64)
    exact = reference_gradient(h, NC, beta=0.0)
    biases = {}
    for m in (8, 512):
        mean, deviation = projections(draws(h, 400, sample=m, beta=0.0), exact)
        biases[m] = (mean - 1, deviation)
    assert biases[8][0] > 3 * biases[8][1]  # E[1/std] exceeds 1/E[std]
    assert abs(biases[512][0]) < 0.05


def test_both_together() -> None:
    h = features()
    exact = reference_gradient(h, NC, alpha=0.0, delta=None)
    found = draws(h, 400, interval=2, sample=64, alpha=0.0, delta=None)
    mean, deviation = projections(found, exact)
    assert abs(mean - 1) <= 3 * deviation


def test_few_samples_are_exact() -> None:
    h = features(n=60)
    (found,) = draws(h, 1, sample=64)
    torch.testing.assert_close(found, reference_gradient(h, NC))


@pytest.mark.parametrize("options", [{"interval": 3}, {"sample": 16}])
def test_runs_repeat_and_leave_the_random_numbers_alone(options: dict[str, int]) -> None:
    build, shape = SMALL["resnet18"]
    x = torch.randn(shape)

    def run(model: nn.Module) -> list[Tensor]:
        torch.manual_seed(3)
        for _ in range(4):
            task_loss(model(x)).backward()
        return [p.grad for p in model.parameters()]

    base = build()
    torch.manual_seed(5)
    first = vcreg_fx.insert(copy.deepcopy(base), "blocks", **options)
    torch.manual_seed(5)
    second = vcreg_fx.insert(copy.deepcopy(base), "blocks", **options)
    for a, b in zip(run(first), run(second), strict=True):
        assert torch.equal(a, b)
    after = torch.get_rng_state()
    run(copy.deepcopy(base))
    assert torch.equal(after, torch.get_rng_state())


def test_steps_go_on_where_a_checkpoint_left_them() -> None:
    h = features()
    site = make_site(NC, VCRegConfig(interval=4))
    site.step = 3
    assert site.step == 3
    continued = copy.deepcopy(site)
    assert continued.step == 3
    leaf = h.clone().requires_grad_()
    continued.regularize(leaf, continued.reference_mean(leaf)).sum().backward()
    assert continued.step == 4 and site.step == 3


@pytest.mark.parametrize("reentrant", [True, False])
def test_under_checkpointing_every_step_counts_once(reentrant: bool) -> None:
    from torch.utils.checkpoint import checkpoint

    site = make_site(NC, VCRegConfig(interval=4))
    h = features()
    found = []
    for _ in range(12):
        leaf = h.clone().requires_grad_()
        out = checkpoint(
            lambda z: site.regularize(z, site.reference_mean(z)) if torch.is_grad_enabled() else z,
            leaf * 1.0,
            use_reentrant=reentrant,
        )
        found += torch.autograd.grad(out.sum(), leaf) if not reentrant else [_backward(out, leaf)]
    added = [bool((one - 1).abs().max() > 1e-12) for one in found]
    assert sum(added) == 3
    assert site.step == 12


def _backward(out: Tensor, leaf: Tensor) -> Tensor:
    out.sum().backward()
    return leaf.grad


def test_steps_count_where_saved_tensors_are_copies() -> None:
    site = make_site(NC, VCRegConfig(interval=4))
    h = features().requires_grad_()
    with (
        torch.autograd.graph.save_on_cpu(),
        torch.autograd.graph.saved_tensors_hooks(lambda t: t.clone(), lambda t: t),
    ):
        out = site.regularize(h, site.reference_mean(h))
    out.sum().backward()
    assert site.step == 1


@pytest.mark.parametrize("options", [{"interval": 3}, {"sample": 32}])
def test_compiled(options: dict[str, int]) -> None:
    x = torch.randn(4, 3, 32, 32)
    torch.manual_seed(5)
    eager = vcreg_fx.insert(resnet10(), "blocks", **options)
    compiled = copy.deepcopy(eager)
    run = torch.compile(compiled, backend="aot_eager", fullgraph=True)
    for _ in range(4):
        task_loss(eager(x)).backward()
        task_loss(run(x)).backward()
    found = [p.grad for p in compiled.parameters()]
    assert relative_error(found, [p.grad for p in eager.parameters()]) <= 1e-5
    assert [site.step for site in vcreg_fx.sites(compiled)] == [
        site.step for site in vcreg_fx.sites(eager)
    ]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"interval": 0}, "interval=0"),
        ({"interval": 2.5}, "interval=2.5"),
        ({"sample": 3}, "sample=3"),
        ({"sample": 0.5}, "sample=0.5"),
        ({"interval": 2, "mode": "loss"}, 'mode="gradient"'),
        ({"sample": 64, "backend": "naive"}, 'backend="fast"'),
        ({"sample": 64, "sync": True}, "sync=False"),
        ({"sample": 64, "convention": "algorithm1"}, 'convention="exact"'),
    ],
)
def test_what_cannot_be_estimated(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        VCRegConfig(**options)


def test_competitors_are_not_estimated() -> None:
    build, _ = SMALL["resnet18"]
    with pytest.raises(vcreg_fx.InsertionError, match='regularizer="vcreg"'):
        vcreg_fx.insert(build(), "blocks", regularizer="decov", interval=2)


def test_the_schedule_survives_get_config() -> None:
    build, _ = SMALL["resnet18"]
    model = vcreg_fx.insert(build(), "blocks", interval=4, sample=64)
    again = vcreg_fx.insert(build(), **vcreg_fx.get_config(model))
    assert vcreg_fx.sites(again)[0].config.interval == 4
    assert vcreg_fx.sites(again)[0].config.sample == 64
