"""The reference losses against the papers' equations written out term by term."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given

from tests.strategies import Activation, activations, coefficients
from vcreg_fx import covariance_loss, functional, variance_loss, vcreg_loss, vicreg_loss


def test_covariance_is_numpys() -> None:
    z = torch.randn(7, 4, dtype=torch.float64)
    torch.testing.assert_close(functional.covariance(z), torch.cov(z.T))


def test_variance_loss_sums_the_hinge_of_eq_3() -> None:
    z = torch.randn(9, 3, dtype=torch.float64) * torch.tensor([0.1, 1.0, 5.0])
    expected = 0.0
    for i in range(3):
        expected += max(0.0, 1.0 - math.sqrt(z[:, i].var().item() + 1e-4)) / 3
    assert variance_loss(z).item() == pytest.approx(expected)


@pytest.mark.parametrize("delta", [None, 0.3])
def test_covariance_loss_sums_eq_4_and_10(delta: float | None) -> None:
    z = torch.randn(9, 4, dtype=torch.float64)
    c = torch.cov(z.T)
    total = 0.0
    for i in range(4):
        for j in range(4):
            x = abs(c[i, j].item())
            if i != j:
                total += x**2 if delta is None or x <= delta else 2 * delta * x - delta**2
    assert covariance_loss(z, delta).item() == pytest.approx(total / 12)
    assert covariance_loss(z, delta, "vicreg").item() == pytest.approx(total / 4)


def test_vicreg_loss_is_eq_6() -> None:
    z, other = torch.randn(2, 8, 5, dtype=torch.float64)
    s = (z - other).pow(2).sum().item() / 8
    v = variance_loss(z) + variance_loss(other)
    c = covariance_loss(z, None, "vicreg") + covariance_loss(other, None, "vicreg")
    assert vicreg_loss(z, other).item() == pytest.approx(25 * s + 25 * v.item() + c.item())


@given(activations(), coefficients)
def test_locations_are_samples(drawn: Activation, given_: dict[str, float]) -> None:
    rows = torch.stack([part.flatten() for part in drawn.h.unbind(drawn.layout.axis)], dim=1)
    expected = vcreg_loss(rows, **given_)
    torch.testing.assert_close(vcreg_loss(drawn.h, layout=drawn.layout, **given_), expected)


@pytest.mark.parametrize("shape", [(1, 5), (6, 1), (1, 1)])
def test_one_sample_or_one_feature_gives_no_nan(shape: tuple[int, int]) -> None:
    z = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    loss = vcreg_loss(z, delta=None)
    (gradient,) = torch.autograd.grad(loss, z)
    assert torch.isfinite(loss) and torch.isfinite(gradient).all()
    if shape[0] == 1:
        assert loss == 0 and not gradient.any()


def test_a_layout_is_required_and_checked() -> None:
    with pytest.raises(ValueError, match="which axis"):
        vcreg_loss(torch.randn(2, 3, 4, 4))
    with pytest.raises(ValueError, match="which axis"):
        vcreg_loss(torch.randn(2, 3, 4, 4), layout="NLC")
