"""The trainer: schedule, decay, mixing, averages, precision, logs, checkpoints, processes."""

from __future__ import annotations

import json
import math
import os
import signal
import zipfile
from dataclasses import replace

import pytest
import timm
import torch
from torch import nn
from torch.multiprocessing import spawn
from torch.utils.data import Dataset, TensorDataset

import vcreg_fx
from vcreg_fx.experiments.papers import EXPERIMENTS
from vcreg_fx.experiments.training import Stopped, TrainSettings, accuracy, fit, predict, processes
from vcreg_fx.experiments.training._batches import Batches, epoch_order, fingerprint
from vcreg_fx.experiments.training._distributed import Processes
from vcreg_fx.experiments.training._settings import (
    Average,
    averaging_weight,
    make_optimizer,
    make_schedule,
)


def data(count=64):
    generator = torch.Generator().manual_seed(1)
    labels = torch.arange(count) % 4
    images = torch.randn(count, 1, 4, 4, generator=generator)
    images[:, 0, 0] += 3 * torch.eye(4)[labels]
    return TensorDataset(images, labels)


def network(dropout=0.0, norm=True):
    torch.manual_seed(3)
    return nn.Sequential(
        nn.Flatten(), nn.Linear(16, 12), nn.BatchNorm1d(12) if norm else nn.Identity(), nn.ReLU(),
        nn.Dropout(dropout), nn.Linear(12, 4),
    )  # fmt: skip


def weights(model):
    return torch.cat([value.flatten().double() for value in model.state_dict().values()])


EVERYTHING = TrainSettings(
    epochs=4, batch_size=16, label_smoothing=0.1, mixup=0.2, cutmix=1.0, ema_decay=1 - 1e-6,
    ema_every=2, clip_norm=1.0, repeats=2,
)  # fmt: skip


def test_it_learns():
    model = network()
    history = fit(model, data(), TrainSettings(epochs=20, batch_size=16, learning_rate=0.02))
    assert accuracy(predict(model, data()), data().tensors[1]) > 0.9
    assert [row["epoch"] for row in history] == list(range(1, 21))
    assert history[-1]["loss"] < history[0]["loss"] / 2


@pytest.mark.parametrize(("optimizer", "epoch"), [("adamw", 2), ("sgd", 2), ("adamw", 4)])
def test_a_stopped_run_ends_with_the_same_weights(tmp_path, optimizer, epoch):
    settings = TrainSettings(**{**EVERYTHING.to_dict(), "optimizer": optimizer})

    def train(checkpoint, stop_after=None):
        model = vcreg_fx.insert(
            network(0.2), "head", example_inputs=(torch.zeros(2, 1, 4, 4),), beta=0.1
        )
        torch.manual_seed(5)

        def on_epoch(model, epoch):
            if epoch == stop_after:
                os.kill(os.getpid(), signal.SIGINT)
            return {"twice": 2.0 * epoch}

        history = fit(
            model, data(), settings, classes=4, seed=7, checkpoint=checkpoint, on_epoch=on_epoch
        )
        return weights(model), history

    before = signal.getsignal(signal.SIGINT)  # ignored in a shell's background
    whole, history = train(tmp_path / "whole.pt")
    with pytest.raises(Stopped, match="SIGINT"):
        train(tmp_path / "part.pt", stop_after=epoch)
    found, again = train(tmp_path / "part.pt")
    assert torch.equal(found, whole)
    assert again == history
    assert [row["twice"] for row in history] == [2.0, 4.0, 6.0, 8.0]
    assert signal.getsignal(signal.SIGINT) is before
    finished, _ = train(tmp_path / "part.pt")  # nothing is left to train
    assert torch.equal(finished, whole)


def test_a_checkpoint_of_another_run_is_refused(tmp_path):
    path = tmp_path / "one.pt"
    fit(network(), data(), TrainSettings(epochs=1, batch_size=16), checkpoint=path)
    with pytest.raises(ValueError, match="learning_rate had other values"):
        fit(network(), data(), TrainSettings(epochs=1, batch_size=16, learning_rate=1.0),
            checkpoint=path)  # fmt: skip
    with pytest.raises(ValueError, match="the seed had other values"):
        fit(network(), data(), TrainSettings(epochs=1, batch_size=16), seed=1, checkpoint=path)


def with_vcreg(rule="head", **options):
    example = (torch.zeros(2, 1, 4, 4),)
    return vcreg_fx.insert(network(), rule, example_inputs=example, **options)


class Pairs(torch.utils.data.Dataset):
    """Data that is not all in memory, and augmented at random."""

    def __init__(self, offset=0.0):
        self.data, self.offset = data(), offset

    def __len__(self):
        return len(self.data)

    def __getitem__(self, i):
        image, label = self.data[i]
        return image + self.offset + 0.01 * torch.randn(image.shape), int(label)


class Unseeded(Pairs):
    generator = torch.Generator()

    def __getitem__(self, i):
        return torch.rand((), generator=self.generator), 1


def test_a_checkpoint_of_another_model_or_of_other_data_is_refused(tmp_path):
    settings = TrainSettings(epochs=1, batch_size=16)
    images, labels = data().tensors
    few = torch.utils.data.TensorDataset(images[:48], labels[:48])
    changed = torch.utils.data.TensorDataset(images, labels.flip(0))
    fit(with_vcreg(), data(), settings, checkpoint=(one := tmp_path / "one.pt"))
    fit(with_vcreg(), Pairs(), settings, checkpoint=(two := tmp_path / "two.pt"))
    for model, found, path, what in [
        (with_vcreg(alpha=0.3), data(), one, "what is inserted"),
        (with_vcreg("modules('0')"), data(), one, "what is inserted"),
        (network(), data(), one, "what is inserted"),
        (with_vcreg(), few, one, "the number of images, the images"),
        (with_vcreg(), changed, one, "the images"),
        (with_vcreg(), Pairs(1.0), two, "the images"),
    ]:
        with pytest.raises(ValueError, match=f"{path.name} belongs to a run in which {what} had"):
            fit(model, found, settings, checkpoint=path)
    other = vcreg_fx.insert(
        nn.Sequential(nn.Flatten(), nn.Linear(16, 4)), "head", example_inputs=(images[:2],)
    )
    state = torch.load(one, weights_only=True)
    state["identity"]["what is inserted"] = json.dumps(vcreg_fx.get_configs(other))
    torch.save(state, one)
    with pytest.raises(ValueError, match=r"one\.pt belongs to another model"):
        fit(other, data(), settings, checkpoint=one)
    fit(with_vcreg(), Pairs(), settings, checkpoint=two)  # the same: nothing is left to train
    assert fingerprint(Unseeded()) == "random"


def test_steps_of_estimates_go_on_too(tmp_path):
    def train(path, stop_after=None):
        model = with_vcreg(beta=0.5, interval=3)
        torch.manual_seed(5)

        def on_epoch(model, epoch):
            if epoch == stop_after:
                os.kill(os.getpid(), signal.SIGINT)

        fit(
            model,
            data(),
            TrainSettings(epochs=3, batch_size=16),
            checkpoint=path,
            on_epoch=on_epoch,
        )
        return weights(model)

    with pytest.raises(Stopped):
        train(tmp_path / "part.pt", 1)
    assert torch.equal(train(tmp_path / "part.pt"), train(tmp_path / "whole.pt"))


def spoil(path, how):
    found = bytearray(path.read_bytes())
    if how == "bit":
        with zipfile.ZipFile(path) as archive:
            largest = max(archive.infolist(), key=lambda entry: entry.file_size)
        found[largest.header_offset + 200] ^= 1
    path.write_bytes({"bit": found, "short": found[:-200], "empty": b"", "text": b"no"}[how])


@pytest.mark.filterwarnings("ignore:.*before is damaged")
@pytest.mark.parametrize("how", ["bit", "short", "empty", "text"])
def test_a_damaged_checkpoint_is_named_and_the_one_before_it_is_used(tmp_path, how):
    def train(epochs_seen, path=tmp_path / "one.pt"):
        model = network(0.2)
        torch.manual_seed(5)
        settings = TrainSettings(epochs=4, batch_size=16)
        seen = lambda _, epoch: epochs_seen.append(epoch)  # noqa: E731
        history = fit(model, data(), settings, checkpoint=path, on_epoch=seen)
        return weights(model), history

    whole = train([])
    assert {path.name for path in tmp_path.iterdir()} == {"one.pt", "one.pt.before"}
    (tmp_path / ".one.pt.0123").touch()  # left by a process that was killed
    spoil(tmp_path / "one.pt", how)
    with pytest.warns(UserWarning, match=r"one\.pt is damaged.*goes on from the one before it"):
        again = train(epochs := [])
    assert epochs == [4]
    assert torch.equal(again[0], whole[0]) and again[1] == whole[1]
    assert not (tmp_path / ".one.pt.0123").exists()
    for path in (tmp_path / "one.pt", tmp_path / "one.pt.before"):
        spoil(path, how)
    with pytest.warns(UserWarning, match="damaged.*goes on from the beginning"):
        again = train(epochs := [])
    assert epochs == [1, 2, 3, 4]
    (tmp_path / "one.pt").unlink()  # killed when the last had become the one before it
    train(epochs := [])
    assert epochs == [4]


def test_weights_that_are_not_finite_are_no_state_to_go_on_from(tmp_path):
    path, model = tmp_path / "one.pt", network()

    def spoil_at_the_end(loss):
        spoil_at_the_end.steps += 1
        if spoil_at_the_end.steps == 8:
            with torch.no_grad():
                next(model.parameters())[0] = torch.nan

    spoil_at_the_end.steps = 0
    with pytest.raises(FloatingPointError, match=r"After epoch 2, \S+weight is not finite"):
        fit(model, data(), TrainSettings(epochs=2, batch_size=16), checkpoint=path,
            on_step=spoil_at_the_end)  # fmt: skip
    state = torch.load(path, weights_only=True)
    assert len(state["history"]) == 1
    assert all(tensor.isfinite().all() for tensor in state["model"].values())


def test_a_checkpoint_that_cannot_be_written_ends_no_training(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    path, settings = tmp_path / "one.pt", TrainSettings(epochs=1, batch_size=16)
    monkeypatch.setattr("vcreg_fx.experiments.training._resume.sync", full)
    with pytest.warns(UserWarning, match=r"one\.pt cannot be written: .*No space left"):
        assert len(fit(network(), data(), settings, checkpoint=path)) == 1
    assert list(tmp_path.iterdir()) == []


def test_a_checkpoint_of_an_earlier_version_is_refused(tmp_path):
    path, settings = tmp_path / "one.pt", TrainSettings(epochs=1, batch_size=16)
    fit(network(), data(), settings, checkpoint=path)
    state = torch.load(path, weights_only=True)
    state["format"] -= 1
    torch.save(state, path)
    with pytest.raises(ValueError, match="by an earlier version"):
        fit(network(), data(), settings, checkpoint=path)


def test_a_run_of_so_many_steps():
    losses, settings = [], TrainSettings(epochs=7, batch_size=16, steps=10)
    history = fit(network(), data(), settings, on_step=losses.append)
    assert len(losses) == 10, "64 images in batches of 16 are shuffled three times"
    assert history[0]["loss"] == pytest.approx(sum(losses) / 10)
    order = torch.cat(epoch_order(64, settings, seed=3, epoch=1))
    assert order[:128].bincount().tolist() == [2] * 64


def test_predicting_leaves_every_module_in_its_mode():
    model = network()
    model[2].eval()
    predict(model, data())
    assert [module.training for module in model] == [True, True, False, True, True, True]


def rates(steps, settings):
    """The learning rate of every step, as a share of the largest."""
    optimizer = make_optimizer(nn.Linear(2, 2), settings)
    schedule, found = make_schedule(optimizer, steps, settings), []
    for _ in range(steps):
        found.append(optimizer.param_groups[0]["lr"] / settings.learning_rate)
        optimizer.step()
        schedule.step()
    return found


def test_the_schedule():
    found = rates(100, TrainSettings(epochs=10, warmup_epochs=2, warmup_start=0.1))
    assert found[0] == pytest.approx(0.1)
    assert found[10] == pytest.approx(0.55)
    assert found[20] == 1.0
    assert found[60] == pytest.approx(0.5)
    assert found[99] == pytest.approx(0.5 * (1 + math.cos(math.pi * 79 / 80)))
    assert rates(5, TrainSettings(epochs=1, warmup_epochs=0))[0] == 1.0
    assert rates(5, TrainSettings(schedule="constant")) == [1.0] * 5


def test_weight_decay_is_an_l2_penalty_but_in_adamw():
    """In SGD and Adam it is added to the gradient; AdamW shrinks the weights."""
    found = {}
    for name in ("sgd", "adam", "adamw"):
        settings = TrainSettings(optimizer=name, weight_decay=0.5, learning_rate=0.1)
        model = nn.Linear(1, 1, bias=False)
        model.weight.data.fill_(1.0)
        model.weight.grad = torch.zeros(1, 1)
        make_optimizer(model, settings).step()
        found[name] = float(model.weight.detach())
    assert found == pytest.approx({"sgd": 0.95, "adam": 0.9, "adamw": 0.95})


def test_norms_have_a_weight_decay_of_their_own():
    model = network()
    settings = TrainSettings(weight_decay=0.3)
    weights, norms = make_optimizer(model, settings).param_groups
    assert (weights["weight_decay"], norms["weight_decay"]) == (0.3, 0.0)
    assert norms["params"] == list(model[2].parameters())  # and biases decay, as in the papers
    assert len(weights["params"]) == 4
    plain = make_optimizer(model, replace(settings, norm_weight_decay=None)).param_groups
    assert [group["weight_decay"] for group in plain] == [0.3, 0.3]
    convnext = timm.create_model("test_convnext", num_classes=3)
    weights, norms = make_optimizer(convnext, settings).param_groups
    names = {id(p): name for name, p in convnext.named_parameters()}
    found = {names[id(p)] for p in norms["params"]}
    assert found == {name for name in names.values() if ".norm" in name or ".downsample.0" in name
                     or name.startswith("stem.1")}  # fmt: skip
    assert any("gamma" in names[id(p)] for p in weights["params"])  # layer scale
    assert len(norms["params"]) + len(weights["params"]) == len(names)


def test_the_order_of_an_epoch():
    settings = TrainSettings(batch_size=8)
    order = epoch_order(30, settings, seed=1, epoch=1)
    assert [len(step) for step in order] == [8, 8, 8]  # the incomplete batch is left out
    assert len(torch.cat(order).unique()) == 24
    assert not torch.equal(torch.cat(order), torch.cat(epoch_order(30, settings, 1, 2)))
    assert [len(step) for step in epoch_order(5, settings, 0, 1)] == [5]
    repeated = torch.cat(epoch_order(30, TrainSettings(batch_size=8, repeats=2), 0, 1))
    assert repeated.bincount().max() == 2
    assert len(repeated) == 24


@pytest.mark.parametrize("repeats", [1, 2, 3, 4])
@pytest.mark.parametrize("size", [1, 2, 8])
def test_no_image_is_mixed_with_its_own_copy(repeats, size):
    """Mixup and cutmix mix an image with the one before it in the batch of its process."""
    settings = TrainSettings(batch_size=64, repeats=repeats)
    index = TensorDataset(torch.arange(300), torch.zeros(300))
    cpu, shares = torch.device("cpu"), []
    for rank in range(size):
        batches = Batches(index, settings, Processes(rank, size, cpu))
        shares.append([images for images, _ in batches.epoch(0, 1)])
    for together in zip(*shares, strict=True):
        assert not any((images == images.roll(1)).any() for images in together)
    order = epoch_order(300, settings, 0, 1)
    for step, *together in zip(order, *shares, strict=True):
        assert torch.equal(torch.cat(together).sort().values, step.sort().values)
        if repeats == 1:
            assert torch.equal(torch.stack(together, dim=1).flatten(), step)
        if repeats <= size:  # copies of an image are in several processes, as in torchvision's
            assert all(len(images.unique()) == len(images) for images in together)


@pytest.mark.parametrize(("count", "batch"), [(300, 66), (30, 66)])
def test_a_batch_that_processes_cannot_share_is_refused(count, batch):
    index = TensorDataset(torch.arange(count), torch.zeros(count))
    with pytest.raises(ValueError, match=f"{min(count, batch)} cannot be shared equally by 4"):
        Batches(index, TrainSettings(batch_size=batch), Processes(0, 4, torch.device("cpu")))


def test_processes_draw_apart():
    """Of all seeds and processes, no two draw the same; the first draws what the seed says."""
    found = {}
    for seed in range(8):
        for rank in range(8):
            torch.manual_seed(seed)
            expected = torch.rand(3)
            torch.manual_seed(seed)
            where = Processes(rank, 8, torch.device("cpu"))
            where.draw_apart()
            found[seed, rank] = torch.rand(3)
            assert rank or torch.equal(found[seed, rank], expected)
            where.draw_apart()  # by another training: it goes on
            assert not torch.equal(torch.rand(3), found[seed, rank])
    assert len(torch.stack([*found.values()]).unique(dim=0)) == 64


class Slow(Dataset):
    """The same data, one pair after the other."""

    def __init__(self, pairs):
        self.pairs = pairs

    def __len__(self):
        return len(self.pairs)

    def __getitem__(self, index):
        return self.pairs[index]


def test_data_in_files_trains_like_data_in_memory():
    settings = TrainSettings(epochs=2, batch_size=16)
    found = []
    for pairs in (data(), Slow(data())):
        model = network()
        fit(model, pairs, settings)
        found.append(weights(model))
        assert len(predict(model, pairs)) == 64
    assert torch.equal(*found)


AVERAGED = TrainSettings(epochs=2, batch_size=16, ema_decay=1 - 1e-6, ema_every=1)


def test_averaged_weights():
    """Copied in the warm-up, then an average that VCReg's buffers and batch norms share in."""
    seen = []
    model, reference = inserted(demean="activations"), inserted(demean="activations")
    fit(model, data(), AVERAGED, on_epoch=lambda model, epoch: seen.append(weights(model)))
    live = []
    plain = TrainSettings(**{**AVERAGED.to_dict(), "ema_decay": 0.0})
    fit(reference, data(), plain, on_epoch=lambda model, epoch: live.append(weights(model)))
    assert torch.equal(seen[0], live[0])
    assert torch.equal(weights(model), seen[1])
    assert "running_mean" in " ".join(model.state_dict())
    moved = [(found - live[0])[live[0] != live[1]].abs() for found in (seen[1], live[1])]
    assert bool((moved[0] > 0).all())
    assert 0 < moved[0].norm() < moved[1].norm() / 2


def test_counts_of_batch_norms_are_not_averaged():
    model = network()
    fit(model, data(), AVERAGED)
    assert int(model[2].num_batches_tracked) == 8


def share_of_the_start(settings, steps):
    """What the averaged weights hold, at the end, of the weights at the end of the warm-up."""
    model = nn.Linear(1, 1, bias=False)
    model.weight.data.fill_(1.0)
    average = Average(model, settings, steps)
    warm = round(settings.warmup_epochs / settings.epochs * steps)
    for step in range(steps):
        if step == warm:
            model.weight.data.zero_()
        average.update(step)
    return float(average.model.weight.detach())


@pytest.mark.parametrize("name", sorted(set(EXPERIMENTS) - {"timing"}))
@pytest.mark.parametrize("scale", ["quick", "default", "paper", "large"])
def test_nothing_of_the_random_start_is_left_in_the_average(name, scale):
    if scale not in EXPERIMENTS[name].scales:
        pytest.skip("has none")
    preset = EXPERIMENTS[name].presets(scale, None)
    settings = preset.training
    images = {"imagenet": 1_281_167, "cifar100": 50_000, "glyphs-200k": 200_000}.get(
        preset.data, 1_000
    )
    images = preset.train_images or images
    steps = settings.epochs * max(images // settings.batch_size, 1)
    assert share_of_the_start(settings, steps) <= 0.01


def test_the_average_of_torchvisions_reference():
    """1 − decay = min(1, (1 − 0.99998) · batch · 32 / epochs), on ImageNet; then updates of it."""
    settings = EXPERIMENTS["placement"].presets("paper", None).training
    steps = 90 * (1_281_167 // 4096)
    assert (settings.ema_decay, settings.ema_every, steps) == (0.99998, 32, 28_080)
    weight = averaging_weight(settings, steps)
    assert weight == pytest.approx((1 - 0.99998) * 4096 * 32 / 90, rel=0.003)
    # CIFAR100 is 26 times smaller, and an average of that decay would hold 40 % of its start.
    hierarchy = EXPERIMENTS["hierarchy"].presets("paper", None).training
    plain = (1 - 0.99998) * 4096 * 32 / 200
    assert (1 - plain) ** (12 * 195 // 32) == pytest.approx(0.38, abs=0.01)
    assert averaging_weight(hierarchy, 12 * 200) == pytest.approx(
        plain * 1_281_167 / 50_000, rel=0.03
    )
    assert averaging_weight(settings, 20) == 1.0


def test_the_penalty_of_mode_loss_is_added():
    """Both modes train alike: in one the trainer adds the penalty, in the other backward does."""
    found = []
    for mode in ("gradient", "loss"):
        model = network()
        vcreg_fx.insert(
            model, "head", example_inputs=(torch.zeros(2, 1, 4, 4),), mode=mode, alpha=2.0, beta=1.0
        )
        fit(model, data(), TrainSettings(epochs=2, batch_size=16, optimizer="sgd"))
        found.append(weights(model))
    plain = network()
    fit(plain, data(), TrainSettings(epochs=2, batch_size=16, optimizer="sgd"))
    assert torch.allclose(*found, atol=1e-6)
    assert not torch.allclose(weights(plain), found[0], atol=1e-3)


def test_bfloat16():
    model = network()
    history = fit(model, data(), TrainSettings(epochs=2, batch_size=16, amp="bfloat16"))
    assert math.isfinite(history[-1]["loss"])
    assert next(model.parameters()).dtype == torch.float32


def test_divergence_is_an_error():
    with pytest.raises(FloatingPointError, match="has diverged"):
        fit(network(norm=False), data(), TrainSettings(
            epochs=5, batch_size=16, optimizer="sgd", learning_rate=1e30, warmup_epochs=0,
        ))  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"optimizer": "adamax"}, "optimizer='adamax' must be one of"),
        ({"amp": "float8"}, "amp='float8'"),
        ({"epochs": 0}, "epochs=0 must be at least 1"),
        ({"steps": 2}, "steps=2 must be at least 3"),
        ({"learning_rate": 0}, "must be positive"),
        ({"label_smoothing": 1.0}, "label_smoothing=1.0 must be from 0"),
    ],
)
def test_settings_that_cannot_be(changes, message):
    with pytest.raises(ValueError, match=message):
        TrainSettings(**changes)


def test_data_that_cannot_be_trained_on():
    with pytest.raises(ValueError, match="1 images; 2 are needed"):
        fit(network(), data(1))
    with pytest.raises(ValueError, match="how many classes"):
        fit(network(), data(), TrainSettings(mixup=0.2))


def test_tensorboard_has_every_epoch(tmp_path):
    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    settings = TrainSettings(epochs=3, batch_size=16)
    history = fit(network(), data(), settings, log=tmp_path / "logs")
    found = events.EventAccumulator(str(tmp_path / "logs")).Reload()
    values = [event.value for event in found.Scalars("loss")]
    assert values == pytest.approx([row["loss"] for row in history], rel=1e-6)


def train_on_a_rank(rank, folder):
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2
    )
    model = inserted(sync=True)
    settings = TrainSettings(epochs=3, batch_size=16)
    history = fit(model, data(), settings, checkpoint=f"{folder}/checkpoint.pt")
    torch.save((weights(model), history[-1]["loss"]), f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


def test_processes_wait_for_the_one_that_measures(monkeypatch):
    """Probes of ImageNet's size take longer than the ten minutes that nccl waits."""
    given = {}
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr("torch.distributed.init_process_group", lambda *_, **k: given.update(k))
    processes("cpu")
    assert given["timeout"].days >= 7


def inserted(**changes):
    return vcreg_fx.insert(
        network(norm=False), "head", example_inputs=(torch.zeros(2, 1, 4, 4),), **changes
    )


@pytest.mark.slow
def test_two_processes_train_as_one(tmp_path):
    """With ``sync=True``, VCReg sees the batch of both."""
    spawn(train_on_a_rank, (str(tmp_path),), nprocs=2)
    found = [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)]
    model = inserted()
    history = fit(model, data(), TrainSettings(epochs=3, batch_size=16))
    assert torch.equal(found[0][0], found[1][0])
    assert torch.allclose(found[0][0], weights(model), atol=1e-4)
    assert found[0][1] == pytest.approx(history[-1]["loss"], abs=1e-4)
