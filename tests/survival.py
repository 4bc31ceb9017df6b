"""The models that have to survive, and how survival is judged."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

import vcreg_fx
from tests.models import convnext, relative_error, resnet18, swin
from vcreg_fx import rules

Grads = list[Tensor | None]
CONFIG = {"alpha": 2.0, "beta": 3.0, "delta": 0.5}


def _videomae() -> nn.Module:
    transformers = pytest.importorskip("transformers")
    config = transformers.VideoMAEConfig(
        hidden_size=32, num_hidden_layers=3, num_attention_heads=2, intermediate_size=48,
        image_size=32, patch_size=16, num_frames=4, num_labels=5,
    )  # fmt: skip
    return transformers.VideoMAEForVideoClassification(config)


@dataclass(frozen=True)
class Case:
    """A model with a small input, in float64 unless asked for otherwise."""

    name: str
    make: Callable[[], nn.Module]
    shape: tuple[int, ...]
    rule: str = "blocks | head"

    def plain(self, dtype: torch.dtype = torch.float64) -> nn.Module:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            return self.make().to(dtype).train()

    def x(self, dtype: torch.dtype = torch.float64, *, samples: int = 4) -> Tensor:
        generator = torch.Generator().manual_seed(7)
        shape = (samples, *self.shape[1:])
        return torch.randn(shape, dtype=torch.float64, generator=generator).to(dtype)

    def inserted(self, dtype: torch.dtype = torch.float64, **config: Any) -> nn.Module:
        model = self.plain(dtype)
        return vcreg_fx.insert(
            model, self.rule, example_inputs=(self.x(dtype),), **{**CONFIG, **config}
        )

    @property
    def places(self) -> list[tuple[str, str, tuple[int | str, ...], str]]:
        return _places(self)

    @property
    def owner(self) -> str:
        """The path of the module that owns the first site."""
        return _owner(self)

    @property
    def expected(self) -> tuple[Tensor, Grads]:
        """Output and gradients of the plain model under the naive losses, in float64."""
        return _expected(self)

    def naive(
        self,
        plain: nn.Module,
        x: Tensor | None = None,
        *,
        seed: int = 1,
        forward: Callable[[nn.Module, Tensor], Tensor] | None = None,
        config: dict[str, Any] | None = None,
    ) -> tuple[Tensor, Grads]:
        """One step of ``loss + Σ naive penalties`` by hooks, without modules in eval."""
        x = self.x() if x is None else x
        plain.zero_grad()
        torch.manual_seed(seed)
        with penalties(self, plain, config or CONFIG) as terms:
            output = (forward or call)(plain, x)
        (task(output) + sum(terms)).backward()
        return output.detach(), [p.grad for p in plain.parameters()]


class penalties:  # noqa: N801
    """The naive penalties of a plain model's forward passes, collected by hooks."""

    def __init__(self, case: Case, model: nn.Module, config: dict[str, Any] = CONFIG) -> None:
        self.case, self.model, self.config = case, model, config
        self.handles: list[Any] = []

    def __enter__(self) -> list[Tensor]:
        terms: list[Tensor] = []
        for path, position, leaf, layout in self.case.places:

            def hook(
                module: nn.Module, args: Any, output: Any, at=(position, leaf, layout)
            ) -> None:
                where, inner, axes = at
                h = rules.get_leaf(output if where == "output" else args, inner)
                if module.training and h.requires_grad:
                    wide = h.to(torch.promote_types(h.dtype, torch.float32))
                    with torch.autocast("cpu", enabled=False):
                        terms.append(vcreg_fx.vcreg_loss(wide, layout=axes, **self.config))

            self.handles.append(self.model.get_submodule(path).register_forward_hook(hook))
        return terms

    def __exit__(self, *_: object) -> None:
        for handle in self.handles:
            handle.remove()


CASES = [
    Case("ResNet-18", resnet18, (4, 3, 32, 32)),
    Case(
        "ConvNeXt",
        convnext,
        (4, 3, 32, 32),
    ),
    Case(
        "ViT-Tiny",
        lambda: timm.create_model("vit_tiny_patch16_224", img_size=32, num_classes=5, depth=3),
        (4, 3, 32, 32),
        "residual | head",
    ),
    Case(
        "Swin",
        swin,
        (4, 3, 32, 32),
        "residual | head",
    ),
    Case("VideoMAE", _videomae, (4, 4, 3, 32, 32)),
]


@cache
def _places(case: Case) -> list[tuple[str, str, tuple[int | str, ...], str]]:
    planned = vcreg_fx.plan(case.plain(), case.rule, example_inputs=(case.x(),))
    return [
        (site.path, site.position, site.leaf, str(site.layout))
        if site.form == "boundary"
        else (f"{site.path}.norm2", "input", (0,), str(site.layout))  # which takes the inner sum
        for site in planned.sites
    ]


@cache
def _owner(case: Case) -> str:
    planned = vcreg_fx.plan(case.plain(), case.rule, example_inputs=(case.x(),))
    return planned.sites[0].path


@cache
def _expected(case: Case) -> tuple[Tensor, Grads]:
    output, grads = case.naive(case.plain())
    return output, [None if g is None else g.clone() for g in grads]


def call(model: nn.Module, x: Tensor) -> Tensor:
    output = model(x)
    return output if isinstance(output, Tensor) else output.logits


def task(output: Tensor) -> Tensor:
    weights = torch.linspace(-1, 1, output.numel(), dtype=output.dtype)
    return (output * weights.view_as(output)).sum()


def run(
    model: nn.Module,
    x: Tensor,
    *,
    seed: int = 1,
    owner: nn.Module | None = None,
    forward: Callable[[nn.Module, Tensor], Tensor] | None = None,
) -> tuple[Tensor, Grads]:
    """One step of a model with VCReg; `owner` is the model inside a wrapper."""
    owner = model if owner is None else owner
    owner.zero_grad()
    torch.manual_seed(seed)
    output = (forward or call)(model, x)
    loss = task(output)
    if any(site.config.mode == "loss" for site in vcreg_fx.sites(owner)):
        loss = loss + vcreg_fx.penalty(owner)
    loss.backward()
    return output.detach(), [p.grad for p in owner.parameters()]


def same(
    found: tuple[Tensor, Grads], expected: tuple[Tensor, Grads], tolerance: float = 1e-11
) -> None:
    """Outputs are equal bit for bit, gradients to the tolerance."""
    assert torch.equal(found[0], expected[0])
    close(found, expected, tolerance)


def close(
    found: tuple[Tensor, Grads], expected: tuple[Tensor, Grads], tolerance: float = 1e-11
) -> None:
    """Outputs and gradients are equal to the tolerance."""
    assert relative_error([found[0]], [expected[0]]) <= tolerance
    assert relative_error(found[1], expected[1]) <= tolerance


def copy_of(grads: Grads) -> Grads:
    return [None if g is None else g.clone() for g in grads]


def halves(x: Tensor) -> tuple[Tensor, Tensor]:
    first, second = x.chunk(2)
    return first, second


def clone(model: nn.Module) -> nn.Module:
    return copy.deepcopy(model)
