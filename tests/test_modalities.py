"""Two modalities (VICReg's tables 3 and 6): what is drawn, what is lost, what is found again."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest
import torch
import torchvision
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional as F

from vcreg_fx.ablation import Trial
from vcreg_fx.experiments.images._glyphs import ALPHABETS
from vcreg_fx.experiments.papers import EXPERIMENTS, reproduce
from vcreg_fx.experiments.papers._modalities import (
    CLASSES,
    Modalities,
    ModalitiesTask,
    Names,
    branched_vicreg,
    cosines,
    letters,
    mel_spectrograms,
    names_of,
    recalls,
    sounds,
    vse_loss,
)
from vcreg_fx.experiments.papers._networks import plain_resnet18

EXPERIMENT = EXPERIMENTS["modalities"]


def tiny():
    """The quick preset, with little of everything."""
    preset = EXPERIMENT.presets("quick", None)
    options = {
        **preset.options, "clips": 100, "test_clips": 50, "test_images": 125, "length": 512,
        "waves": 4, "spectra": 4, "hearing": {"epochs": 1, "batch_size": 50},
    }  # fmt: skip
    training = replace(preset.training, epochs=1)
    return preset.but(train_images=130, training=training, options=options)


# What is learned from -----------------------------------------------------------------------


def test_names_are_unicodes():
    numbers = names_of("AΩ")
    texts = ["".join(chr(int(c) + 31) for c in row if c) for row in numbers]
    assert texts == ["LATIN CAPITAL LETTER A", "GREEK CAPITAL LETTER OMEGA"]
    images, labels = letters(60, 0, 24, ("Latin", "Greek", "Cyrillic"))
    assert images.shape == (60, 3, 24, 24)
    assert labels[:2].tolist() == [0, 1] and labels.max() == 54 and labels[55] == 0
    assert letters(1, 0, 24, tuple(ALPHABETS))[0].shape == (1, 3, 24, 24)


def test_sounds_have_the_frequencies_and_shapes_of_their_classes():
    waves, labels = sounds(200, 5, 2_048)
    assert waves.shape == (200, 1, 2_048) and labels.bincount().tolist() == [4] * CLASSES
    assert torch.equal(sounds(100, 5, 2_048)[0], waves[:100]), "more sounds leave the first alone"
    assert not torch.equal(sounds(100, 7, 2_048)[0], waves[:100])
    halves = waves.square().view(200, 2, -1).mean(dim=2)
    fading, swelling = (halves[labels // 10 == shape] for shape in (1, 2))
    assert ((fading[:, 0] > fading[:, 1]) & (swelling[:, 1] > swelling[:, 0])).double().mean() > 0.9


def test_a_mel_spectrogram_is_highest_where_the_tone_is():
    t = torch.arange(2_000) / 2_000
    tones = torch.stack([torch.sin(2 * math.pi * hertz * t) for hertz in (100, 300, 750)])
    found = mel_spectrograms(tones[:, None])
    assert found.shape == (3, 1, 32, 63)
    assert found.amin(dim=(1, 2, 3)).tolist() == [0] * 3
    assert found.amax(dim=(1, 2, 3)).tolist() == [1] * 3
    mel = [2595 * math.log10(1 + hertz / 700) for hertz in (100, 300, 750, 1_000)]
    bands = found.mean(dim=3).squeeze(1).argmax(dim=1)
    for band, place in zip(bands.tolist(), mel, strict=False):
        assert band == pytest.approx(33 * place / mel[-1] - 1, abs=1)


# What learns --------------------------------------------------------------------------------


def test_a_name_is_read_to_its_end():
    torch.manual_seed(0)
    reader = Names(6, 5)
    numbers = names_of("AΩ")
    found = reader(numbers)
    alone = reader(numbers[:1, : int((numbers[0] > 0).sum())])
    torch.testing.assert_close(found[:1], alone)
    _, state = reader.gru(reader.embedding(numbers[1:]))
    torch.testing.assert_close(found[1:], state[-1])


@pytest.mark.parametrize(("dimensions", "shape"), [(1, (200,)), (2, (40, 30))])
def test_resnet_18_in_one_dimension_and_two(dimensions, shape):
    """The layers of torchvision's, in order, with as many parameters at its width."""
    network = plain_resnet18(dimensions, 64).eval()
    assert network(torch.zeros(2, 1, *shape)).shape == (2, 512)
    kinds = (nn.Conv1d, nn.Conv2d)
    strides = [m.stride[0] for m in network.modules() if isinstance(m, kinds)]
    theirs = torchvision.models.resnet18()
    assert strides == [m.stride[0] for m in theirs.modules() if isinstance(m, kinds)]
    if dimensions == 2:
        theirs.conv1, theirs.fc = nn.Conv2d(1, 64, 7, 2, 3, bias=False), nn.Identity()
        theirs.load_state_dict(
            dict(zip(theirs.state_dict(), network.state_dict().values(), strict=True))
        )
        x = torch.randn(2, 1, *shape)
        torch.testing.assert_close(network(x), theirs.eval()(x))


# What it is trained with --------------------------------------------------------------------


def test_vse_by_hand():
    torch.manual_seed(0)
    z, other = torch.randn(5, 3, requires_grad=True), torch.randn(5, 3)
    same = torch.eye(5, dtype=torch.bool)
    same[0, 3] = same[3, 0] = True
    for given in (None, same):
        skipped = torch.eye(5, dtype=torch.bool) if given is None else given
        total = 0.0
        s = [[F.cosine_similarity(a, b, dim=0) for b in other] for a in z]
        for i in range(5):
            rivals = [j for j in range(5) if not skipped[i, j]]
            total += max(0.2 - s[i][i] + s[i][j] for j in rivals).clamp_min(0)
            total += max(0.2 - s[i][i] + s[j][i] for j in rivals).clamp_min(0)
        found = vse_loss(z, other, given)
        torch.testing.assert_close(found, total / 5)
        gradients = [torch.autograd.grad(value, z)[0] for value in (found, total / 5)]
        torch.testing.assert_close(*gradients)


def test_vicreg_with_equal_branches_is_lightlys():
    lightly = pytest.importorskip("lightly.loss")
    torch.manual_seed(0)
    z, other = 0.1 * torch.randn(8, 5), 0.2 * torch.randn(8, 5)
    torch.testing.assert_close(branched_vicreg(z, other), lightly.VICRegLoss()(z, other))
    apart = branched_vicreg(z, other, own=3.0) - branched_vicreg(z, other)
    of_other = branched_vicreg(z, other, own=1.0) - branched_vicreg(z, other, own=0.0)
    torch.testing.assert_close(apart, 2 * of_other)
    of_first = branched_vicreg(other, z, own=1.0) - branched_vicreg(other, z, own=0.0)
    invariance = 25 * (z - other).square().mean()
    torch.testing.assert_close(branched_vicreg(z, other), invariance + of_first + of_other)


def test_recalls_by_hand():
    names = torch.eye(12)
    images = torch.stack([names[0], names[1], 0.9 * names[2] + names[0]])
    found = recalls(cosines(images, names), torch.tensor([0, 1, 2]))
    assert found["name_1"] == pytest.approx(2 / 3) and found["name_5"] == 1
    assert found["image_1"] == 1, "only names that have images are asked for"
    wrong = recalls(cosines(images, names), torch.tensor([3, 3, 3]))
    assert (wrong["name_1"], wrong["name_10"], wrong["image_10"]) == (0, pytest.approx(1), 1)


# The experiment -----------------------------------------------------------------------------


def test_the_presets_numbers_are_the_papers():
    """Table 3 and D.2; of VSE++ (Faghri et al. 2018) what section 5.3 takes over."""
    preset = EXPERIMENT.presets("paper", None)
    model = Modalities(preset.but(options={**preset.options, "expander": (8, 8)}))
    wave, spectrum = model.sounds.first[0], model.sounds.second[0]
    assert wave.eval()(torch.zeros(1, 1, 400)).shape == (1, 384)
    assert spectrum.eval()(torch.zeros(1, 1, 32, 32)).shape == (1, 512)
    assert (preset["clips"], preset["test_clips"], CLASSES) == (1_600, 400, 50)
    hearing = replace(preset.training, **preset["hearing"])
    assert (hearing.optimizer, hearing.learning_rate, hearing.epochs) == ("adamw", 0.0005, 100)
    assert preset["expander"] == (8192, 8192, 8192)
    assert model.pictures.second[0].gru.hidden_size == 1024
    assert model.pictures.second[0].embedding.embedding_dim == 300
    seen = preset.training
    assert (seen.epochs, seen.batch_size, seen.learning_rate) == (30, 128, 2e-4)
    rows = EXPERIMENT.paper.rows
    assert rows["VICReg"] == (33.6, 62.7, 77.9, 45.2, 76.1, 84.2, 78.4)
    assert rows["Barlow Twins"][-1] == 75.4 and "72.7" in EXPERIMENT.paper.protocol


def test_arms_are_the_rows_of_both_tables():
    arms = EXPERIMENT.arms(EXPERIMENT.presets("default", None))
    assert [(arm.fixed["loss"], len(arm.points)) for arm in arms] == [
        ("barlow", 1), ("vse", 1), ("supervised", 1), ("vicreg", 1), ("vicreg", 2),
    ]  # fmt: skip


@pytest.mark.parametrize("loss", ["vicreg", "barlow", "vse", "supervised"])
def test_each_loss_trains_what_it_is_about(tmp_path, loss):
    task = ModalitiesTask(tiny(), None, None, tmp_path)
    torch.manual_seed(0)
    model = task.build()
    before = {name: p.clone() for name, p in model.named_parameters()}
    trial = Trial("baseline", None, 0, {}, {"split": "test", "loss": loss})
    task.train(model, trial)
    moved = {
        name.split(".")[0] + "." + name.split(".")[1]
        for name, p in model.named_parameters()
        if not torch.equal(p, before[name])
    }
    branches = {"pictures.first", "pictures.second", "sounds.first", "sounds.second"}
    supervised = {"pictures.first", "sounds.second", "reader.1", "listener.1"}
    assert moved == (supervised if loss == "supervised" else branches)
    found = task.evaluate(model, trial)
    assert set(found) - {"loss"} == {metric.name for metric in EXPERIMENT.metrics}
    assert all(0 <= value <= 1 for name, value in found.items() if name != "loss")
    held_out = task.evaluate(model, replace(trial, params={**trial.params, "split": "validation"}))
    assert held_out != found, "the search measures on what the test does not"


@pytest.mark.slow
def test_branches_find_each_other(tmp_path):
    """A few steps at one letter an image are enough to find names far more often than by chance."""
    preset = tiny()
    training = replace(preset.training, epochs=60, batch_size=55)
    few = preset.but(train_images=110, training=training, options={**preset.options, "clips": 50})
    task = ModalitiesTask(few, None, None, tmp_path)
    torch.manual_seed(0)
    model, trial = task.build(), Trial("b", None, 0, {}, {"split": "test", "loss": "vicreg"})
    task.train(model, trial)
    images, labels = letters(110, 0, 24, tuple(preset["alphabets"]))
    with torch.no_grad():
        scores = cosines(model.eval().pictures(images), model.pictures.second(task._names))
    assert recalls(scores, labels)["name_10"] > 0.3


@pytest.mark.slow
def test_a_study_of_both_tables(tmp_path):
    outcome = reproduce("modalities", tmp_path / "out", preset=tiny())
    text = outcome.to_markdown()
    assert "--data" not in text and "and 100 sounds" in text
    assert "| Contrastive (VSE++) | 30.3 | 59.4 | 72.4 | 41.3 | 71.1 | 81.2 | – |" in text
    report = json.loads((tmp_path / "out" / "modalities.json").read_text())
    assert [row["name"] for row in report["rows"]] == [arm.name for arm in EXPERIMENT.arms(tiny())]


@pytest.mark.parametrize("loss", ["vicreg", "barlow", "vse", "supervised"])
def test_all_tensors_meet_on_the_device(tmp_path, monkeypatch, loss):
    """On a GPU, which fake tensors stand for."""
    place = "vcreg_fx.experiments.papers._modalities"

    def step(model, data, settings, *, loss, **_):
        images, labels = (part[:8].to("cuda") for part in data.tensors)
        found = (loss or F.cross_entropy)(model(images), labels)
        assert found.device.type == "cuda"
        return [{"loss": 0.0}]

    def given(scores, labels):
        assert scores.device == labels.device == torch.device("cpu")
        return {"name_1": 0.0}

    def probed(*parts):
        assert {part.device.type for part in parts} == {"cpu"}
        return type("Probed", (), {"accuracy": 0.0})

    monkeypatch.setattr(f"{place}.fit", step)
    monkeypatch.setattr(  # no GRU takes fake tensors
        Names, "forward",
        lambda self, names: self.embedding(names).sum(1) @ self.gru.weight_ih_l0[:64].T,
    )  # fmt: skip
    monkeypatch.setattr(f"{place}.recalls", given)
    monkeypatch.setattr(f"{place}.linear_probe", probed)
    monkeypatch.setattr(f"{place}.accuracy", lambda *_: 0.0)
    preset, trial = tiny(), Trial("arm", None, 0, {}, {"loss": loss, "split": "test"})
    with FakeTensorMode():
        monkeypatch.setattr(
            f"{place}.sounds",
            lambda n, *_: (torch.zeros(n, 1, 512), torch.zeros(n, dtype=torch.long)),
        )
        monkeypatch.setattr(
            f"{place}.letters",
            lambda n, *_: (torch.zeros(n, 3, 24, 24), torch.zeros(n, dtype=torch.long)),
        )
        task = ModalitiesTask(preset, None, None, tmp_path)
        with torch.device("cuda"):
            model = task.build()
        task.train(model, trial)
        task.evaluate(model, trial)
