"""Nothing is left behind by many insertions."""

from __future__ import annotations

import gc
import weakref

import pytest
import timm
import torch
from torch import nn
from torch.nn.modules import module as hooks
from torch.overrides import _get_current_function_mode_stack
from torch.utils._python_dispatch import _get_current_dispatch_mode_stack

import vcreg_fx

NAMES = [
    "resnet18", "convnext_atto", "vit_tiny_patch16_224", "mobilenetv3_small_050", "efficientnet_b0",
    "regnetx_002", "test_resnet", "poolformer_s12", "swin_tiny_patch4_window7_224", "mixer_s32_224",
]  # fmt: skip


def registered(model: nn.Module) -> int:
    kinds = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_state_dict_hooks")
    return sum(len(getattr(module, kind)) for module in model.modules() for kind in kinds)


def global_state() -> list[object]:
    return [
        len(hooks._global_forward_hooks),
        len(hooks._global_forward_pre_hooks),
        len(_get_current_function_mode_stack()),
        len(_get_current_dispatch_mode_stack()),
        torch.is_grad_enabled(),
        torch.get_default_device(),
        torch.get_rng_state().sum().item(),
    ]


@pytest.mark.slow
def test_ten_models_in_a_row_leave_nothing() -> None:
    with torch.device("meta"):
        models = [timm.create_model(name) for name in NAMES]
    before = global_state()
    gone = []
    while models:
        model = models.pop()
        count = registered(model)
        vcreg_fx.insert(model, "blocks | head")
        assert registered(model) == count
        vcreg_fx.remove(model)
        assert registered(model) == count
        gone.append(weakref.ref(model))
        del model
    gc.collect()
    assert [ref() for ref in gone] == [None] * len(NAMES)
    assert global_state() == before


@pytest.mark.parametrize("removed", [True, False])
def test_a_trained_model_is_collected(removed: bool) -> None:
    model = vcreg_fx.insert(timm.create_model("resnet18", num_classes=3), "blocks | head")
    model(torch.randn(4, 3, 32, 32)).square().mean().backward()
    if removed:
        vcreg_fx.remove(model)
    activation, ref = weakref.ref(model.layer1), weakref.ref(model)
    del model
    gc.collect()
    assert ref() is None and activation() is None


def test_plans_hold_no_global_reference() -> None:
    planned = vcreg_fx.plan(timm.create_model("resnet18"), "blocks")
    recording = weakref.ref(planned.recording)
    del planned
    gc.collect()
    assert recording() is None
