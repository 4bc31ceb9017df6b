"""Scripted functions are reported as not seen; heads whose weights are computed are found."""

from __future__ import annotations

import copy
import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import vcreg_fx
from tests.models import relative_error

X = torch.randn(6, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
with warnings.catch_warnings():
    warnings.simplefilter("ignore", FutureWarning)

    @torch.jit.script
    def scripted_mix(x: Tensor, y: Tensor) -> Tensor:
        return torch.relu(x + y) * 2


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.linear(x)


class Scripted(Block):
    def forward(self, x: Tensor) -> Tensor:
        return scripted_mix(x, self.linear(x))


def network(*blocks: nn.Module) -> nn.Module:
    return nn.Sequential(*blocks, nn.Linear(4, 2)).double()


@pytest.mark.parametrize("rule", ["residual", "blocks"])
def test_sums_in_scripted_functions_are_reported_as_not_seen(rule: str) -> None:
    model = network(Block(), Scripted(), Block())
    model(X)  # after which torch.jit runs other code
    with pytest.warns(UserWarning, match="In 1, tensors come from calls .*not seen") as told:
        planned = vcreg_fx.plan(model, rule, example_inputs=(X,))
    assert len(told) == 1
    assert [site.name for site in planned.sites] == ["0:output", "2:output"]
    assert "sums in them are not seen" in str(planned)
    with warnings.catch_warnings():  # a rule that does not look for sums has nothing to tell
        warnings.simplefilter("error")
        vcreg_fx.insert(model, "modules('1') | head", example_inputs=(X,))


@pytest.mark.filterwarnings("ignore:In ")
def test_a_rule_that_finds_nothing_says_what_it_could_not_see() -> None:
    with pytest.raises(vcreg_fx.NoSiteError, match="scripted functions.*sums in them are not seen"):
        vcreg_fx.plan(network(Scripted(), Scripted()), "residual", example_inputs=(X,))


# Heads ------------------------------------------------------------------------------------------


class Headed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(4, 8), nn.Linear(8, 8)
        self.make()

    def make(self) -> None:
        self.weight = nn.Parameter(torch.randn(3, 8))

    def features(self, x: Tensor) -> Tensor:
        return self.two(self.one(x).tanh()).tanh()

    def classify(self, h: Tensor) -> Tensor:
        return h @ self.weight.t()

    def forward(self, x: Tensor) -> Tensor:
        return self.classify(self.features(x))


class Matmul(Headed):
    def classify(self, h: Tensor) -> Tensor:
        return torch.matmul(h, self.weight.T)


class Einsum(Headed):
    def classify(self, h: Tensor) -> Tensor:
        return torch.einsum("bd,cd->bc", h, self.weight)


class Cosine(Headed):
    def classify(self, h: Tensor) -> Tensor:
        return 10 * F.linear(F.normalize(h), F.normalize(self.weight))


class CosineSimilarity(Headed):
    def classify(self, h: Tensor) -> Tensor:
        return F.cosine_similarity(h[:, None], self.weight[None], dim=-1)


class Vector(Headed):
    def make(self) -> None:
        self.weight = nn.Parameter(torch.randn(8))

    def classify(self, h: Tensor) -> Tensor:
        return h @ self.weight


class Addmm(Headed):
    def classify(self, h: Tensor) -> Tensor:
        return torch.addmm(self.weight.new_zeros(3), h, self.weight.t())


class WrittenOut(Headed):
    def classify(self, h: Tensor) -> Tensor:
        return (h[:, None] * self.weight).sum(-1)


class Distance(Headed):
    def classify(self, h: Tensor) -> Tensor:
        return -(h.unsqueeze(1) - self.weight).square().sum(dim=-1)


class Normed(Headed):
    norm = staticmethod(nn.utils.parametrizations.weight_norm)

    def make(self) -> None:
        self.fc = self.norm(nn.Linear(8, 3, bias=False))

    def classify(self, h: Tensor) -> Tensor:
        return self.fc(h)


class Spectral(Normed):
    norm = staticmethod(nn.utils.parametrizations.spectral_norm)


class OldSpectral(Normed):
    norm = staticmethod(nn.utils.spectral_norm)


class Scaled(Normed):
    """What follows the layer scales its numbers: it is no layer, whatever is summed after it."""

    def classify(self, h: Tensor) -> Tensor:
        return self.fc(h) * self.weight_of_class - self.weight_of_class.sum()

    def make(self) -> None:
        super().make()
        self.weight_of_class = nn.Parameter(torch.rand(3))


HEADS = [
    Headed, Matmul, Einsum, Cosine, CosineSimilarity, Vector, Addmm, WrittenOut, Distance,
    Normed, Spectral, Scaled,
]  # fmt: skip


@pytest.mark.parametrize("cls", HEADS, ids=lambda cls: cls.__name__)
def test_heads_whose_weights_are_computed(cls: type[Headed]) -> None:
    plain = cls().double()
    model = vcreg_fx.insert(copy.deepcopy(plain), "head", example_inputs=(X,))
    (site,) = vcreg_fx.sites(model)
    assert site.name == ("fc:input" if issubclass(cls, Normed) else ":tanh_1")
    model(X).square().sum().backward()
    h = plain.features(X)
    (plain.classify(h).square().sum() + vcreg_fx.vcreg_loss(h)).backward()
    found, expected = ([p.grad for p in m.parameters()] for m in (model, plain))
    assert relative_error(found, expected) <= 1e-12


def test_a_spectral_norm_by_hooks_is_found() -> None:
    planned = vcreg_fx.plan(OldSpectral().double(), "head", example_inputs=(X,))
    assert [site.name for site in planned.sites] == ["fc:input"]
