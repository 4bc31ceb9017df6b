"""The matrix products: panels, blocks, large means, and factors of fewer bits."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from placement_rules import Layout
from tests.strategies import MEMORY, in_memory
from tests.test_gradient import added_gradient, error, reference_gradient
from vcreg_fx import LiveSite, VCRegConfig, vcreg_loss
from vcreg_fx.gradient import _blocks
from vcreg_fx.gradient._blocks import Blocks
from vcreg_fx.gradient._closed_form import Step, few_samples
from vcreg_fx.gradient._products import add_product, add_small_product, gram, moments
from vcreg_fx.site._loss_scale import LossScale

SHAPES = {"NC": (400, 0), "NLC": (6, 70, 0), "NCHW": (7, 0, 9, 8), "NHWC": (7, 9, 8, 0)}


def activation(layout: str, d: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn([size or d for size in SHAPES[layout]], dtype=torch.float64).to(dtype)


@pytest.mark.parametrize("memory", MEMORY)
@pytest.mark.parametrize("layout", SHAPES)
@settings(max_examples=12)
@given(
    d=st.integers(3, 60) | st.integers(60, 210),  # less than a sample's locations, and more
    size=st.sampled_from((1, 500, 5_000, 262_144)),
    arriving=st.sampled_from(MEMORY),
    rests=st.booleans(),
)
def test_panels_and_blocks_of_any_size(
    layout: str, memory: str, d: int, size: int, arriving: str, rests: bool
) -> None:
    torch.manual_seed(d)
    h = in_memory(activation(layout, d), Layout.parse(layout), memory)
    axis = Layout.parse(layout).axis
    before = _blocks._CPU_BLOCK
    _blocks._CPU_BLOCK = size
    try:
        centre = torch.randn(d, dtype=torch.float64)
        second, first, small = moments(h, axis, centre, torch.float64)
        g = second / second.norm()
        grad = in_memory(activation(layout, d), Layout.parse(layout), arriving)
        rest = torch.randn(d, dtype=torch.float64) if rests else None
        added = add_product(grad, h, axis, centre, g, torch.float64, rest)
    finally:
        _blocks._CPU_BLOCK = before
    x = h.movedim(axis, -1).reshape(-1, d) - centre
    torch.testing.assert_close(second, x.T @ x)
    torch.testing.assert_close(first, x.sum(dim=0))

    def product(z: Tensor) -> Tensor:
        return (z @ g).reshape(h.movedim(axis, -1).shape).movedim(-1, axis) + grad

    expected = product(x)
    torch.testing.assert_close(added, expected if rest is None else product(x - rest))
    assert (small is not None) == (h.numel() <= size)
    if small is not None:
        torch.testing.assert_close(small, x)
        torch.testing.assert_close(add_small_product(grad, small, axis, g), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_compiled_code_leaves_symmetric_operations_out(dtype: torch.dtype) -> None:
    """By an operator, which is registered in full, and only where there are many channels."""
    torch.library.opcheck(torch.ops.vcreg_fx.gram.default, (torch.randn(50, 100, dtype=dtype),))
    for d, called in ((100, True), (20, False)):
        x = torch.randn(50, d, dtype=dtype)
        graphs: list[str] = []

        def backend(graph: torch.fx.GraphModule, _: object, graphs: list[str] = graphs) -> object:
            graphs.append(graph.code)
            return graph

        found = torch.compile(gram, backend=backend, fullgraph=True)(x)
        torch.testing.assert_close(found, x.T @ x)
        assert ("vcreg_fx.gram" in graphs[0]) == called


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize(
    ("layout", "shape"),
    [("NC", (9, 40)), ("NLC", (2, 5, 33)), ("NCHW", (3, 48, 2, 2)), ("NHWC", (3, 2, 2, 48))],
)
@pytest.mark.parametrize("memory", MEMORY)
def test_fewer_samples_than_channels(
    memory: str, layout: str, shape: tuple[int, ...], dtype: torch.dtype
) -> None:
    """Without δ the products are of (n, n); gradient, numbers and scale are those of the loss."""
    axes = Layout.parse(layout)
    h = in_memory((torch.randn(shape, dtype=torch.float64) * 0.7 + 50).to(dtype), axes, memory)
    grad = torch.randn(shape, dtype=torch.float64).to(dtype)
    config = VCRegConfig(alpha=2.0, beta=30.0, delta=None, gamma=0.9)
    site = LiveSite("m", "m", "output", axes, shape[axes.axis], config, False)
    site.loss_scale = LossScale(8.0, 1)
    step = Step(h, axes.axis, 2.0, 30.0, None, config, dtype)
    x = few_samples(step, site.reference_mean(h))
    assert x is not None
    leaf = h.clone().requires_grad_()
    (found,) = torch.autograd.grad(site.regularize(leaf, site.reference_mean(leaf)), leaf, grad)
    wide = h.double().requires_grad_()
    loss = vcreg_loss(wide, 2.0, 30.0, None, axes, gamma=0.9)
    (expected,) = torch.autograd.grad(loss, wide)
    close = 1e-10 if dtype == torch.float64 else 1e-3
    assert error(found.double() - grad.double(), 8 * expected) <= close
    assert site.penalty == pytest.approx(float(loss.detach()), rel=close)
    assert few_samples(step._replace(config=VCRegConfig()), None) is None
    many = torch.randn(60, 8, dtype=dtype)
    assert few_samples(step._replace(h=many, axis=1), many[0]) is None


def test_a_site_adds_few_operations() -> None:
    """Counted below autograd, views aside; what a step of a small network pays for."""
    for layout, shape in (("NLC", (8, 50, 64)), ("NCHW", (8, 24, 14, 14)), ("NC", (16, 32))):
        h = torch.randn(shape)
        axis = Layout.parse(layout).axis
        site = LiveSite("m", "m", "output", Layout.parse(layout), shape[axis], VCRegConfig(), False)
        counts = []
        for acts in (True, False):
            leaf = h.clone().requires_grad_()
            with Operations() as operations:
                out = leaf.view_as(leaf)
                if acts and site.active(out, True):
                    out = site.regularize(out, site.reference_mean(out))
                out.square().sum().backward()
            counts.append(operations.count)
        assert 10 < counts[0] - counts[1] <= 20, (layout, counts)


class Operations(TorchDispatchMode):
    """Counts the operations that are no views."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += not (func.is_view or func.overloadpacket.__name__ in {"detach", "view"})
        return func(*args, **(kwargs or {}))


@given(
    shape=st.lists(st.integers(1, 6), min_size=2, max_size=5),
    axis=st.integers(0, 4),
    size=st.integers(1, 40),
    memory=st.sampled_from(MEMORY),
)
def test_blocks_are_every_sample_once(shape: list[int], axis: int, size: int, memory: str) -> None:
    axis %= len(shape)
    letters = "NLHWT"[: len(shape)]
    layout = Layout.parse(letters[:axis] + "C" + letters[axis + 1 :].replace("C", "T"))
    h = torch.arange(torch.Size(shape).numel(), dtype=torch.float64).view(shape)
    blocks = Blocks(axis, in_memory(h, layout, memory), h)
    blocks._size = size
    space = blocks.workspace(torch.float64)
    seen = []
    for block, same in blocks:
        assert torch.equal(block, same)
        room, matrix = space.of(block.shape)
        room.copy_(block)
        seen += matrix.tolist()
    rows = h.movedim(axis, -1).reshape(-1, shape[axis])
    assert sorted(seen) == sorted(rows.tolist())


def scaled(layout: str, ratio: float, dtype: torch.dtype) -> Tensor:
    """Return correlated features whose means are ``ratio`` times their std."""
    z = activation(layout, 96)
    axis = Layout.parse(layout).axis
    view = [1] * z.ndim
    view[axis] = -1
    signs = torch.where(torch.rand(96) < 0.5, -ratio, ratio).double()
    return (0.5 * (z + 0.3 * z.roll(1, axis) + signs.view(view))).to(dtype)


@pytest.mark.parametrize("layout", SHAPES)
@pytest.mark.parametrize(
    ("dtype", "ratio", "tolerance"),
    [(torch.float32, 1e3, 1e-4), (torch.bfloat16, 1e2, 2e-2), (torch.float16, 1e2, 2e-2)],
)
def test_large_means(layout: str, dtype: torch.dtype, ratio: float, tolerance: float) -> None:
    h = scaled(layout, ratio, dtype)
    # A gradient that float16 can hold: the loss scale of a training run does that.
    config = {"alpha": 64.0, "beta": 64.0 * h.numel() / 96, "delta": None}
    found = added_gradient(h, Layout.parse(layout), **config)
    assert error(found, reference_gradient(h, Layout.parse(layout), **config)) <= tolerance


def test_first_samples_that_are_like_no_others() -> None:
    """The first sixteenth is what deviations are taken from; it need not be like the rest."""
    h = torch.randn(1600, 64, dtype=torch.float64)
    h[100:] += 1000.0 * torch.sign(torch.randn(64))
    h = (h * 0.01).float()
    nc = Layout.parse("NC")
    for delta in (None, 1.0):
        assert (
            error(added_gradient(h, nc, delta=delta), reference_gradient(h, nc, delta=delta))
            <= 1e-4
        )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_factors_of_sixteen_bits_have_float32_sums(dtype: torch.dtype) -> None:
    """The entries of G are far below what float16 holds; the scale is applied in float32."""
    h = activation("NC", 96, torch.float32)
    c, total, _ = moments(h, 1, None, dtype)
    assert c.dtype == total.dtype == torch.float32
    exact = h.double()
    assert error(c, exact.T @ exact) <= 5e-3
    g = c * 1e-12
    found = add_product(torch.zeros_like(h), h, 1, None, g, dtype)
    assert found.dtype == torch.float32
    assert error(found, exact @ g.double()) <= 5e-3


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_under_autocast_products_are_in_its_type(dtype: torch.dtype) -> None:
    from vcreg_fx.gradient import product_dtype

    h = activation("NC", 96, torch.float32)
    with torch.autocast("cpu", dtype):
        found = product_dtype(h)
    assert found == (dtype if dtype == torch.bfloat16 else torch.float32)  # no such unit on a CPU
    assert product_dtype(h) == torch.float32
    leaf = h.clone().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        gradient = added_gradient(leaf, Layout.parse("NC"), beta=100.0)
    expected = reference_gradient(h, Layout.parse("NC"), beta=100.0)
    assert gradient.dtype == torch.float32
    assert 1e-5 <= error(gradient, expected) <= 2e-2


def test_the_arriving_gradient_may_lie_otherwise_in_memory() -> None:
    """Grad in channels-last for an activation in NCHW, and the other way round."""
    from tests.test_gradient import make_site
    from vcreg_fx import VCRegConfig

    nchw = Layout.parse("NCHW")
    for first, second in ((0, 1), (1, 0)):
        formats = (torch.contiguous_format, torch.channels_last)
        h = activation("NCHW", 64).contiguous(memory_format=formats[first]).requires_grad_()
        grad = torch.randn(h.shape).double().contiguous(memory_format=formats[second])
        site = make_site(nchw, VCRegConfig())
        out = site.regularize(h, site.reference_mean(h))
        (found,) = torch.autograd.grad(out, h, grad)
        (penalty,) = torch.autograd.grad(vcreg_loss(h, layout=nchw), h)
        torch.testing.assert_close(found, grad + penalty)
