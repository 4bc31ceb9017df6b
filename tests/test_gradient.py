"""The fast gradient against autograd of the reference, over everything that can vary."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import Tensor

from placement_rules import Layout
from tests.strategies import Activation, activations, coefficients, in_memory
from vcreg_fx import VCRegConfig, vcreg_loss
from vcreg_fx.site._live import LiveSite

TOLERANCE = {
    torch.float64: 1e-10,
    torch.float32: 1e-4,
    torch.float16: 2e-3,
}


def make_site(layout: Layout, config: VCRegConfig, channels: int = 1) -> LiveSite:
    return LiveSite("m:output", "m", "output", layout, channels, config, clone=False)


def added_gradient(h: Tensor, layout: Layout, **config: object) -> Tensor:
    """Return what VCReg adds to an arriving gradient of zero."""
    leaf = h.detach().requires_grad_()
    site = make_site(layout, VCRegConfig(**config))
    if h.dtype == torch.float16:
        from vcreg_fx.site._loss_scale import LossScale

        site.loss_scale = LossScale(1.0)
    site_input = leaf.view_as(leaf)
    mean = site.reference_mean(site_input) if site.active(site_input, True) else None
    out = site.regularize(site_input, mean) if site.active(site_input, True) else site_input
    if site.config.mode == "loss":
        (gradient,) = torch.autograd.grad(site.passes.take()[0], leaf)
    else:
        (gradient,) = torch.autograd.grad(out, leaf, torch.zeros_like(out))
    return gradient


def reference_gradient(h: Tensor, layout: Layout, **config: float) -> Tensor:
    """Return the gradient of the reference loss, in float64 on the same numbers."""
    leaf = h.detach().double().requires_grad_()
    (gradient,) = torch.autograd.grad(vcreg_loss(leaf, layout=layout, **config), leaf)
    return gradient


def error(found: Tensor, expected: Tensor) -> float:
    size = expected.norm()
    return float((found.double() - expected).norm() / size) if size > 0 else float(found.norm())


def far_from_the_kinks(drawn: Activation, config: dict[str, float]) -> bool:
    """Whether no feature's std is at γ and no covariance at δ, to the precision of the dtype."""
    z = (
        drawn.h.double()
        .movedim(drawn.layout.axis, -1)
        .reshape(-1, drawn.h.shape[drawn.layout.axis])
    )
    c = torch.cov(z.T).reshape(z.shape[1], z.shape[1])
    std = torch.sqrt(c.diagonal() + config["eps"])
    digits = 1e-2 if drawn.h.dtype == torch.bfloat16 else 1e-4
    return bool(((std - config["gamma"]).abs() > digits * config["gamma"]).all())


@pytest.mark.parametrize("mode", ["gradient", "loss"])
@given(drawn=activations((torch.float64, torch.float32)), config=coefficients)
def test_fast_equals_naive(mode: str, drawn: Activation, config: dict[str, float]) -> None:
    assume(far_from_the_kinks(drawn, config))
    found = added_gradient(drawn.h, drawn.layout, mode=mode, **config)
    expected = reference_gradient(drawn.h, drawn.layout, **config)
    assert found.dtype == drawn.h.dtype and found.shape == drawn.h.shape
    assert error(found, expected) <= TOLERANCE[drawn.h.dtype]


@given(drawn=activations((torch.float16,)), config=coefficients)
def test_fast_equals_naive_in_float16(drawn: Activation, config: dict[str, float]) -> None:
    assume(far_from_the_kinks(drawn, config))
    expected = reference_gradient(drawn.h, drawn.layout, **config)
    assume(1e-3 < float(expected.abs().max()) < 6e4)  # float16 cannot hold others
    found = added_gradient(drawn.h, drawn.layout, **config)
    assert found.dtype == torch.float16
    assert error(found, expected) <= TOLERANCE[torch.float16]


def bfloat16_rounding(drawn: Activation, config: dict[str, float]) -> float:
    """Bound the error of products of bfloat16 factors, ‖|z| (2⁻⁶ |G| + |ΔG|)‖.

    Samples are taken relative to a vector near their mean, and rounded to 8 bits: C_ij is known to
    2⁻⁷ √(M_ii M_jj), M the second moments about that vector, which moves G where δ does not clamp.
    """
    rows = drawn.h.double().movedim(drawn.layout.axis, -1)
    n, d = drawn.h.numel() // rows.shape[-1], rows.shape[-1]
    near = rows.narrow(0, 0, -(-rows.shape[0] // 16)).reshape(-1, d).mean(dim=0)
    z = rows.reshape(n, d) - rows.reshape(n, d).mean(dim=0)
    c = z.T @ z / (n - 1)
    size = ((rows.reshape(n, d) - near).square().sum(dim=0) / (n - 1)).sqrt()
    delta = math.inf if config["delta"] is None else config["delta"]
    clamped, low, high = (
        (c + sign * 2**-7 * torch.outer(size, size)).clamp(-delta, delta) for sign in (0, -1, 1)
    )
    weight = 4 * config["beta"] / max(d * (d - 1), 1) / (n - 1)
    moved = weight * torch.maximum(clamped - low, high - clamped)
    std = (c.diagonal() + config["eps"]).sqrt()
    g = weight * clamped
    g.diagonal().copy_(config["alpha"] / d / (n - 1) / std * (std < config["gamma"]))
    moved.diagonal().zero_()
    return float((z.abs() @ (2**-6 * g.abs() + moved)).norm())


@given(drawn=activations((torch.bfloat16,)), config=coefficients)
def test_fast_equals_naive_in_bfloat16(drawn: Activation, config: dict[str, float]) -> None:
    assume(far_from_the_kinks(drawn, config))
    expected = reference_gradient(drawn.h, drawn.layout, **config)
    found = added_gradient(drawn.h, drawn.layout, **config)
    assert found.dtype == torch.bfloat16
    assert (found.double() - expected).norm() <= 1.5 * bfloat16_rounding(drawn, config)


@given(drawn=activations((torch.float64,)), config=coefficients)
def test_naive_backend_equals_naive(drawn: Activation, config: dict[str, float]) -> None:
    for mode in ("gradient", "loss"):
        found = added_gradient(drawn.h, drawn.layout, backend="naive", mode=mode, **config)
        expected = reference_gradient(drawn.h, drawn.layout, **config)
        assert error(found, expected) <= 1e-12


@given(drawn=activations(), config=coefficients, seed=st.integers(0, 999))
def test_the_arriving_gradient_is_added_and_not_written_to(
    drawn: Activation, config: dict[str, float], seed: int
) -> None:
    torch.manual_seed(seed)
    leaf = drawn.h.detach().requires_grad_()
    site = make_site(drawn.layout, VCRegConfig(**config))
    out = site.regularize(leaf.view_as(leaf), site.reference_mean(leaf))
    arriving = in_memory(torch.randn_like(out), drawn.layout, "permuted")
    kept = arriving.clone()
    (found,) = torch.autograd.grad(out, leaf, arriving)
    alone = added_gradient(drawn.h, drawn.layout, **config)
    assert torch.equal(arriving, kept)
    torch.testing.assert_close(found, kept + alone)
    assert found.data_ptr() != arriving.data_ptr()


@given(drawn=activations(), config=coefficients, seed=st.integers(0, 999))
def test_permuting_samples_permutes_the_gradient(
    drawn: Activation, config: dict[str, float], seed: int
) -> None:
    assume(far_from_the_kinks(drawn, config))
    z = drawn.h.movedim(drawn.layout.axis, -1).reshape(-1, drawn.h.shape[drawn.layout.axis])
    order = torch.randperm(len(z), generator=torch.Generator().manual_seed(seed))
    nc = Layout.parse("NC")
    found = added_gradient(z[order], nc, **config)
    torch.testing.assert_close(found, added_gradient(z, nc, **config)[order], atol=1e-10, rtol=1e-7)


@given(drawn=activations(max_ratio=1.0), config=coefficients)
def test_a_constant_per_channel_changes_nothing(
    drawn: Activation, config: dict[str, float]
) -> None:
    assume(far_from_the_kinks(drawn, config))
    shape = [1] * drawn.h.ndim
    shape[drawn.layout.axis] = -1
    shift = torch.linspace(-7, 7, drawn.h.shape[drawn.layout.axis], dtype=torch.float64).view(shape)
    found = added_gradient(drawn.h + shift, drawn.layout, **config)
    expected = added_gradient(drawn.h, drawn.layout, **config)
    torch.testing.assert_close(found, expected, atol=1e-10, rtol=1e-7)


@given(drawn=activations(), config=coefficients)
def test_the_gradient_sums_to_zero_over_samples(
    drawn: Activation, config: dict[str, float]
) -> None:
    found = added_gradient(drawn.h, drawn.layout, **config)
    total = found.sum(drawn.layout.sample_axes)
    assert total.abs().max() <= 1e-10 * max(1.0, float(found.abs().max())) * found.numel()


@pytest.mark.parametrize("layout", ["NC", "NLC", "NCHW", "NHWC"])
def test_large_means_keep_precision_in_float32(layout: str) -> None:
    shapes = {
        "NC": (4096, 32),
        "NLC": (8, 256, 32),
        "NCHW": (8, 32, 16, 16),
        "NHWC": (8, 16, 16, 32),
    }
    axis = Layout.parse(layout).axis
    z = torch.randn(shapes[layout], dtype=torch.float64)
    signs = torch.where(torch.rand(32) < 0.5, -1000.0, 1000.0).double()
    view = [1] * z.ndim
    view[axis] = -1
    h = (z * 0.5 + 0.1 * z.roll(1, axis) + signs.view(view) * 0.5).float()
    for delta in (None, 0.01):
        found = added_gradient(h, Layout.parse(layout), delta=delta)
        expected = reference_gradient(h, Layout.parse(layout), delta=delta)
        assert error(found, expected) <= 1e-4


def test_blocks_larger_than_the_cache_are_split_right() -> None:
    for layout, shape in {
        "NC": (3000, 64),
        "NCHW": (3, 40, 60, 50),
        "NHWC": (5, 70, 30, 24),
    }.items():
        h = torch.randn(shape, dtype=torch.float64)
        for memory in ("contiguous", "channels_last", "permuted", "sliced"):
            placed = in_memory(h, Layout.parse(layout), memory)
            found = added_gradient(placed, Layout.parse(layout), delta=0.01)
            expected = reference_gradient(h, Layout.parse(layout), delta=0.01)
            assert error(found, expected) <= 1e-12


@given(drawn=activations(max_channels=4), config=coefficients)
def test_gradcheck_of_the_penalty(drawn: Activation, config: dict[str, float]) -> None:
    assume(far_from_the_kinks(drawn, config) and drawn.h.numel() <= 60 and config["eps"] >= 1e-4)
    site = make_site(drawn.layout, VCRegConfig(mode="loss", **config))

    def penalty(h: Tensor) -> Tensor:
        site.regularize(h, site.reference_mean(h))
        return site.passes.take()[0]

    leaf = drawn.h.detach().contiguous().requires_grad_()
    assert torch.autograd.gradcheck(penalty, leaf, atol=1e-5, rtol=1e-3)


def test_gradgradcheck_of_the_penalty() -> None:
    site = make_site(Layout.parse("NC"), VCRegConfig(mode="loss", delta=None))

    def penalty(h: Tensor) -> Tensor:
        site.regularize(h, site.reference_mean(h))
        return site.passes.take()[0]

    leaf = (0.3 * torch.randn(6, 3, dtype=torch.float64)).requires_grad_()
    assert torch.autograd.gradgradcheck(penalty, leaf)


def test_second_derivatives_are_refused_in_gradient_mode() -> None:
    h = torch.randn(6, 3, requires_grad=True)
    site = make_site(Layout.parse("NC"), VCRegConfig())
    out = site.regularize(h, site.reference_mean(h))
    with pytest.raises(RuntimeError, match='mode="loss"'):
        torch.autograd.grad(out.sum(), h, create_graph=True)


def test_one_sample_warns_once_and_adds_nothing() -> None:
    site = make_site(Layout.parse("NC"), VCRegConfig())
    h = torch.randn(1, 3, requires_grad=True)
    with pytest.warns(UserWarning, match="one sample") as caught:
        assert not site.active(h, True)
        assert not site.active(h, True)
    assert len(caught) == 1


@given(drawn=activations(max_ratio=1.0), alpha=st.floats(0.1, 2), beta=st.floats(0.01, 1))
def test_algorithm_1_as_printed(drawn: Activation, alpha: float, beta: float) -> None:
    """The pseudo-code of Appendix B, line by line, on the flattened activation."""
    eps = 1e-4
    found = added_gradient(
        drawn.h, drawn.layout, alpha=alpha, beta=beta, eps=eps, convention="algorithm1"
    )
    z = drawn.h.movedim(drawn.layout.axis, -1).reshape(-1, drawn.h.shape[drawn.layout.axis])
    n, d = z.shape
    c = z.T @ z / (n - 1)
    diagonal = torch.nn.functional.threshold(torch.rsqrt(c.diagonal() + eps), 1.0, 0.0)
    expected = -alpha / (d * (n - 1)) * diagonal * z
    if d > 1:
        expected = expected + 4 * beta / (d * (d - 1)) * (z @ c.clone().fill_diagonal_(0))
    rows = found.movedim(drawn.layout.axis, -1).reshape(n, d)
    torch.testing.assert_close(rows, expected, atol=1e-12, rtol=1e-9)


def test_algorithm_1_is_n_minus_1_times_the_covariance_gradient() -> None:
    """Disagreement 1: the printed covariance term lacks 1/(n − 1)."""
    h = torch.randn(50, 6, dtype=torch.float64)
    h = h - h.mean(dim=0)
    layout = Layout.parse("NC")
    printed = added_gradient(h, layout, alpha=0.0, delta=None, convention="algorithm1")
    exact = added_gradient(h, layout, alpha=0.0, delta=None)
    torch.testing.assert_close(printed, exact * 49)


def test_numbers_of_the_last_step() -> None:
    h = torch.randn(64, 5, dtype=torch.float64)
    layout = Layout.parse("NC")
    for mode, backend in [
        ("gradient", "fast"),
        ("gradient", "naive"),
        ("loss", "fast"),
        ("loss", "naive"),
    ]:
        config = VCRegConfig(mode=mode, backend=backend, delta=0.1, gamma=2.0)
        site = make_site(layout, config)
        assert site.penalty is None and site.std is None
        leaf = h.clone().requires_grad_()
        site.regularize(leaf, site.reference_mean(leaf)).sum().backward()
        expected = vcreg_loss(h, 0.64, 0.08, 0.1, layout, gamma=2.0)
        assert site.penalty == pytest.approx(expected.item(), rel=1e-9)
        torch.testing.assert_close(site.std, torch.sqrt(h.var(dim=0) + 1e-4))
        assert math.isclose(site.alpha, 0.64)
