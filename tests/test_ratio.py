"""`ratio`: VCReg at a strength relative to the gradient that arrives."""

from __future__ import annotations

import copy
import math
from collections import Counter

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import vcreg_fx
from placement_rules import Layout
from tests.models import SMALL, relative_error, resnet10, task_loss
from tests.strategies import Activation, activations, coefficients, in_memory
from tests.test_gradient import error, far_from_the_kinks, make_site, reference_gradient
from vcreg_fx import VCRegConfig

NC = Layout.parse("NC")


def injected(
    h: Tensor, layout: Layout, arriving: Tensor, *, compiled: bool = False, **config: object
) -> Tensor:
    """Return what a site adds to an arriving gradient."""
    site = make_site(layout, VCRegConfig(**config), h.shape[layout.axis])
    leaf = h.detach().requires_grad_()

    def run(x: Tensor) -> Tensor:
        x = x.view_as(x)
        return site.regularize(x, site.reference_mean(x))

    out = torch.compile(run, backend="aot_eager")(leaf) if compiled else run(leaf)
    (found,) = torch.autograd.grad(out, leaf, arriving)
    return found - arriving


def expected(h: Tensor, layout: Layout, arriving: Tensor, ratio: float, **config: float) -> Tensor:
    """Return ratio · ‖g‖ · D / max(‖D‖, r), straight from the definition."""
    gradient = reference_gradient(h, layout, **config)
    d = h.shape[layout.axis]
    n = h.numel() // d
    r = (config["alpha"] + config["beta"]) / (10 * math.sqrt(d * (n - 1)))
    size = max(float(gradient.norm()), r)
    return ratio * float(arriving.double().norm()) * gradient / size if size else gradient


@given(
    drawn=activations(),
    config=coefficients,
    ratio=st.sampled_from((0.01, 0.3, 2.0)),
    loss_scale=st.sampled_from((1.0, 65536.0, 0.1)),
    backend=st.sampled_from(("fast", "naive")),
    seed=st.integers(0, 999),
)
def test_norm_and_direction(
    drawn: Activation,
    config: dict[str, float],
    ratio: float,
    loss_scale: float,
    backend: str,
    seed: int,
) -> None:
    assume(far_from_the_kinks(drawn, config))
    torch.manual_seed(seed)
    arriving = loss_scale * in_memory(torch.randn_like(drawn.h), drawn.layout, "permuted")
    found = injected(drawn.h, drawn.layout, arriving, ratio=ratio, backend=backend, **config)
    reference = expected(drawn.h, drawn.layout, arriving, ratio, **config)
    assert float((found - reference).norm()) <= 1e-8 * ratio * float(arriving.norm())


@given(drawn=activations((torch.float32,)), config=coefficients)
def test_in_float32(drawn: Activation, config: dict[str, float]) -> None:
    assume(far_from_the_kinks(drawn, config))
    arriving = torch.ones_like(drawn.h)
    found = injected(drawn.h, drawn.layout, arriving, ratio=50.0, **config)
    reference = expected(drawn.h, drawn.layout, arriving, 50.0, **config)
    assert float((found.double() - reference).norm()) <= 1e-3 * 50 * float(arriving.norm())


def features(std: float = 0.5) -> Tensor:
    torch.manual_seed(0)
    return std * torch.randn(256, 12, dtype=torch.float64)


def test_the_norm_is_the_ratio_where_the_penalty_is_not_satisfied() -> None:
    h, arriving = features(), torch.randn(256, 12, dtype=torch.float64)
    found = injected(h, NC, arriving, ratio=0.25)
    assert float(found.norm() / arriving.norm()) == pytest.approx(0.25)
    exact = reference_gradient(h, NC, alpha=0.64, beta=0.08, delta=1.0)
    assert error(found / found.norm(), exact / exact.norm()) <= 1e-10


def test_it_fades_where_the_penalty_is_satisfied_whatever_the_loss_scale() -> None:
    torch.manual_seed(1)
    h = torch.linalg.qr(torch.randn(256, 12, dtype=torch.float64))[0] * 40
    h = h - h.mean(0)
    h[:, 0] *= 1 + 1e-9
    arriving = torch.randn_like(h)
    shares = [
        float(injected(h, NC, scale * arriving, ratio=0.25).norm() / (scale * arriving).norm())
        for scale in (1.0, 65536.0, 1e-3)
    ]
    assert max(shares) < 0.1 * 0.25
    assert shares == pytest.approx([shares[0]] * 3)


@pytest.mark.parametrize("backend", ["fast", "naive"])
@pytest.mark.parametrize("bad", [math.inf, math.nan])
def test_what_is_not_finite_passes_unchanged(bad: float, backend: str) -> None:
    site = make_site(NC, VCRegConfig(ratio=0.25, backend=backend), 12)
    leaf = features().requires_grad_()
    arriving = torch.randn_like(leaf)
    arriving[3, 4] = bad
    out = site.regularize(leaf.view_as(leaf), site.reference_mean(leaf))
    (found,) = torch.autograd.grad(out, leaf, arriving)
    assert torch.equal(found.nan_to_num(7.0), arriving.nan_to_num(7.0))
    assert site.factor == 0


@pytest.mark.parametrize("options", [{"alpha": 0.0, "beta": 0.0}, {}])
def test_nothing_arrives_or_nothing_is_asked(options: dict[str, float]) -> None:
    arriving = torch.zeros(256, 12, dtype=torch.float64) if not options else torch.ones(256, 12)
    found = injected(features(), NC, arriving.double(), ratio=0.5, **options)
    assert not found.any()


def test_algorithm_1_is_scaled_alike() -> None:
    h = features() @ torch.ones(12, 12, dtype=torch.float64)
    h, arriving = h + features(), torch.randn(256, 12, dtype=torch.float64)
    plain = injected(h, NC, torch.zeros_like(h), convention="algorithm1")
    found = injected(h, NC, arriving, ratio=0.25, convention="algorithm1")
    assert float(found.norm() / arriving.norm()) == pytest.approx(0.25)
    assert error(found / found.norm(), plain / plain.norm()) <= 1e-10


@pytest.mark.parametrize("options", [{}, {"backend": "naive"}, {"convention": "algorithm1"}])
def test_compiled(options: dict[str, str]) -> None:
    h, arriving = features(), torch.randn(256, 12, dtype=torch.float64)
    found = injected(h, NC, arriving, compiled=True, ratio=0.25, **options)
    torch.testing.assert_close(found, injected(h, NC, arriving, ratio=0.25, **options))


@pytest.mark.parametrize("options", [{"interval": 4}, {"sample": 128}])
def test_estimates(options: dict[str, int]) -> None:
    """On average as long as the ratio says; every fourth step four times that."""
    h, arriving = features(), torch.randn(256, 12, dtype=torch.float64)
    site = make_site(NC, VCRegConfig(ratio=0.25, **options), 12)
    total = torch.zeros_like(h)
    for _ in range(200):
        leaf = h.clone().requires_grad_()
        out = site.regularize(leaf, site.reference_mean(leaf))
        total += torch.autograd.grad(out, leaf, arriving)[0] - arriving
    exact = injected(h, NC, arriving, ratio=0.25)
    share = float((total / 200 * exact).sum() / exact.square().sum())
    assert share == pytest.approx(1.0, abs=0.05)


@pytest.mark.parametrize(
    "options",
    [
        pytest.param({"interval": 2}, marks=pytest.mark.slow),
        pytest.param({"sample": 32}, marks=pytest.mark.slow),
        {},
    ],
)
def test_compiled_models(options: dict[str, int]) -> None:
    x = torch.randn(4, 3, 32, 32)
    torch.manual_seed(5)
    eager = vcreg_fx.insert(resnet10(), "blocks", ratio=0.3, **options)
    compiled = copy.deepcopy(eager)
    run = torch.compile(compiled, backend="aot_eager", fullgraph=True)
    for _ in range(3):
        task_loss(eager(x)).backward()
        task_loss(run(x)).backward()
    found = [p.grad for p in compiled.parameters()]
    assert relative_error(found, [p.grad for p in eager.parameters()]) <= 1e-4
    if not options:
        factors = [[site.factor for site in vcreg_fx.sites(m)] for m in (eager, compiled)]
        assert factors[0] == pytest.approx(factors[1], rel=1e-3)


@pytest.mark.parametrize(
    "options",
    [
        {"ratio": 0.3},
        pytest.param({"ratio": 0.3, "delta": None}, marks=pytest.mark.slow),
        pytest.param({"ratio": 0.3, "backend": "naive"}, marks=pytest.mark.slow),
        pytest.param({"backend": "naive"}, marks=pytest.mark.slow),
        {"mode": "loss"},
        pytest.param({"interval": 2}, marks=pytest.mark.slow),
    ],
)
def test_compiled_for_every_batch_size(options: dict[str, object]) -> None:
    """The compiler, which reads floats as symbols then, has one graph for all sizes."""
    torch.manual_seed(3)
    eager = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 3))
    example = torch.randn(4, 6)
    vcreg_fx.insert(eager, "modules('1') | modules('3')", example_inputs=(example,), **options)
    compiled = copy.deepcopy(eager)
    torch._dynamo.utils.counters.clear()
    run = torch.compile(compiled, backend="aot_eager", fullgraph=True, dynamic=True)
    for n in (8, 5, 16):
        x = torch.randn(n, 6)
        for model, call in ((eager, eager), (compiled, run)):
            loss = task_loss(call(x))
            (loss + (vcreg_fx.penalty(model) if "mode" in options else 0)).backward()
    found = [p.grad for p in compiled.parameters()]
    assert relative_error(found, [p.grad for p in eager.parameters()]) <= 1e-5
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1


def three_steps(loss_scale: float, accumulation: int) -> list[Tensor]:
    """Return how the weights change in three steps of a loop that scales its loss."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 16), nn.Tanh(), nn.Linear(16, 3)
    )
    model.double()
    before = [p.detach().clone() for p in model.parameters()]
    inputs = (torch.zeros(4, 8, dtype=torch.float64),)
    vcreg_fx.insert(model, "modules('1') | modules('3')", ratio=0.5, example_inputs=inputs)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    for _ in range(3):
        for _ in range(accumulation):
            x, y = torch.randn(32, 8, dtype=torch.float64), torch.randint(3, (32,))
            loss = nn.functional.cross_entropy(model(x), y)
            (loss * loss_scale / accumulation).backward()
        for parameter in model.parameters():
            parameter.grad /= loss_scale
        optimizer.step()
        optimizer.zero_grad()
    return [p.detach() - b for p, b in zip(model.parameters(), before, strict=True)]


@pytest.mark.parametrize("accumulation", [1, 4])
@pytest.mark.parametrize("loss_scale", [65536.0, 0.1])
def test_it_needs_no_loss_scale(loss_scale: float, accumulation: int) -> None:
    found, plain = three_steps(loss_scale, accumulation), three_steps(1.0, accumulation)
    assert relative_error(found, plain) <= 1e-10


class Operations(TorchDispatchMode):
    """Counts operations that are no views, by what they read."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[tuple[str, tuple[int, ...]]] = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        output = func(*args, **(kwargs or {}))
        shapes = [tuple(arg.shape) for arg in args if isinstance(arg, Tensor)]
        largest = max(shapes, key=math.prod, default=())
        if not func.is_view:
            self.counts[func.overloadpacket.__name__, largest] += 1
        return output


def test_it_costs_one_small_product_and_one_pass_over_what_arrives() -> None:
    found = []
    for ratio in (None, 0.25):
        site = make_site(NC, VCRegConfig(ratio=ratio), 12)
        leaf = torch.randn(500, 12).requires_grad_()
        out = site.regularize(leaf.view_as(leaf), site.reference_mean(leaf))
        arriving = torch.ones_like(out)
        with Operations() as operations:
            torch.autograd.grad(out, leaf, arriving)
        found.append(operations.counts)
    more = found[1] - found[0]
    by_size: dict[tuple[int, ...], list[str]] = {}
    for (name, size), count in more.items():
        by_size.setdefault(size, []).extend([name] * count)
    assert by_size[500, 12] == ["linalg_vector_norm"]
    assert sorted(by_size[12, 12]) == ["clone", "mm", "mul_"]
    assert by_size[144,] == ["dot"]
    assert all(
        math.prod(size) <= 15 for size in by_size if size not in {(500, 12), (12, 12), (144,)}
    )
    assert sum(more.values()) <= 13
    assert not found[0] - found[1]


def test_set_loss_scale_changes_nothing_and_float16_asks_for_none() -> None:
    h = features().half()
    site = make_site(NC, VCRegConfig(ratio=0.25), 12)
    found = []
    for scale in (None, 1024.0):
        if scale is not None:
            from vcreg_fx.site._loss_scale import LossScale

            site.loss_scale = LossScale(scale)
        leaf = h.clone().requires_grad_()
        out = site.regularize(leaf.view_as(leaf), site.reference_mean(leaf))
        found += torch.autograd.grad(out, leaf, torch.ones_like(out))
    assert torch.equal(*found)


def test_measure_and_metrics_report_it() -> None:
    build, shape = SMALL["resnet18"]
    torch.manual_seed(0)
    x = torch.randn(shape)
    model = vcreg_fx.insert(build(), "blocks", ratio=0.3)
    rows = vcreg_fx.measure(model, x, task_loss)
    assert all(0 < row.ratio <= 0.3 + 1e-5 for row in rows)
    assert any(row.ratio == pytest.approx(0.3, rel=1e-4) for row in rows)
    task_loss(model(x)).backward()
    found = vcreg_fx.metrics(model)
    for site in vcreg_fx.sites(model):
        assert found[f"vcreg/{site.name}/factor"] == pytest.approx(site.factor)
    plain = vcreg_fx.insert(build(), "blocks")
    task_loss(plain(x)).backward()
    assert not [name for name in vcreg_fx.metrics(plain) if name.endswith("factor")]
    assert vcreg_fx.sites(plain)[0].factor == 1


def test_the_last_site_is_measured_exactly() -> None:
    """No VCReg of deeper sites arrives there, so that the factor is that of `measure`."""
    build, shape = SMALL["resnet18"]
    torch.manual_seed(0)
    x = torch.randn(shape)
    model = vcreg_fx.insert(build(), "blocks", ratio=0.3)
    *_, last = vcreg_fx.measure(model, x, task_loss)
    task_loss(model(x)).backward()
    site = vcreg_fx.sites(model)[-1]
    plain = copy.deepcopy(model)
    vcreg_fx.remove(plain)
    vcreg_fx.insert(plain, "blocks")
    *_, unscaled = vcreg_fx.measure(plain, x, task_loss)
    assert last.ratio == pytest.approx(site.factor * unscaled.ratio, rel=1e-4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"ratio": 0.0}, "ratio=0.0"),
        ({"ratio": -1}, "ratio=-1"),
        ({"ratio": math.inf}, "ratio=inf"),
        ({"ratio": 0.1, "mode": "loss"}, "calibrate"),
    ],
)
def test_ratios_that_are_none(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        VCRegConfig(**options)


def test_competitors_have_no_ratio() -> None:
    build, _ = SMALL["resnet18"]
    with pytest.raises(vcreg_fx.InsertionError, match="ratio"):
        vcreg_fx.insert(build(), "blocks", regularizer="decov", ratio=0.1)
    vcreg_fx.insert(build(), "blocks", regularizer="variance", ratio=0.1)


def test_it_survives_get_config() -> None:
    build, _ = SMALL["resnet18"]
    model = vcreg_fx.insert(build(), "blocks", ratio=0.2)
    again = vcreg_fx.insert(build(), **vcreg_fx.get_config(model))
    assert vcreg_fx.sites(again)[0].config.ratio == 0.2
