"""Loops that scale their loss without saying so are told once; loops that are right are not."""

from __future__ import annotations

import copy
import gc
import pickle
import threading
import warnings
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import optimizer as optimizers
from torch.utils.checkpoint import checkpoint

import vcreg_fx
from vcreg_fx.site import _steps

X, Y = torch.randn(8, 6, generator=torch.Generator().manual_seed(1)), torch.arange(8) % 3
CONFIG: dict[str, Any] = {"alpha": 5.0, "beta": 5.0, "example_inputs": (X,)}
SET = "set_loss_scale"


class Net(nn.Module):
    """Two layers and a classifier, the second under activation checkpointing if asked for."""

    def __init__(self, reentrant: bool | None = None) -> None:
        super().__init__()
        self.stem, self.middle, self.fc = nn.Linear(6, 10), nn.Linear(10, 12), nn.Linear(12, 3)
        self.reentrant = reentrant

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).relu()
        if self.reentrant is None:
            x = self.middle(x).relu()
        else:
            x = checkpoint(self.middle, x, use_reentrant=self.reentrant)
            x = checkpoint(nn.functional.relu, x, use_reentrant=self.reentrant)
        return self.fc(x)


def network(rule: str = "modules('middle') | head", **config: Any) -> nn.Module:
    return vcreg_fx.insert(Net(), rule, **{**CONFIG, **config})


def sgd(model: nn.Module, **options: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=0.01, **options)


def task(output: Tensor) -> Tensor:
    return nn.functional.cross_entropy(output, Y)


def accumulate(model: nn.Module, optimizer: torch.optim.Optimizer, k: int = 4) -> None:
    optimizer.zero_grad()
    for _ in range(k):
        (task(model(X)) / k).backward()
    optimizer.step()


@pytest.fixture
def silent() -> Iterator[None]:
    """Any warning of VCReg's is an error."""
    with warnings.catch_warnings():
        warnings.filterwarnings("error", "(?s).*(VCReg|vcreg_fx)")
        yield


# What is told --------------------------------------------------------------------------------


@pytest.mark.parametrize("k", [2, 4])
def test_accumulation_is_told_once_with_the_call(k: int) -> None:
    model = network()
    optimizer = sgd(model)
    with pytest.warns(UserWarning, match=SET) as told:
        for _ in range(3):
            accumulate(model, optimizer, k)
    assert len(told) == 1 and told[0].filename == __file__
    assert f"went backward {k} times for one step of SGD" in str(told[0].message)
    assert f"vcreg_fx.set_loss_scale(model, accumulation_steps={k})" in str(told[0].message)


@pytest.mark.parametrize(
    "scaled",
    [
        lambda loss: loss * 0.25,
        lambda loss: (loss / 4).clone(),
        lambda loss: loss / 4 + loss.square() / 4,
        torch.compile(lambda loss: loss / 4, backend="aot_eager"),
    ],
)
def test_every_way_to_scale_a_loss_is_told(scaled: Callable[[Tensor], Tensor]) -> None:
    model = network()
    optimizer = sgd(model)
    for _ in range(4):
        scaled(task(model(X))).backward()
    with pytest.warns(UserWarning, match="went backward 4 times"):
        optimizer.step()


def test_gradients_of_the_loss_that_were_given_are_told() -> None:
    model = network()
    optimizer = sgd(model)
    for _ in range(2):
        task(model(X)).backward(torch.tensor(0.5))
    with pytest.warns(UserWarning, match="went backward 2 times"):
        optimizer.step()


def test_accumulation_under_checkpointing_is_told() -> None:
    for reentrant in (True, False):
        model = vcreg_fx.insert(Net(reentrant), "modules('middle') | head", **CONFIG)
        with pytest.warns(UserWarning, match="went backward 4 times"):
            accumulate(model, sgd(model))


@pytest.mark.parametrize("set_to_none", [True, False])
def test_accumulation_that_starts_late_is_told(set_to_none: bool) -> None:
    model = network()
    optimizer = sgd(model)
    for k in (1, 1, 2):
        for _ in range(k):
            (task(model(X)) / k).backward()
        if k == 1:
            optimizer.step()
            optimizer.zero_grad(set_to_none=set_to_none)
    with pytest.warns(UserWarning, match="went backward 2 times"):
        optimizer.step()


def test_a_copy_and_a_loaded_model_are_told_for_themselves() -> None:
    for model in (copy.deepcopy(network()), pickle.loads(pickle.dumps(network()))):
        with pytest.warns(UserWarning, match="went backward 4 times"):
            accumulate(model, sgd(model))


def test_a_part_of_the_model_with_an_optimizer_of_its_own_is_told() -> None:
    model = network()
    optimizer = sgd(model.middle)
    with pytest.warns(UserWarning, match="went backward 2 times"):
        for _ in range(2):  # which parameter to watch is known after the first step
            accumulate(model, optimizer, 2)


def test_accumulation_without_clearing_a_frozen_stem() -> None:
    model = network()
    model.stem.requires_grad_(False)
    with pytest.warns(UserWarning, match="went backward 2 times"):
        accumulate(model, sgd(model), 2)


@pytest.mark.parametrize("compiled", [False, True])
def test_a_scaler_that_nobody_told_of_is_told_once(compiled: bool) -> None:
    model = network()
    run = torch.compile(model, backend="aot_eager") if compiled else model
    optimizer, scaler = sgd(model), torch.amp.GradScaler("cpu", init_scale=1024.0)
    with pytest.warns(UserWarning, match=SET) as told:
        for _ in range(3):
            optimizer.zero_grad()
            scaler.scale(task(run(X))).backward()
            scaler.step(optimizer)
            scaler.update()
    mine = [str(each.message) for each in told if SET in str(each.message)]
    assert len(mine) == 1
    assert "by 1024 now" in mine[0] and "vcreg_fx.set_loss_scale(model, scaler)" in mine[0]


def test_a_scaler_and_accumulation_are_told_together() -> None:
    model = network()
    optimizer, scaler = sgd(model), torch.amp.GradScaler("cpu")
    for _ in range(4):
        scaler.scale(task(model(X)) / 4).backward()
    with pytest.warns(UserWarning, match=r"set_loss_scale\(model, scaler, accumulation_steps=4\)"):
        scaler.step(optimizer)


def test_penalties_that_nobody_reads_are_told_at_the_step() -> None:
    model = network(mode="loss")
    optimizer = sgd(model)
    with pytest.warns(UserWarning, match="nobody has read") as told:
        for _ in range(3):
            optimizer.zero_grad()
            task(model(X)).backward()
            optimizer.step()
    assert len(told) == 1 and "loss + vcreg_fx.penalty(model)" in str(told[0].message)


def test_steps_of_other_models_tell_nothing_of_this_one(silent: None) -> None:
    forgetful = network(mode="loss")
    task(forgetful(X)).backward()
    other = network()
    accumulate(other, sgd(other), 1)
    with pytest.warns(UserWarning, match="nobody has read"):
        sgd(forgetful).step()


# Loops that are right ------------------------------------------------------------------------

LOOPS: dict[str, Callable[[], None]] = {}


def loop(function: Callable[[], None]) -> Callable[[], None]:
    LOOPS[function.__name__] = function
    return function


@loop
def plain() -> None:
    model = network()
    optimizer = sgd(model)
    for _ in range(3):
        optimizer.zero_grad()
        task(model(X)).backward()
        optimizer.step()


@loop
def accumulation_that_was_told() -> None:
    model = network()
    vcreg_fx.set_loss_scale(model, accumulation_steps=4)
    accumulate(model, sgd(model))


@loop
def silenced() -> None:
    model = network()
    vcreg_fx.set_loss_scale(model, 1.0)
    accumulate(model, sgd(model))


@loop
def a_scaler_that_was_told() -> None:
    model, scaler = network(), torch.amp.GradScaler("cpu")
    vcreg_fx.set_loss_scale(model, scaler)
    scaler.scale(task(model(X))).backward()
    scaler.step(sgd(model))


@loop
def a_ratio_needs_no_scale() -> None:
    model, scaler = network(ratio=0.5), torch.amp.GradScaler("cpu")
    optimizer = sgd(model)
    for _ in range(4):
        (scaler.scale(task(model(X))) / 4).backward()
    scaler.step(optimizer)


@loop
def a_scaler_that_is_off() -> None:
    model, scaler = network(), torch.amp.GradScaler("cpu", enabled=False)
    scaler.scale(task(model(X))).backward()
    scaler.step(sgd(model))


@loop
def accumulation_in_loss_mode() -> None:
    model = network(mode="loss")
    optimizer = sgd(model)
    for _ in range(4):
        ((task(model(X)) + vcreg_fx.penalty(model)) / 4).backward()
    optimizer.step()


@loop
def a_gan_with_one_discriminator_step_each() -> None:
    for set_to_none in (True, False):
        generator, discriminator = nn.Linear(6, 6), network()
        of_g, of_d = sgd(generator), sgd(discriminator)
        for _ in range(3):
            of_d.zero_grad(set_to_none)
            fake = generator(X)
            loss = discriminator(X).mean() - discriminator(fake.detach()).mean()
            loss.backward()
            of_d.step()
            of_g.zero_grad(set_to_none)
            (discriminator(fake).mean() / 2).backward()  # through the discriminator, not its step
            of_g.step()


@loop
def a_gan_with_two_backward_passes_of_the_discriminator() -> None:
    generator, discriminator = nn.Linear(6, 6), network()
    of_d = sgd(discriminator)
    target = torch.zeros(8, 3)
    for _ in range(2):
        discriminator.zero_grad()
        for x in (X, generator(X).detach()):
            criterion = nn.functional.binary_cross_entropy_with_logits
            criterion(discriminator(x), target).backward()
        of_d.step()


@loop
def a_sum_of_two_losses_by_two_backward_passes() -> None:
    model = network()
    optimizer = sgd(model)
    task(model(X)).backward()
    (-model(-X).log_softmax(1)[:, 0].mean() + 0.1 * model(X).square().mean()).backward()
    optimizer.step()


@loop
def two_losses_on_one_graph() -> None:
    model = network()
    optimizer, output = sgd(model), None
    output = model(X)
    (task(output) / 2).backward(retain_graph=True)
    (output.square().mean() / 2).backward()
    optimizer.step()


@loop
def views() -> None:
    model = network()
    optimizer = sgd(model)
    for _ in range(2):
        optimizer.zero_grad()
        one, two, three = model(X), model(-X), model(2 * X)
        ((one - two).square().mean() / 3 + task(three) / 3).backward()
        optimizer.step()


@loop
def gradient_clipping() -> None:
    model = network()
    optimizer = sgd(model)
    for _ in range(3):
        task(model(X)).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 0.1)
        optimizer.step()
        optimizer.zero_grad(set_to_none=False)


@loop
def gradient_clipping_before_zeroing_late() -> None:
    model = network()
    optimizer = sgd(model, momentum=0.9)
    for _ in range(3):
        loss = task(model(X)) / 2
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_value_(model.parameters(), 0.1)
        optimizer.step()


@loop
def lbfgs() -> None:
    model = network()
    optimizer = torch.optim.LBFGS(model.parameters(), max_iter=5)

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = task(model(X)) / 2
        loss.backward()
        return loss

    for _ in range(2):
        optimizer.step(closure)


@loop
def optimizer_in_backward() -> None:
    model = network()
    each = {p: torch.optim.SGD([p], lr=0.01) for p in model.parameters()}

    def step(parameter: nn.Parameter) -> None:
        each[parameter].step()
        each[parameter].zero_grad()

    for parameter in each:
        parameter.register_post_accumulate_grad_hook(step)
    for _ in range(3):
        (task(model(X)) / 2).backward()


@loop
def fused_optimizers() -> None:
    for made in (torch.optim.AdamW, torch.optim.SGD):
        model = network()
        optimizer = made(model.parameters(), lr=0.01, fused=True)
        for _ in range(3):
            optimizer.zero_grad()
            task(model(X)).backward()
            optimizer.step()


@loop
def sharpness_aware_minimization() -> None:
    for set_to_none in (True, False):
        model = network()
        optimizer = sgd(model)
        for _ in range(3):
            (task(model(X)) / 2).backward()
            with torch.no_grad():
                for p in model.parameters():
                    p.add_(p.grad, alpha=0.05)
            optimizer.zero_grad(set_to_none)
            (task(model(X)) / 2).backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none)


@loop
def gradient_checkpointing() -> None:
    for reentrant in (True, False):
        model = vcreg_fx.insert(Net(reentrant), "modules('middle') | head", **CONFIG)
        optimizer = sgd(model)
        for _ in range(2):
            (task(model(X)) / 2).backward()
            optimizer.step()
            optimizer.zero_grad()


@loop
def a_frozen_backbone() -> None:
    model = network()
    model.stem.requires_grad_(False)
    optimizer = sgd(model.fc)
    for _ in range(3):
        optimizer.zero_grad()
        task(model(X)).backward()
        optimizer.step()


@loop
def evaluation_between() -> None:
    model = network()
    optimizer = sgd(model)
    for _ in range(3):
        optimizer.zero_grad()
        task(model(X)).backward()
        optimizer.step()
        model.eval()
        with torch.no_grad():
            model(X)
        task(model(X)).backward()  # a saliency map
        model.train()


@loop
def several_optimizers_of_one_model() -> None:
    model = network()
    parts = [sgd(model.stem), sgd(model.middle), sgd(model.fc)]
    for _ in range(3):
        for each in parts:
            each.zero_grad()
        (task(model(X)) / 2).backward()
        for each in parts:
            each.step()


@loop
def parts_trained_in_turn() -> None:
    model = network()
    parts = [sgd(model.stem), sgd(model.fc)]
    for _ in range(4):
        for each in parts:
            each.zero_grad()
            (task(model(X)) / 2).backward()
            each.step()


@loop
def an_adversary_by_autograd_grad() -> None:
    model = network()
    optimizer = sgd(model)
    for _ in range(3):
        x = X.clone().requires_grad_()
        (grad,) = torch.autograd.grad(task(model(x)) / 2, x)
        optimizer.zero_grad()
        (task(model(X + 0.1 * grad.sign())) / 2).backward()
        optimizer.step()


@loop
def an_adversary_by_backward() -> None:
    model = network()
    optimizer = sgd(model)
    for _ in range(3):
        x = X.clone().requires_grad_()
        task(model(x)).backward()
        optimizer.zero_grad()
        (task(model(X + 0.1 * x.grad.sign())) / 2).backward()
        optimizer.step()


@loop
def a_step_that_is_left_out() -> None:
    model = network()
    optimizer = sgd(model)
    for step in range(6):
        optimizer.zero_grad()
        (task(model(X)) / 2).backward()
        if step % 2:
            optimizer.step()


@loop
def a_moving_average() -> None:
    model = network()
    average = torch.optim.swa_utils.AveragedModel(model)
    optimizer = sgd(model)
    for _ in range(3):
        optimizer.zero_grad()
        with torch.no_grad():
            target = average(X)
        ((model(X) - target).square().mean() / 2).backward()
        optimizer.step()
        average.update_parameters(model)


@loop
def measuring_between() -> None:
    model = network()
    optimizer = sgd(model)
    for _ in range(2):
        vcreg_fx.measure(model, X, task)
        (task(model(X)) / 2).backward()
        optimizer.step()
        optimizer.zero_grad()


@loop
def an_optimizer_of_something_else() -> None:
    model, other = network(), nn.Linear(6, 3)
    optimizer = sgd(other)
    for _ in range(4):
        (task(model(X)) / 4).backward()
        task(other(X)).backward()
        optimizer.step()
        optimizer.zero_grad()


@loop
def a_schedule_of_the_learning_rate() -> None:
    model = network()
    optimizer = sgd(model)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, 1)
    for _ in range(3):
        task(model(X)).backward()
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()


@loop
def compiled_models_and_steps() -> None:
    model = network()
    optimizer = sgd(model)
    run = torch.compile(model, backend="aot_eager")
    step = torch.compile(optimizer.step, backend="aot_eager")
    for _ in range(2):
        task(run(X)).backward()
        step()
        optimizer.zero_grad()


@loop
def threads() -> None:
    def train() -> None:
        model = network()
        optimizer = sgd(model)
        for _ in range(3):
            optimizer.zero_grad()
            (task(model(X)) / 2).backward()
            optimizer.step()

    each = [threading.Thread(target=train) for _ in range(2)]
    for thread in each:
        thread.start()
    for thread in each:
        thread.join()


@pytest.mark.usefixtures("silent")
@pytest.mark.parametrize("name", LOOPS)
def test_a_loop_that_is_right_is_not_told(name: str) -> None:
    LOOPS[name]()


def test_there_are_more_than_twenty() -> None:
    assert len(LOOPS) > 20


# What it leaves behind -----------------------------------------------------------------------


def test_one_hook_for_all_models_and_none_is_kept_alive() -> None:
    network()
    hooks = len(optimizers._global_optimizer_post_hooks)
    model = network()
    model_alive = weakref.ref(model)
    optimizer = sgd(model)
    task(model(X)).backward()
    optimizer.step()
    assert len(optimizers._global_optimizer_post_hooks) == hooks
    del model, optimizer
    gc.collect()
    assert model_alive() is None and model_alive not in list(_steps._watches.keyrefs())


@pytest.mark.usefixtures("silent")
def test_a_removed_model_is_forgotten() -> None:
    model = network()
    optimizer = sgd(model)
    assert _steps.watch_of(model) is not None
    vcreg_fx.remove(model)
    assert _steps.watch_of(model) is None
    accumulate(model, optimizer)


def test_the_gradients_of_a_loop_that_clears_them_are_not_read(monkeypatch: Any) -> None:
    """No cost but a counter: in a plain loop no gradient and no frame is looked at."""
    model = network()
    optimizer = sgd(model)
    for _ in range(_steps._LOOKED + 1):
        optimizer.zero_grad()
        task(model(X)).backward()
        optimizer.step()
    for name in ("_is_cleared", "loss_may_be_scaled", "calling_scaler"):
        monkeypatch.setattr(_steps, name, lambda *args, name=name: pytest.fail(name))
    for _ in range(3):
        optimizer.zero_grad()
        task(model(X)).backward()
        optimizer.step()
