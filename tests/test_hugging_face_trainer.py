"""In transformers' Trainer a step gets the mean of its batches' penalties; told where not."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import vcreg_fx
from tests.trainers import (
    BATCH,
    COEFFICIENTS,
    HALF,
    INSERT,
    RULE,
    SGD,
    Net,
    Samples,
    agree,
    batches_of,
    by_hand,
    forget_accelerators,
    loader,
    weights,
)
from vcreg_fx.integrations.transformers import VCRegCallback, restore

transformers = pytest.importorskip("transformers")
pytest.importorskip("accelerate")


@pytest.fixture(autouse=True)
def _forget(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Older versions leave the precision that was asked for in the environment, too."""
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")
    yield
    forget_accelerators()


class ByLabels(Net):
    """Divides the sum of its losses by the number of labels, as language models do."""

    told = False

    def forward(self, x: Tensor, labels: Tensor | None = None, **kwargs: Any) -> Any:
        logits = super().forward(x)
        if labels is None:
            return logits
        loss = nn.functional.cross_entropy(logits, labels, reduction="sum")
        ByLabels.told |= "num_items_in_batch" in kwargs
        return {"loss": loss / kwargs.get("num_items_in_batch", len(labels)), "logits": logits}


class Trainer(transformers.Trainer):
    """The Trainer, on the samples in their order."""

    def get_train_dataloader(self) -> Any:
        data = torch.utils.data.DataLoader(self.train_dataset, batch_size=BATCH)
        return self.accelerator.prepare(data)


def arguments(folder: Path, k: int = 1, **options: Any) -> Any:
    quiet = {"report_to": [], "save_strategy": "no", "disable_tqdm": True, "logging_strategy": "no"}
    fixed = {"lr_scheduler_type": "constant", "max_grad_norm": 0.0, "num_train_epochs": 1}
    given = {"use_cpu": True, "gradient_accumulation_steps": k, "remove_unused_columns": False}
    return transformers.TrainingArguments(str(folder), **{**quiet, **fixed, **given, **options})


def trainer(
    model: nn.Module, folder: Path, batches: int, *callbacks: Any, k: int = 1, ignored: int = 0,
    scaler: Any = None, **options: Any,
) -> Trainer:  # fmt: skip
    made = Trainer(
        model,
        arguments(folder, k, **options),
        train_dataset=Samples(batches, ignored),
        optimizers=(torch.optim.SGD(model.parameters(), **SGD), None),
        callbacks=list(callbacks),
    )
    made.accelerator.scaler = scaler
    return made


def callback(**more: Any) -> Any:
    return VCRegCallback(RULE, **{**INSERT, **more})


def change(folder: Path, batches: int, k: int, build: type[Net] = Net, **options: Any) -> Tensor:
    model = build()
    before = weights(model)
    trainer(model, folder, batches, callback(), k=k, **options).train()
    return weights(model) - before


# Equality -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("complete", [True, False], ids=["complete", "incomplete"])
@pytest.mark.parametrize("k", [1, 2, 4])
def test_accumulation(k: int, complete: bool, tmp_path: Path) -> None:
    batches = batches_of(k, complete)
    model = Net()
    before = weights(model)
    made = trainer(model, tmp_path, batches, callback(), k=k, max_steps=3)
    made.train()
    older = not hasattr(made, "current_gradient_accumulation_steps")
    expected = by_hand(batches, k, divide=(lambda count: k) if older else None)
    agree(weights(model) - before, expected)


@pytest.mark.parametrize("k", [1, 4])
def test_a_loss_that_is_divided_by_the_number_of_labels(k: int, tmp_path: Path) -> None:
    batches = batches_of(k, complete=False)
    found = change(tmp_path, batches, k, ByLabels, ignored=5)
    if not ByLabels.told:
        pytest.skip("this version of transformers does not tell the number of labels")
    agree(found, by_hand(batches, k, by_labels=True, ignored=5))


@pytest.mark.parametrize("k", [1, 4])
def test_bfloat16(k: int, tmp_path: Path) -> None:
    found = change(tmp_path, 3 * k, k, bf16=True)
    agree(found, by_hand(3 * k, k, dtype=torch.bfloat16), HALF)


@pytest.mark.parametrize("k", [1, 4])
def test_a_scaler_whose_scale_grows(k: int, tmp_path: Path) -> None:
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0, growth_interval=1)
    agree(change(tmp_path, 3 * k, k, scaler=scaler), by_hand(3 * k, k))
    assert scaler.get_scale() > 1024


def test_gradient_clipping(tmp_path: Path) -> None:
    agree(change(tmp_path, 6, 2, max_grad_norm=0.3), by_hand(6, 2, clip=0.3))


def test_a_length_that_is_not_known(tmp_path: Path) -> None:
    class Stream(torch.utils.data.IterableDataset):
        def __iter__(self) -> Any:
            return iter([Samples(5)[i] for i in range(5 * BATCH)])

    class WithPenalty(Net):
        def forward(self, x: Tensor, labels: Tensor | None = None) -> Any:
            result = super().forward(x, labels)
            if labels is not None:
                result["loss"] = result["loss"] + vcreg_fx.penalty(self)
            return result

    found: list[Tensor] = []
    for build, more in ((Net, {}), (WithPenalty, {"mode": "loss", "backend": "naive"})):
        model = build()
        before = weights(model)
        made = trainer(model, tmp_path, 5, callback(**more), k=2, max_steps=4)
        made.train_dataset = Stream()
        made.train()
        found.append(weights(model) - before)
    agree(*found)


# Resuming and restoring ---------------------------------------------------------------------------


def test_a_run_that_is_resumed_ends_with_the_same_weights(tmp_path: Path) -> None:
    estimated = {"interval": 2, "schedule": {"warmup": 3, "decay": 2}}
    options = {"k": 2, "save_strategy": "steps", "save_steps": 2, "num_train_epochs": 3}
    whole, resumed = Net(), Net()
    first = trainer(whole, tmp_path, 4, callback(**estimated), **options)
    first.train()
    second = trainer(resumed, tmp_path / "other", 4, callback(**estimated), **options)
    second.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    agree(weights(resumed), weights(whole), 1e-7)
    steps = [[site.step for site in vcreg_fx.sites(model)] for model in (whole, resumed)]
    assert steps == [[12, 12], [12, 12]]


def test_a_checkpoint_without_the_file_is_told(tmp_path: Path) -> None:
    options = {"save_strategy": "steps", "save_steps": 2}
    trainer(Net(), tmp_path, 4, callback(), **options).train()
    (tmp_path / "checkpoint-2" / "vcreg_fx.json").unlink()
    again = trainer(Net(), tmp_path, 4, callback(), **options)
    with pytest.warns(UserWarning, match="checkpoint-2 has no vcreg_fx.json"):
        again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))


def image_model() -> nn.Module:
    torch.manual_seed(0)
    config = transformers.ViTConfig(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32,
        image_size=8, patch_size=4, num_labels=3,
    )  # fmt: skip
    return transformers.ViTForImageClassification(config)


@pytest.mark.parametrize("demean", ["statistics", "activations"])
def test_restoring_a_model_of_from_pretrained(demean: str, tmp_path: Path) -> None:
    model = image_model()
    vit = VCRegCallback("blocks", demean=demean, alpha=0.25)
    data = [{"pixel_values": torch.randn(3, 8, 8), "labels": torch.tensor(i % 3)} for i in range(8)]
    options = {"save_strategy": "steps", "save_steps": 1, "max_steps": 2}
    made = trainer(model, tmp_path, 1, vit, **options)
    made.train_dataset = data
    made.train()
    vcreg_fx.sites(model)[0].alpha = 0.125
    made.save_model()
    for folder in (tmp_path, tmp_path / "checkpoint-2"):
        loaded = type(model).from_pretrained(folder)
        assert not vcreg_fx.sites(loaded)
        assert restore(loaded, folder) is loaded
        assert vcreg_fx.get_config(loaded)["rule"] == "blocks"
        assert [site.alpha for site in vcreg_fx.sites(loaded)] == [0.25, 0.25]
        pixels = torch.randn(2, 3, 8, 8)
        assert torch.equal(loaded.eval()(pixels).logits, model.eval()(pixels).logits)
        restore(loaded, folder)  # what is there already is left there
    other = vcreg_fx.insert(image_model(), "head")
    with pytest.raises(vcreg_fx.InsertionError, match="rule is 'blocks' there, and 'head' here"):
        restore(other, tmp_path)
    with pytest.raises(FileNotFoundError, match="has no vcreg_fx.json"):
        restore(image_model(), tmp_path / "nowhere")


# Inserting, logging, warm-up ----------------------------------------------------------------------


def test_it_is_inserted_when_the_trainer_is_made(tmp_path: Path) -> None:
    model = Net()
    trainer(model, tmp_path, 2, callback())
    assert len(vcreg_fx.sites(model)) == 2
    trainer(model, tmp_path, 2, callback()).train()
    assert len(vcreg_fx.get_configs(model)) == 1
    assert [site.loss_scale for site in vcreg_fx.sites(model)] == [None, None]


def test_a_callback_that_was_added_late_says_so(tmp_path: Path) -> None:
    model = Net()
    before = weights(model)
    made = trainer(model, tmp_path, 6, k=2)
    made.add_callback(callback())
    with pytest.warns(UserWarning, match="added after the Trainer was made"):
        made.train()
    agree(weights(model) - before, by_hand(6, 2))


def test_a_model_that_is_made_anew(tmp_path: Path) -> None:
    made = Trainer(
        model_init=Net, args=arguments(tmp_path), train_dataset=Samples(2), callbacks=[callback()]
    )
    with warnings.catch_warnings():
        warnings.filterwarnings("error", "(?s).*VCReg")
        made.train()
    assert len(vcreg_fx.sites(made.model)) == 2


def test_following_what_was_inserted(tmp_path: Path) -> None:
    model = vcreg_fx.insert(Net(), RULE, **INSERT)
    before = weights(model)
    trainer(model, tmp_path, 6, VCRegCallback(), k=2).train()
    agree(weights(model) - before, by_hand(6, 2))


def test_what_is_refused(tmp_path: Path) -> None:
    with pytest.raises(vcreg_fx.InsertionError, match=r'VCRegCallback\("blocks"\)'):
        trainer(Net(), tmp_path, 2, VCRegCallback()).train()
    made = trainer(Net(), tmp_path, 2, callback())
    made.args._n_gpu = 2
    with pytest.raises(vcreg_fx.InsertionError, match="on 2 devices in one process"):
        made.callback_handler.on_train_begin(made.args, made.state, made.control)
    made.args._n_gpu, made.args.deepspeed = 1, {}
    with pytest.raises(vcreg_fx.InsertionError, match="DeepSpeed scales the loss"):
        made.callback_handler.on_train_begin(made.args, made.state, made.control)


def test_metrics_are_logged_whenever_the_trainer_logs(tmp_path: Path) -> None:
    options = {"k": 2, "logging_strategy": "steps", "logging_steps": 2}
    made = trainer(Net(), tmp_path, 8, callback(), **options)
    made.train()
    rows = [row["step"] for row in made.state.log_history if "vcreg/fc:input/penalty" in row]
    losses = [row["step"] for row in made.state.log_history if "loss" in row]
    assert rows == losses == [2, 4]
    silent = trainer(Net(), tmp_path, 4, callback(log=False), **options)
    silent.train()
    assert not any("vcreg/penalty" in row for row in silent.state.log_history)


def test_a_schedule_follows_the_steps_of_the_optimizer(tmp_path: Path) -> None:
    model = Net()
    before = weights(model)
    scheduled = callback(schedule={"warmup": 2, "decay": 1, "final": 0.5})
    trainer(model, tmp_path, 8, scheduled, k=2).train()
    agree(weights(model) - before, by_hand(8, 2, factor=[0.0, 0.5, 1.0, 1.0].__getitem__))
    assert vcreg_fx.sites(model)[0].alpha == 0.5 * COEFFICIENTS["alpha"]
    kept = json.loads((tmp_path / "vcreg_fx.json").read_text())["schedule"]
    assert kept["last_step"] == 4


# What is told without the callback ----------------------------------------------------------------


def told(
    model: nn.Module, folder: Path, batches: int, *callbacks: Any, **options: Any
) -> list[str]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer(model, folder, batches, *callbacks, **options).train()
    return [str(each.message) for each in caught if "VCReg" in str(each.message)]


def test_the_silent_cases_are_told_once(tmp_path: Path) -> None:
    found = told(vcreg_fx.insert(Net(), RULE, **INSERT), tmp_path, 12, k=4)
    assert len(found) == 1 and "set_loss_scale(model, accumulation_steps=4)" in found[0]
    assert "[vcreg_fx.integrations.transformers.VCRegCallback()]" in found[0]
    scaler = torch.amp.GradScaler("cpu", init_scale=64.0)
    found = told(vcreg_fx.insert(Net(), RULE, **INSERT), tmp_path, 3, scaler=scaler)
    assert len(found) == 1 and "by a GradScaler (by 64 now)" in found[0]
    assert "integrations.transformers.VCRegCallback()" in found[0]
    found = told(vcreg_fx.insert(Net(), RULE, mode="loss", **INSERT), tmp_path, 3)
    assert len(found) == 1 and "loss + vcreg_fx.penalty(model)" in found[0]


def test_with_the_callback_nothing_is_told_but_unread_penalties(tmp_path: Path) -> None:
    for more, expected in (({}, 0), ({"mode": "loss"}, 1), ({"ratio": 0.5}, 0)):
        assert len(told(Net(), tmp_path, 6, callback(**more), k=2)) == expected


def test_the_loader_is_that_of_the_plain_loop(tmp_path: Path) -> None:
    made = trainer(Net(), tmp_path, 3).get_train_dataloader()
    for one, two in zip(made, loader(3), strict=True):
        assert torch.equal(one["x"], two["x"])
