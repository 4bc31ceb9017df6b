"""In Lightning a step gets the mean of its batches' penalties, and is told where it does not."""

from __future__ import annotations

import csv
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import vcreg_fx
from tests.trainers import (
    COEFFICIENTS,
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

lightning = pytest.importorskip("lightning.pytorch")
other = pytest.importorskip("pytorch_lightning")

from vcreg_fx.integrations import _lightning  # noqa: E402 (of the two that are imported above)
from vcreg_fx.integrations.lightning import VCRegCallback  # noqa: E402


def module(base: Any = lightning, manual: int = 0) -> Any:
    """A module with a network; with a loop of its own for windows of `manual` batches."""

    class Module(base.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = Net()
            self.automatic_optimization = not manual

        def forward(self, x: Tensor) -> Tensor:
            return self.net(x)

        def training_step(self, batch: dict[str, Tensor], index: int) -> Tensor | None:
            loss = task(self.net(batch["x"]), batch["labels"])
            if not manual:
                return loss
            optimizer = self.optimizers()
            self.manual_backward(loss / manual)
            if (index + 1) % manual == 0:
                optimizer.step()
                optimizer.zero_grad()
            return None

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), **SGD)

    return Module()


def trainer(*callbacks: Any, base: Any = lightning, **options: Any) -> Any:
    quiet = dict.fromkeys(
        ("logger", "enable_progress_bar", "enable_model_summary", "enable_checkpointing"), False
    )
    return base.Trainer(
        **{"accelerator": "cpu", "devices": 1, "max_epochs": 1, **quiet, **options},
        callbacks=list(callbacks),
    )


def callback(**more: Any) -> Any:
    return VCRegCallback(RULE, attribute="net", **{**INSERT, **more})


def change(batches: int, *callbacks: Any, base: Any = lightning, **options: Any) -> Tensor:
    made = module(base)
    before = weights(made)
    trainer(*(callbacks or (callback(),)), base=base, **options).fit(made, loader(batches))
    return weights(made) - before


# Equality -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("base", [lightning, other], ids=["lightning", "pytorch_lightning"])
@pytest.mark.parametrize("k", [1, 2, 4])
def test_accumulation(k: int, base: Any) -> None:
    expected = by_hand(3 * k, k)
    task_alone = by_hand(3 * k, k, vcreg=False)
    assert (expected - task_alone).norm() > expected.norm() / 3
    agree(change(3 * k, base=base, accumulate_grad_batches=k), expected)


@pytest.mark.parametrize("k", [2, 4])
def test_the_last_window_is_divided_as_lightning_divides(k: int) -> None:
    batches = batches_of(k, complete=False)
    found = change(batches, accumulate_grad_batches=k)
    agree(found, by_hand(batches, k, divide=lambda count: k))


def test_accumulation_that_changes_with_the_epoch() -> None:
    changing = lightning.callbacks.GradientAccumulationScheduler({0: 1, 1: 2})
    made = module()
    before = weights(made)
    trainer(callback(), changing, max_epochs=2).fit(made, loader(2))
    net, optimizer = by_hand_net()
    for k in (1, 2):
        for index, batch in enumerate(loader(2)):
            loss = task(net(batch["x"]), batch["labels"]) + vcreg_fx.penalty(net)
            (loss / k).backward()
            if (index + 1) % k == 0:
                optimizer.step()
                optimizer.zero_grad()
    agree(weights(made) - before, weights(net) - before)


def by_hand_net() -> tuple[nn.Module, torch.optim.Optimizer]:
    net = vcreg_fx.insert(Net(), RULE, mode="loss", backend="naive", **INSERT)
    return net, torch.optim.SGD(net.parameters(), **SGD)


@pytest.mark.parametrize("k", [1, 4])
def test_bfloat16(k: int) -> None:
    found = change(3 * k, accumulate_grad_batches=k, precision="bf16-mixed")
    agree(found, by_hand(3 * k, k, dtype=torch.bfloat16), HALF)


@pytest.mark.parametrize("k", [1, 4])
def test_a_float16_scaler(k: int) -> None:
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0, growth_interval=2)
    plugin = lightning.plugins.MixedPrecision("16-mixed", "cpu", scaler)
    found = change(3 * k, accumulate_grad_batches=k, plugins=plugin)
    agree(found, by_hand(3 * k, k, dtype=torch.float16), HALF)


def test_gradient_clipping() -> None:
    found = change(6, accumulate_grad_batches=2, gradient_clip_val=0.3)
    agree(found, by_hand(6, 2, clip=0.3))


# Resuming -----------------------------------------------------------------------------------------


def test_a_run_that_is_resumed_ends_with_the_same_weights(tmp_path: Path) -> None:
    estimated = {"interval": 2, "schedule": {"warmup": 3, "decay": 2, "total": 6}}
    options = {"max_epochs": 3, "accumulate_grad_batches": 2}
    whole, stopped, resumed = module(), module(), module()
    trainer(callback(**estimated), **options).fit(whole, loader(4))
    first = trainer(callback(**estimated), **{**options, "max_epochs": 1})
    first.fit(stopped, loader(4))
    first.save_checkpoint(tmp_path / "last.ckpt")
    second = trainer(callback(**estimated), **options)
    second.fit(resumed, loader(4), ckpt_path=tmp_path / "last.ckpt", weights_only=True)
    agree(weights(resumed), weights(whole), 1e-7)
    steps = [[site.step for site in vcreg_fx.sites(m)] for m in (whole, resumed)]
    assert steps[0] == steps[1] == [12, 12]


def checkpoint_of(path: Path, **more: Any) -> Path:
    made, run = module(), trainer(callback(**more))
    run.fit(made, loader(2))
    vcreg_fx.sites(made)[0].alpha = 0.125
    run.save_checkpoint(path / "one.ckpt")
    return path / "one.ckpt"


def test_a_checkpoint_brings_its_sites_where_there_is_no_rule(tmp_path: Path) -> None:
    path, made = checkpoint_of(tmp_path), module()
    run = trainer(VCRegCallback(attribute="net"), max_epochs=2)
    run.fit(made, loader(2), ckpt_path=path)
    assert [site.alpha for site in vcreg_fx.sites(made)] == [0.125, COEFFICIENTS["alpha"]]


def test_a_checkpoint_of_other_settings_is_told_and_left(tmp_path: Path) -> None:
    path, made = checkpoint_of(tmp_path), module()
    with pytest.warns(UserWarning, match="alpha is 1.0 there, and 2.0 here"):
        trainer(callback(alpha=2.0), max_epochs=2).fit(made, loader(2), ckpt_path=path)
    assert vcreg_fx.sites(made)[0].alpha == 2.0


def test_a_schedule_that_is_lost_is_told(tmp_path: Path) -> None:
    path = checkpoint_of(tmp_path, schedule={"warmup": 10})
    with pytest.warns(UserWarning, match="with a schedule of α and β, and this run has none"):
        trainer(callback(), max_epochs=2).fit(module(), loader(2), ckpt_path=path)


# Inserting, logging, warm-up ----------------------------------------------------------------------


def test_the_whole_module_with_its_example_input() -> None:
    made = module()
    made.example_input_array = torch.zeros(4, 6)
    trainer(VCRegCallback(RULE.replace("middle", "net.middle"), **COEFFICIENTS)).fit(
        made, loader(3)
    )
    assert [site.name for site in vcreg_fx.sites(made)] == ["net.middle:output", "net.fc:input"]


def test_following_what_was_inserted() -> None:
    made = module()
    vcreg_fx.insert(made.net, RULE, **INSERT)
    before = weights(made)
    trainer(VCRegCallback(), accumulate_grad_batches=2).fit(made, loader(6))
    agree(weights(made) - before, by_hand(6, 2))


def test_fitting_again_inserts_once_and_leaves_no_scale() -> None:
    made, vcreg = module(), callback()
    for each in (vcreg, vcreg, callback()):
        trainer(each, accumulate_grad_batches=2).fit(made, loader(2))
        assert [site.loss_scale for site in vcreg_fx.sites(made)] == [None, None]
    assert len(vcreg_fx.get_configs(made)) == 1


def test_the_scale_is_given_back_after_an_error() -> None:
    made = module()
    made.training_step = lambda *args: 1 / 0
    with pytest.raises(ZeroDivisionError):
        trainer(callback(), accumulate_grad_batches=2).fit(made, loader(2))
    assert vcreg_fx.sites(made)[0].loss_scale is None


def test_nothing_to_follow_is_an_error() -> None:
    with pytest.raises(vcreg_fx.InsertionError, match=r'VCRegCallback\("blocks"\)'):
        trainer(VCRegCallback()).fit(module(), loader(2))
    with pytest.raises(vcreg_fx.InsertionError, match="no attribute 'backbone'"):
        trainer(VCRegCallback("head", attribute="backbone")).fit(module(), loader(2))
    with pytest.raises(TypeError, match="alpha has no use"):
        VCRegCallback(alpha=0.5)
    with pytest.raises(TypeError, match="no field alhpa"):
        VCRegCallback("head", alhpa=0.5)
    with pytest.raises(ValueError, match="warmup=-1"):
        VCRegCallback("head", schedule={"warmup": -1})
    with pytest.raises(TypeError, match="wramup"):
        VCRegCallback("head", schedule={"wramup": 1})


def test_metrics_are_logged_at_the_trainers_interval(tmp_path: Path) -> None:
    logger = lightning.loggers.CSVLogger(tmp_path)
    run = trainer(callback(), accumulate_grad_batches=2, logger=logger, log_every_n_steps=2)
    run.fit(module(), loader(8))
    with (Path(logger.log_dir) / "metrics.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["vcreg/net/fc:input/penalty"]]
    assert [row["step"] for row in rows] == ["1", "3"]  # Lightning counts the steps before
    assert "vcreg/net/penalty" in run.callback_metrics
    silent = trainer(callback(log=False), logger=True, default_root_dir=tmp_path)
    silent.fit(module(), loader(2))
    assert not any(key.startswith("vcreg") for key in silent.callback_metrics)


def test_a_schedule_follows_the_steps_of_the_optimizer() -> None:
    lengths = {"warmup": 2, "decay": 1, "final": 0.5}
    made = module()
    before = weights(made)
    trainer(callback(schedule=lengths), accumulate_grad_batches=2).fit(made, loader(8))
    factors = [0.0, 0.5, 1.0, 1.0]
    agree(weights(made) - before, by_hand(8, 2, factor=factors.__getitem__))
    assert vcreg_fx.sites(made)[0].alpha == 0.5 * COEFFICIENTS["alpha"]


def test_a_schedule_that_was_made_before() -> None:
    made = module()
    vcreg_fx.insert(made.net, RULE, **INSERT)
    schedule = vcreg_fx.CoefficientSchedule(made.net, warmup=4)
    trainer(VCRegCallback(schedule=schedule)).fit(made, loader(3))
    assert schedule.last_step == 3 and vcreg_fx.sites(made)[0].alpha == 0.75


@pytest.mark.parametrize("k", [1, 2])
def test_manual_optimization_leaves_the_scale_alone(k: int) -> None:
    made = module(manual=k)
    before = weights(made)
    run = trainer(callback(), VCRegCallback(attribute="net"))
    vcreg_fx.insert(made.net, RULE, **INSERT)
    vcreg_fx.set_loss_scale(made, accumulation_steps=k)
    run.fit(made, loader(3 * k))
    agree(weights(made) - before, by_hand(3 * k, k))
    assert vcreg_fx.sites(made)[0].loss_scale.accumulation_steps == k


def test_another_scale_that_was_set_is_told() -> None:
    made = module()
    vcreg_fx.insert(made.net, RULE, **INSERT)
    vcreg_fx.set_loss_scale(made, 0.125)
    with pytest.warns(
        UserWarning, match="called with 0.125, and the trainer scales its loss by 0.5"
    ):
        trainer(VCRegCallback(), accumulate_grad_batches=2).fit(made, loader(2))
    assert vcreg_fx.sites(made)[0].loss_scale.read() == 0.125


# What is told without the callback ----------------------------------------------------------------


def told(made: Any, batches: int, **options: Any) -> list[str]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer(**options).fit(made, loader(batches))
    return [str(each.message) for each in caught if "VCReg" in str(each.message)]


@pytest.mark.parametrize("base", [lightning, other], ids=["lightning", "pytorch_lightning"])
def test_the_silent_cases_are_told_once(base: Any) -> None:
    made = module(base)
    vcreg_fx.insert(made.net, RULE, **INSERT)
    found = told(made, 12, base=base, accumulate_grad_batches=4)
    assert len(found) == 1 and "accumulation_steps=4" in found[0]
    assert "vcreg_fx.integrations.lightning.VCRegCallback()" in found[0]
    made = module(base)
    vcreg_fx.insert(made.net, RULE, **INSERT)
    plugin = base.plugins.MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu"))
    with pytest.raises(RuntimeError, match=r"integrations\.lightning\.VCRegCallback\(\)"):
        told(made, 2, base=base, plugins=plugin)
    made = module(base)
    vcreg_fx.insert(made.net, RULE, mode="loss", **INSERT)
    found = told(made, 3, base=base)
    assert len(found) == 1 and "loss + vcreg_fx.penalty(model)" in found[0]


def test_with_the_callback_nothing_is_told_but_unread_penalties() -> None:
    for more, expected in (({}, 0), ({"mode": "loss"}, 1), ({"ratio": 0.5}, 0)):
        run = {"accumulate_grad_batches": 2}
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            trainer(callback(**more), **run).fit(module(), loader(6))
        found = [each for each in caught if "VCReg" in str(each.message)]
        assert len(found) == expected


# The library --------------------------------------------------------------------------------------


def test_a_base_of_whichever_lightning_is_in_use(monkeypatch: pytest.MonkeyPatch) -> None:
    assert _lightning._bases() == (lightning.Callback, other.Callback)
    monkeypatch.delitem(sys.modules, "pytorch_lightning")
    assert _lightning._bases() == (lightning.Callback,)
    monkeypatch.delitem(sys.modules, "lightning.pytorch")
    monkeypatch.setitem(sys.modules, "lightning", None)
    monkeypatch.setitem(sys.modules, "pytorch_lightning", other)
    assert _lightning._bases() == (other.Callback,)
    monkeypatch.delitem(sys.modules, "pytorch_lightning")
    with monkeypatch.context() as without:
        without.setattr(sys, "path", [])
        without.setattr(sys, "meta_path", [])
        with pytest.raises(ImportError, match=r'pip install "vcreg-fx\[lightning\]"'):
            _lightning._bases()


def test_deepspeed_is_refused() -> None:
    class DeepSpeedStrategy:
        pass

    class Run:
        strategy, global_step = DeepSpeedStrategy(), 0

    for more in ({}, {"ratio": 0.5}):
        made, vcreg = module(), callback(**more)
        vcreg.setup(Run(), made, "fit")
        if more:
            vcreg.on_train_start(Run(), made)
        else:
            with pytest.raises(vcreg_fx.InsertionError, match="DeepSpeed scales the loss"):
                vcreg.on_train_start(Run(), made)
