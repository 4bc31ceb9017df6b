"""timm's train.py and torchvision's reference script, by the parts that they are made of."""

from __future__ import annotations

import argparse
import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from timm.models import resume_checkpoint
from timm.utils import CheckpointSaver, ModelEmaV3, NativeScaler
from torch import Tensor, nn

import vcreg_fx
from tests.trainers import (
    EXACT,
    HALF,
    INSERT,
    RULE,
    SGD,
    Net,
    agree,
    batches_of,
    by_hand,
    loader,
    task,
    weights,
)


def sgd(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), **SGD)


def timms_epoch(
    model: nn.Module, optimizer: Any, data: list[Any], scaler: Any, k: int = 1, ema: Any = None,
    dtype: torch.dtype | None = None, clip: float | None = None, told: bool = True,
) -> None:  # fmt: skip
    """What train_one_epoch does, with the documented line."""
    last = len(data) % k
    for index, batch in enumerate(data):
        steps = last if index >= len(data) - last else k
        update = (index + 1) % k == 0 or index + 1 == len(data)
        if told:
            vcreg_fx.set_loss_scale(model, getattr(scaler, "_scaler", 1.0), steps)
        with torch.autocast("cpu", dtype, enabled=dtype is not None):
            loss = task(model(batch["x"]), batch["labels"]) / steps
        if scaler is None:
            loss.backward()
            if update:
                optimizer.step()
        else:
            parameters = list(model.parameters())
            how = {"clip_grad": clip, "parameters": parameters, "need_update": update}
            scaler(loss, optimizer, **how)
        if update:
            optimizer.zero_grad()
            if ema is not None:
                ema.update(model)


def timms_change(batches: int, **options: Any) -> Tensor:
    model = vcreg_fx.insert(Net(), RULE, **INSERT)
    before = weights(model)
    timms_epoch(model, sgd(model), list(loader(batches)), **options)
    return weights(model) - before


@pytest.mark.parametrize("complete", [True, False], ids=["complete", "incomplete"])
@pytest.mark.parametrize("k", [1, 4])
@pytest.mark.parametrize("amp", [None, torch.bfloat16, torch.float16], ids=str)
def test_timms_loop(amp: torch.dtype | None, k: int, complete: bool) -> None:
    batches = batches_of(k, complete)
    scaler = NativeScaler("cpu") if amp is torch.float16 else None
    found = timms_change(batches, scaler=scaler, k=k, dtype=amp)
    agree(found, by_hand(batches, k, dtype=amp), EXACT if amp is None else HALF)


def test_timms_scaler_in_float32_with_clipping() -> None:
    found = timms_change(6, scaler=NativeScaler("cpu"), k=2, clip=0.3)
    agree(found, by_hand(6, 2, clip=0.3))


def test_timms_loop_without_the_line_is_told() -> None:
    model = vcreg_fx.insert(Net(), RULE, **INSERT)
    with pytest.warns(UserWarning, match=r"set_loss_scale\(model, scaler, accumulation_steps=2\)"):
        timms_epoch(model, sgd(model), list(loader(4)), NativeScaler("cpu"), 2, told=False)


def test_timms_average_and_checkpoints(tmp_path: Path) -> None:
    data = list(loader(6))
    plain, run = Net(), vcreg_fx.insert(Net(), RULE, **INSERT)
    optimizer, scaler = sgd(run), NativeScaler("cpu")
    average = ModelEmaV3(run, decay=0.5)
    assert len(vcreg_fx.sites(average.module)) == 2
    timms_epoch(run, optimizer, data[:3], scaler, ema=average)
    options = {"args": argparse.Namespace(model="net"), "amp_scaler": scaler, "model_ema": average}
    folders = {"checkpoint_dir": str(tmp_path), "recovery_dir": str(tmp_path)}
    CheckpointSaver(run, optimizer, **options, **folders).save_checkpoint(0, metric=1.0)
    timms_epoch(run, optimizer, data[3:], scaler, ema=average)

    again = vcreg_fx.insert(Net(), RULE, **INSERT)
    optimizer, scaler = sgd(again), NativeScaler("cpu")
    resume_checkpoint(again, str(tmp_path / "last.pth.tar"), optimizer, scaler, log_info=False)
    average_again = ModelEmaV3(again, decay=0.5)
    kept = torch.load(tmp_path / "last.pth.tar", weights_only=False)
    average_again.module.load_state_dict(kept["state_dict_ema"])
    timms_epoch(again, optimizer, data[3:], scaler, ema=average_again)
    agree(weights(again), weights(run), 1e-7)
    agree(weights(average_again.module), weights(average.module), 1e-6)
    plain.load_state_dict(kept["state_dict"])  # a checkpoint is that of the plain model


def test_timms_compiled_loop() -> None:
    """``--torchcompile``: the line sees through the compiled model; each number compiles once."""
    model = vcreg_fx.insert(Net(), "head", **INSERT)
    plain, scaler = copy.deepcopy(model), NativeScaler("cpu")
    for each in (plain, torch.compile(model, backend="aot_eager", fullgraph=True)):
        timms_epoch(each, sgd(each), list(loader(4)), scaler, k=2)
    agree(weights(model), weights(plain))


# torchvision --------------------------------------------------------------------------------------


class ExponentialMovingAverage(torch.optim.swa_utils.AveragedModel):
    """As in torchvision's references/classification/utils.py."""

    def __init__(self, model: nn.Module, decay: float, device: str = "cpu") -> None:
        def average(old: Tensor, new: Tensor, count: Tensor) -> Tensor:
            return decay * old + (1 - decay) * new

        super().__init__(model, device, average, use_buffers=True)


@pytest.mark.parametrize("amp", [False, True])
def test_torchvisions_loop(amp: bool) -> None:
    model = vcreg_fx.insert(Net(), RULE, **INSERT)
    before, optimizer = weights(model), sgd(model)
    scaler = torch.amp.GradScaler("cpu") if amp else None
    vcreg_fx.set_loss_scale(model, scaler or 1.0)  # the documented line
    average = ExponentialMovingAverage(model, 0.5)
    model.train()
    for batch in loader(3):
        with torch.autocast("cpu", torch.float16, enabled=amp):
            loss = task(model(batch["x"]), batch["labels"])
        optimizer.zero_grad()
        if scaler is not None:
            scaler.scale(loss).backward()
            scaler.unscale_(optimizer)
            nn.utils.clip_grad_norm_(model.parameters(), 0.3)
            scaler.step(optimizer)
            scaler.update()
        else:
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 0.3)
            optimizer.step()
        average.update_parameters(model)
    dtype = torch.float16 if amp else None
    agree(weights(model) - before, by_hand(3, 1, dtype=dtype, clip=0.3), HALF if amp else EXACT)
    assert average.module.state_dict().keys() == Net().state_dict().keys()
    assert torch.equal(average.eval()(torch.ones(2, 6)), average.module(torch.ones(2, 6)))
