"""In loops of Accelerate a step gets the mean of its batches' penalties, and is told otherwise."""

from __future__ import annotations

import copy
import gc
import pickle
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import vcreg_fx
from tests.trainers import (
    HALF,
    INSERT,
    RULE,
    SGD,
    Net,
    agree,
    batches_of,
    by_hand,
    forget_accelerators,
    loader,
    task,
    weights,
)
from vcreg_fx.integrations.accelerate import follow

accelerate = pytest.importorskip("accelerate")


@pytest.fixture(autouse=True)
def _forget() -> Iterator[None]:
    yield
    forget_accelerators()


def made(k: int = 1, scaler: Any = None, **options: Any) -> tuple[Any, Any, Any]:
    """An accelerator with a model and an optimizer, prepared."""
    accelerator = accelerate.Accelerator(cpu=True, gradient_accumulation_steps=k, **options)
    accelerator.scaler = scaler or accelerator.scaler
    model = vcreg_fx.insert(Net(), RULE, **INSERT)
    optimizer = torch.optim.SGD(model.parameters(), **SGD)
    return accelerator, *accelerator.prepare(model, optimizer)


def train(accelerator: Any, model: Any, optimizer: Any, data: Any, clip: float = 0.0) -> Tensor:
    before = weights(model)
    for batch in accelerator.prepare(data):
        with accelerator.accumulate(model):
            accelerator.backward(task(model(batch["x"]), batch["labels"]))
            if clip and accelerator.sync_gradients:
                accelerator.clip_grad_norm_(model.parameters(), clip)
            optimizer.step()
            optimizer.zero_grad()
    return weights(model) - before


def change(batches: int, k: int = 1, clip: float = 0.0, **options: Any) -> Tensor:
    accelerator, model, optimizer = made(k, **options)
    follow(model, accelerator)
    return train(accelerator, model, optimizer, loader(batches), clip)


@pytest.mark.parametrize("k", [1, 2, 4])
def test_accumulation(k: int) -> None:
    agree(change(3 * k, k), by_hand(3 * k, k))


@pytest.mark.parametrize("k", [2, 4])
def test_the_last_window_is_divided_as_accelerate_divides(k: int) -> None:
    batches = batches_of(k, complete=False)
    agree(change(batches, k), by_hand(batches, k, divide=lambda count: k))


@pytest.mark.parametrize("k", [1, 4])
def test_bfloat16(k: int) -> None:
    found = change(3 * k, k, mixed_precision="bf16")
    agree(found, by_hand(3 * k, k, dtype=torch.bfloat16), HALF)


@pytest.mark.parametrize("k", [1, 4])
def test_a_scaler_whose_scale_grows(k: int) -> None:
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0, growth_interval=1)
    agree(change(3 * k, k, scaler=scaler), by_hand(3 * k, k))
    assert scaler.get_scale() > 1024


def test_gradient_clipping() -> None:
    agree(change(6, 2, clip=0.3), by_hand(6, 2, clip=0.3))


def test_accumulation_that_changes_on_the_way() -> None:
    accelerator, model, optimizer = made(1)
    follow(model, accelerator)
    accelerator.gradient_accumulation_steps = 3
    agree(train(accelerator, model, optimizer, loader(9)), by_hand(9, 3))


def test_following_before_prepare_and_twice() -> None:
    accelerator = accelerate.Accelerator(cpu=True, gradient_accumulation_steps=2)
    model = vcreg_fx.insert(Net(), RULE, **INSERT)
    follow(model, accelerator)
    follow(model, accelerator)
    assert len(accelerator._save_model_state_pre_hook) == 1
    optimizer = torch.optim.SGD(model.parameters(), **SGD)
    model, optimizer = accelerator.prepare(model, optimizer)
    agree(train(accelerator, model, optimizer, loader(6)), by_hand(6, 2))


def test_a_compiled_model() -> None:
    accelerator = accelerate.Accelerator(cpu=True)
    model = vcreg_fx.insert(Net(), "head", **INSERT)
    follow(model, accelerator)
    run = torch.compile(model, backend="aot_eager", fullgraph=True)
    x = torch.randn(8, 6)
    found = []
    for steps in (1, 4):
        accelerator.gradient_accumulation_steps = steps
        model.zero_grad()
        accelerator.backward((0 * run(x)).sum())  # VCReg's gradient alone
        found.append(steps * model.stem.weight.grad)
    assert found[0].norm() > 0 and torch.allclose(*found)


def test_a_run_that_is_resumed_ends_with_the_same_weights(tmp_path: Path) -> None:
    data = list(loader(12))
    change_of: list[Tensor] = []
    for resumed in (False, True):
        accelerator, model, optimizer = estimated()
        before = weights(model)
        follow(model, accelerator)
        vcreg_fx.sites(model)[0].alpha = 0.5
        train(accelerator, model, optimizer, Batches(data[:6]))
        if resumed:
            accelerator.save_state(tmp_path)
            accelerator.free_memory()
            accelerator, model, optimizer = estimated()
            follow(model, accelerator)
            accelerator.load_state(tmp_path)
            assert vcreg_fx.sites(model)[0].alpha == 0.5
        train(accelerator, model, optimizer, Batches(data[6:]))
        change_of.append(weights(model) - before)
        assert [site.step for site in vcreg_fx.sites(model)] == [12, 12]
    agree(*change_of, 1e-7)


def estimated() -> tuple[Any, Any, Any]:
    accelerator = accelerate.Accelerator(cpu=True, gradient_accumulation_steps=2)
    model = vcreg_fx.insert(Net(), RULE, interval=2, **INSERT)
    torch.manual_seed(0)
    optimizer = torch.optim.SGD(model.parameters(), **SGD)
    return accelerator, *accelerator.prepare(model, optimizer)


def Batches(batches: list[dict[str, Tensor]]) -> Any:  # noqa: N802
    return torch.utils.data.DataLoader(batches, batch_size=None)


def test_what_a_checkpoint_lacks_or_has_otherwise_is_told(tmp_path: Path) -> None:
    accelerator, model, _ = made()
    accelerator.save_state(tmp_path / "old")
    follow(model, accelerator)
    with pytest.warns(UserWarning, match="old has no vcreg_fx.json"):
        accelerator.load_state(tmp_path / "old")
    accelerator.save_state(tmp_path / "new")
    vcreg_fx.insert(vcreg_fx.remove(model), "head", **INSERT)
    with pytest.warns(UserWarning, match="rule is .* there, and 'head' here"):
        accelerator.load_state(tmp_path / "new")


def test_two_models_of_one_accelerator(tmp_path: Path) -> None:
    accelerator = accelerate.Accelerator(cpu=True)
    models = [vcreg_fx.insert(Net(), RULE, **INSERT) for _ in range(2)]
    for alpha, model in enumerate(models, start=1):
        follow(accelerator.prepare(model), accelerator)
        vcreg_fx.sites(model)[0].alpha = alpha
    accelerator.save_state(tmp_path)
    for model in models:
        vcreg_fx.sites(model)[0].alpha = 0
    accelerator.load_state(tmp_path)
    assert [vcreg_fx.sites(model)[0].alpha for model in models] == [1, 2]


def test_copies_follow_and_pickles_keep_the_number() -> None:
    accelerator, model, _ = made(4)
    follow(model, accelerator)
    accelerator.gradient_accumulation_steps = 2
    assert vcreg_fx.sites(copy.deepcopy(model))[0].loss_scale.read() == 0.5
    loaded = pickle.loads(pickle.dumps(vcreg_fx.sites(model)[0].loss_scale))
    accelerator.gradient_accumulation_steps = 1
    assert loaded.read() == 0.5
    del model
    gc.collect()


def test_what_cannot_be_followed_is_refused() -> None:
    accelerator = accelerate.Accelerator(cpu=True)
    with pytest.raises(vcreg_fx.InsertionError, match="nothing to follow"):
        follow(Net(), accelerator)

    class Engine:
        distributed_type = accelerate.DistributedType.DEEPSPEED

    with pytest.raises(vcreg_fx.InsertionError, match="DEEPSPEED scales the loss inside"):
        follow(vcreg_fx.insert(Net(), RULE, **INSERT), Engine())


# What is told without it --------------------------------------------------------------------------


def test_the_silent_cases_are_told_once() -> None:
    with pytest.warns(UserWarning, match="VCReg") as told:
        train(*made(4), loader(12))
    assert len(told) == 1
    assert "set_loss_scale(model, accumulation_steps=4)" in str(told[0].message)
    assert "vcreg_fx.integrations.accelerate.follow(model, accelerator)" in str(told[0].message)
    with pytest.warns(UserWarning, match="by a GradScaler.*accelerate.follow") as told:
        train(*made(scaler=torch.amp.GradScaler("cpu", init_scale=64.0)), loader(3))
    assert len(told) == 1
    accelerator, model, optimizer = made()
    vcreg_fx.insert(vcreg_fx.remove(model), RULE, mode="loss", **INSERT)
    with pytest.warns(UserWarning, match=r"loss \+ vcreg_fx.penalty") as told:
        train(accelerator, model, optimizer, loader(3))
    assert len(told) == 1


def test_following_silences() -> None:
    with warnings.catch_warnings():
        warnings.filterwarnings("error", "(?s).*VCReg")
        change(8, 4)
        change(3, scaler=torch.amp.GradScaler("cpu"))
