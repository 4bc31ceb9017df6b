"""The papers' experiments: what is trained on what, fair searches, stopping and going on."""

from __future__ import annotations

import copy
import gzip
import json
import math
import os
import shlex
import signal
import struct
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset
from typer.testing import CliRunner

import vcreg_fx
from tests.ranks import torchrun
from vcreg_fx.ablation import AblationError, AblationOptions, Trial
from vcreg_fx.cli._app import app
from vcreg_fx.evaluation import ProbeResult
from vcreg_fx.experiments.images import (
    CIFAR100_SUPERCLASSES,
    DataError,
    ImageData,
    ImageSet,
    balanced_indices,
    load_images,
    long_tail_counts,
    long_tail_indices,
    read_classes,
    shot_groups,
    split_indices,
)
from vcreg_fx.experiments.images._datasets import by_label
from vcreg_fx.experiments.images._downstream import TORCHVISION, Downstream, load_downstream
from vcreg_fx.experiments.papers import (
    EXPERIMENTS,
    Arm,
    CifarResNet,
    Preset,
    ReproductionError,
    _noise,
    _reproduce,
    _transfer,
    render,
    reproduce,
    write_evidence,
)
from vcreg_fx.experiments.papers._hierarchy import HierarchyTask
from vcreg_fx.experiments.papers._image_task import Roles, with_new_head
from vcreg_fx.experiments.papers._long_tail import LongTailTask
from vcreg_fx.experiments.papers._networks import find_network
from vcreg_fx.experiments.papers._noise import NoiseTask
from vcreg_fx.experiments.papers._outcome import SUMMARY, generated, section, summary
from vcreg_fx.experiments.papers._study import Study
from vcreg_fx.experiments.papers._transfer import TransferTask
from vcreg_fx.experiments.papers._two_moons import (
    Layers,
    TwoMoonsTask,
    field_of,
    largest_margin,
    margin_of,
    moons,
)
from vcreg_fx.experiments.training import Stopped, TrainSettings, fit

ROOT = Path(__file__).resolve().parent.parent
QUICK = (
    "transfer", "video", "noise", "placement", "hierarchy", "long-tail", "two-moons", "collapse",
)  # fmt: skip
SELF_SUPERVISED = ("ssl", "vicreg", "vicreg-terms", "modalities")


def trial(split, seed=0, **params):
    return Trial("baseline", None, seed, {}, {"split": split, **params})


# The papers' protocols, on index lists alone ------------------------------------------------


def cifar(classes):
    """Data with CIFAR's labels, each image a single pixel."""
    train, test = (torch.arange(classes).repeat(n // classes) for n in (50_000, 10_000))
    sets = [ImageSet.of(torch.zeros(len(labels), 3, 1, 1), labels) for labels in (train, test)]
    groups = by_label(CIFAR100_SUPERCLASSES) if classes == 100 else {}
    return ImageData(f"CIFAR{classes}", *sets, tuple(map(str, range(classes))), groups)


CIFAR10_LT = [5000, 2997, 1796, 1077, 645, 387, 232, 139, 83, 50]


@pytest.mark.parametrize(("classes", "first", "last"), [(10, 5000, 50), (100, 500, 5)])
def test_long_tail_preset_has_the_papers_counts(tmp_path, classes, first, last):
    preset = EXPERIMENTS["long-tail"].presets("paper", f"cifar{classes}")
    assert (preset.network, preset["imbalance"]) == ("resnet32", 100)
    task = LongTailTask(preset, cifar(classes), find_network("resnet32"), tmp_path)
    roles = task.roles(trial("test"))
    counts = roles.train.labels.bincount().tolist()
    assert (counts[0], counts[-1]) == (first, last)
    assert counts == sorted(counts, reverse=True)
    assert classes != 10 or counts == CIFAR10_LT
    assert roles.measure.labels.bincount().tolist() == [10_000 // classes] * classes


def test_the_search_of_the_long_tail_holds_out_images_of_its_own(tmp_path):
    preset = EXPERIMENTS["long-tail"].presets("paper", "cifar10")
    data = cifar(10)
    data.train.pairs.tensors[0][:, 0, 0, 0] = torch.arange(50_000)
    task = LongTailTask(preset, data, find_network("resnet32"), tmp_path)
    roles = task.roles(trial("validation"))
    assert roles.train.labels.bincount()[0] == 4500
    assert len(roles.measure) == 5000
    used, held = (
        part.pairs.tensors[0][:, 0].flatten().tolist() for part in (roles.train, roles.measure)
    )
    assert not set(used) & set(held)


def test_hierarchy_preset_has_the_papers_superclasses(tmp_path):
    preset = EXPERIMENTS["hierarchy"].presets("paper", None)
    assert (preset.data, preset.network) == ("cifar100", "convnext-atto")
    assert preset.training.epochs == 200
    task = HierarchyTask(preset, cifar(100), find_network("convnext-atto"), tmp_path)
    roles = task.roles(trial("test"))
    coarse = task.labelled(roles.train).labels
    assert task.outputs == 20
    assert coarse.bincount().tolist() == [2500] * 20
    # The first of the pairs that the data set's files hold as fine and coarse labels.
    pairs = {0: 4, 1: 1, 2: 14, 3: 8, 4: 0, 5: 6, 19: 11, 55: 0, 82: 2, 92: 2, 99: 13}
    assert {fine: int(task.data.group_of[fine]) for fine in pairs} == pairs


@pytest.mark.parametrize("name", ["hierarchy", "long-tail", "placement", "collapse"])
def test_paper_presets_search_the_papers_grid(name):
    preset = EXPERIMENTS[name].presets("paper", None)
    assert sorted(preset.grid["alpha"]) == [0.16, 0.32, 0.64, 1.28]
    assert sorted(preset.grid["beta"]) == [0.01, 0.02, 0.04, 0.08, 0.16]
    assert sorted(preset.grid["learning_rate"]) == [0.008, 0.016]
    first, *others = EXPERIMENTS[name].arms(preset)
    assert first.rule is None
    assert len(first.points) == 2
    searched = [arm for arm in others if "alpha" in arm.grid]
    assert {len(arm.points) for arm in searched} == {40}
    found = {arm.name: len(arm.points) for arm in others if arm not in searched}
    assert set(found.values()) == {2, 4}  # the layer alone; two ratios
    assert all((count == 2) == name.endswith("mean removal alone") for name, count in found.items())


def test_transfer_compares_competitors_and_placements():
    arms = EXPERIMENTS["transfer"].arms(EXPERIMENTS["transfer"].presets("default", None))
    assert [(arm.name, arm.rule) for arm in arms] == [
        ("no VCReg", None), ("DeCov", "head"), ("WLD-Reg", "head"),
        ("SIGReg", "head"), ("Radial-VCReg", "head"),
        ("mean removal alone", "blocks"), ("VCReg", "blocks"), ("VCReg, mean removed", "blocks"),
        ("VCReg, Algorithm 1", "blocks"), ("VCReg, Algorithm 1, mean removed", "blocks"),
        ("VCReg, ratio kept", "blocks"), ("VCReg, calibrated", "blocks"),
        ("VCReg1", "VCReg1"), ("VCReg3", "VCReg3"), ("VCReg4", "VCReg4"),
    ]  # fmt: skip
    found = [arm.fixed.get("regularizer") for arm in arms[:6]]
    assert found == [None, "decov", "wld", "sigreg", "radial", None]


def test_placement_compares_the_four_placements():
    arms = EXPERIMENTS["placement"].arms(EXPERIMENTS["placement"].presets("paper", None))
    assert list(dict.fromkeys(arm.rule for arm in arms)) == [
        None, "VCReg1", "VCReg2", "VCReg3", "VCReg4",
    ]  # fmt: skip


@pytest.mark.parametrize("name", QUICK)
def test_every_experiment_tells_the_layer_from_the_penalty(name):
    """None, the mean removal layer alone, and both conventions with it and without."""
    arms = EXPERIMENTS[name].arms(EXPERIMENTS[name].presets("default", None))
    by_rule = {}
    for arm in arms:
        by_rule.setdefault(arm.rule, []).append(arm)
    assert by_rule.pop(None)[0].fixed == {}
    if name == "transfer":  # where VCReg acts elsewhere, and competitors, are one arm each
        by_rule = {"blocks": by_rule["blocks"]}
    assert by_rule
    for found in by_rule.values():
        alone = [arm.fixed for arm in found if "alpha" in arm.fixed]
        assert alone == [{"demean": "activations", "alpha": 0.0, "beta": 0.0}]
        kinds = [
            (arm.fixed["convention"], arm.fixed.get("demean", "statistics"))
            for arm in found if "alpha" in arm.grid
        ]  # fmt: skip
        strengths = [arm.grid.keys() & {"ratio", "calibrated"} for arm in found]
        if found[0].rule in {"blocks", "head", "VCReg2"} or name == "two-moons":
            assert [kind for kind in strengths if kind] == [{"ratio"}, {"calibrated"}]
        assert sorted(kinds) == sorted(
            (convention, demean)
            for convention in ("exact", "algorithm1")
            for demean in ("statistics", "activations")
        )
    assert len({arm.name for arm in arms}) == len(arms)


class MeanRemoval(nn.Module):
    """Appendix A's layer, by itself: less the batch mean, in eval mode less a running mean."""

    def __init__(self, channels):
        super().__init__()
        self.register_buffer("mean", torch.zeros(channels))

    def forward(self, x):
        if not self.training:
            return x - self.mean
        found = x.mean(dim=0)
        self.mean.lerp_(found.detach(), 0.1)
        return x - found


def test_vcreg_without_strength_is_the_mean_removal_layer():
    """α = β = 0 with ``demean="activations"`` trains the same weights, bit for bit."""
    torch.manual_seed(0)
    plain = network((1, 4, 4), 4)
    model, layers = copy.deepcopy(plain), list(copy.deepcopy(plain))
    reference = nn.Sequential(*layers[:3], MeanRemoval(8), layers[3], MeanRemoval(8), *layers[4:])
    arm = next(arm for arm in EXPERIMENTS["hierarchy"].arms(TINY) if "alpha" in arm.fixed)
    vcreg_fx.insert(model, arm.rule, example_inputs=(torch.zeros(2, 1, 4, 4),), **arm.fixed)
    assert len(vcreg_fx.sites(model)) == 2
    images, labels = torch.randn(64, 1, 4, 4) + 1, torch.arange(64) % 4
    trained, answers = [], []
    for each in (model, reference, plain):
        torch.manual_seed(1)
        fit(each, TensorDataset(images, labels), TrainSettings(epochs=3, batch_size=16))
        trained.append(torch.cat([parameter.flatten() for parameter in each.parameters()]))
        answers.append(each.eval()(images))
    assert torch.equal(trained[0], trained[1]) and not torch.equal(trained[0], trained[2])
    assert torch.equal(answers[0], answers[1])


def test_placement_trains_on_some_classes_and_probes_others(tmp_path):
    preset = EXPERIMENTS["placement"].presets("quick", None)
    task = TransferTask(preset, load_images("digits"), find_network(preset.network), tmp_path)
    labelled = task.labelled(task.data.train)
    assert task.outputs == 6
    assert sorted(labelled.labels.unique().tolist()) == list(range(6))


def test_resnet32():
    model = CifarResNet(32, 3, 10)
    layers = [m for m in model.modules() if isinstance(m, (nn.Conv2d, nn.Linear))]
    assert len(layers) == 32
    assert sum(p.numel() for p in model.parameters()) == 464_154
    assert model(torch.zeros(2, 3, 32, 32)).shape == (2, 10)
    assert (
        len(vcreg_fx.plan(model, "blocks", example_inputs=(torch.zeros(2, 3, 32, 32),)).sites) == 15
    )
    with pytest.raises(ReproductionError, match="6n"):
        CifarResNet(9, 3, 10)


# Data ---------------------------------------------------------------------------------------


def test_long_tails_are_nested_and_repeatable():
    labels = torch.arange(4).repeat(100)
    large = long_tail_indices(labels, long_tail_counts(4, 100, 10), seed=3)
    small = long_tail_indices(labels, long_tail_counts(4, 50, 10), seed=3)
    assert set(small.tolist()) <= set(large.tolist())
    assert torch.equal(large, long_tail_indices(labels, long_tail_counts(4, 100, 10), seed=3))
    with pytest.raises(DataError, match="fewer than 101"):
        long_tail_indices(labels, [101, 1, 1, 1])
    with pytest.raises(DataError, match="one image"):
        long_tail_counts(10, 50, 100)


def test_shot_groups():
    counts = long_tail_counts(100, 500, 100)
    groups = shot_groups(counts, (100, 20))
    assert [len(groups[name]) for name in ("many", "medium", "few")] == [35, 35, 30]
    assert {k: len(v) for k, v in shot_groups(CIFAR10_LT).items()} == {
        "many": 3, "medium": 4, "few": 3,
    }  # fmt: skip


def test_splits_are_balanced_and_fixed():
    labels = torch.arange(5).repeat(20)
    kept, held = split_indices(labels, 0.2)
    assert labels[held].bincount().tolist() == [4] * 5
    assert not set(kept.tolist()) & set(held.tolist())
    assert torch.equal(held, split_indices(labels, 0.2)[1])
    assert labels[balanced_indices(labels, 25, 1)].bincount().tolist() == [5] * 5
    with pytest.raises(DataError, match="too few"):
        balanced_indices(labels, 4, 0)


def write_idx(folder, packed):
    folder.mkdir(parents=True)
    write = gzip.open if packed else open
    ending = ".gz" if packed else ""
    for part, count in (("train", 20), ("t10k", 10)):
        pixels = np.arange(count * 784, dtype=np.uint32).astype(np.uint8)
        with write(folder / f"{part}-images-idx3-ubyte{ending}", "wb") as file:
            file.write(struct.pack(">IIII", 2051, count, 28, 28) + pixels.tobytes())
        with write(folder / f"{part}-labels-idx1-ubyte{ending}", "wb") as file:
            file.write(struct.pack(">II", 2049, count) + bytes(i % 10 for i in range(count)))


@pytest.mark.parametrize("packed", [True, False])
def test_fashion_mnist_is_read_from_idx_files(tmp_path, packed):
    write_idx(tmp_path / "FashionMNIST" / "raw", packed)
    data = load_images("fashion-mnist", tmp_path, size=32)
    images, labels = data.train.pairs.tensors
    assert images.shape == (20, 1, 32, 32)
    assert labels.tolist() == [i % 10 for i in range(20)]
    assert data.shape == (1, 32, 32)
    raw = images[1, 0, 2:30, 2:30] * 0.3530 + 0.2860
    assert torch.allclose(raw.flatten() * 255, (torch.arange(784.0) + 784) % 256, atol=1e-3)
    assert sorted(i for group in data.groups.values() for i in group) == list(range(10))


@pytest.mark.parametrize(
    ("name", "root", "message"),
    [
        ("fashion-mnist", "nowhere", "dataset-fashion-mnist"),
        ("cifar10", None, "--data-root"),
        ("cifar100", "nowhere", "finds no CIFAR100 in nowhere"),
        ("imagenet", "nowhere", "finds no ImageFolder in nowhere"),
        ("fashion", None, "Did you mean fashion-mnist"),
    ],
)
def test_missing_data_says_where_to_get_it(name, root, message):
    with pytest.raises(DataError, match=message):
        load_images(name, root)


def test_imagenet_through_a_class_file(tmp_path):
    from PIL import Image

    for part in ("train", "val"):
        for i, name in enumerate(("n01", "n02", "n03", "n04")):
            (tmp_path / part / name).mkdir(parents=True)
            for k in range(3):
                picture = Image.fromarray(np.full((20, 30, 3), 40 * i + k, np.uint8))
                picture.save(tmp_path / part / name / f"{k}.png")
    file = tmp_path / "some.json"
    file.write_text(json.dumps({"b": ["n04", "n01"], "a": ["n02"]}))
    data = load_images("imagenet", tmp_path, classes=file, size=16)
    recipe = load_images("imagenet", tmp_path, augment="torchvision")
    assert recipe.shape == recipe.test.pairs[0][0].shape == (3, 224, 224)
    assert recipe.train.training[0][0].shape == (3, 176, 176)  # torchvision's recipe
    assert data.classes == ("n04", "n01", "n02")
    assert data.groups == {"b": (0, 1), "a": (2,)}
    assert data.train.labels.bincount().tolist() == [3, 3, 3]
    image, label = data.train.pairs[0]
    assert image.shape == (3, 16, 16)
    assert label == int(data.train.labels[0]) == 1
    coarse = data.test.relabel(data.group_of)
    assert [coarse.pairs[i][1] for i in range(9)] == coarse.labels.tolist()
    file.write_text(json.dumps({"a": ["n01"], "b": ["n09"]}))
    with pytest.raises(DataError, match="no class folder n09"):
        load_images("imagenet", tmp_path, classes=file)


class Pictures(torch.utils.data.Dataset):
    """A data set as torchvision has them: pictures, a transform, targets."""

    def __init__(self, root, transform, **split):
        self.transform = transform
        self.targets = [0, 1, 2] * (2 if split.get("train", True) else 1)
        self.classes = ["a", "b", "c"]

    def __len__(self):
        return len(self.targets)

    def __getitem__(self, index):
        from PIL import Image

        pixels = np.full((32, 40, 3), 20 * index, np.uint8)
        return self.transform(Image.fromarray(pixels[:, :32])), self.targets[index]


@pytest.mark.parametrize("augment", ["none", "crop", "torchvision"])
def test_cifar_through_torchvisions_loader(monkeypatch, augment):
    monkeypatch.setattr("torchvision.datasets.CIFAR10", Pictures)
    found = load_images("cifar10", "somewhere", augment=augment)
    assert (len(found.train), len(found.test)) == (6, 3)
    for pairs in (found.train.pairs, found.train.training, found.test.pairs):
        image, _ = pairs[1]
        assert type(image) is torch.Tensor
        assert (image.shape, image.dtype) == ((3, 32, 32), torch.float32)
    plain, _ = found.train.pairs[1]
    mean, std = 0.4914, 0.2470
    assert torch.allclose(plain[0], torch.tensor((20 / 255 - mean) / std), atol=1e-4)
    different = [not torch.equal(found.train.training[i][0], found.train.pairs[i][0])
                 for i in range(1, 6)]  # fmt: skip
    assert any(different) == (augment != "none")
    some = found.train.of_classes([2, 0])
    assert [some.training[i][1] for i in range(4)] == some.labels.tolist() == [1, 0, 1, 0]


def test_downstream_data_through_torchvisions_loaders(monkeypatch):
    monkeypatch.setattr("torchvision.datasets.DTD", Pictures)
    found = load_downstream("dtd", "somewhere", (3, 16, 16))
    parts = (found.train, found.test, found.validation)
    assert all(part[0][0].shape == (3, 16, 16) for part in parts)
    with pytest.raises(DataError, match="--data-root"):
        load_downstream("dtd", None, (3, 16, 16))
    with pytest.raises(DataError, match="no downstream task 'imagenet'"):
        load_downstream("imagenet", None, (3, 16, 16))


def test_downstream_data_in_memory_is_brought_to_the_networks_shape():
    found = load_downstream("digits", None, (3, 24, 24), images=50)
    assert (len(found.train), len(found.test), found.classes) == (50, 20, 10)
    image, label = found.train[3]
    assert image.shape == (3, 24, 24) and torch.equal(image[0], image[2]) and label in range(10)
    glyphs = load_downstream("glyphs-slant", None, (1, 16, 16), images=20)
    assert glyphs.train[0][0].shape == (1, 16, 16) and glyphs.classes == 2
    assert (glyphs.criterion, glyphs.probe, glyphs.validation) == ("accuracy", None, None)


def test_large_downstream_data_in_folders_and_by_json(tmp_path):
    """Places205 as an image folder, iNaturalist 2018 by its JSON files; their probe is by SGD."""
    from PIL import Image

    def picture(*path):
        file = tmp_path.joinpath(*path)
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((20, 30, 3), 40, np.uint8)).save(file)

    for part in ("train", "val"):
        for name in ("abbey", "bar"):
            picture("places205", part, name, "0.png")
    places = load_downstream("places205", tmp_path, (3, 16, 16))
    assert (len(places.train), len(places.test), places.classes) == (2, 2, 2)
    assert (places.probe.epochs, places.probe.learning_rate) == (14, 0.01)
    with pytest.raises(DataError, match=r"train2018.json is not there"):
        load_downstream("inat18", tmp_path, (3, 16, 16))
    for part, files in (("train", ["a", "b"]), ("val", ["c"])):
        names = [f"train_val2018/Aves/7/{name}.png" for name in files]
        for name in names:
            picture("inat18", name)
        content = {
            "images": [{"id": 10 + i, "file_name": name} for i, name in enumerate(names)],
            "annotations": [{"image_id": 10 + i, "category_id": 2 - i} for i in range(len(names))],
            "categories": [{"id": i} for i in range(3)],
        }
        (tmp_path / "inat18" / f"{part}2018.json").write_text(json.dumps(content))
    nature = load_downstream("inat18", tmp_path, (3, 16, 16))
    assert [label for _, label in (nature.train[i] for i in range(2))] == [2, 1]
    assert nature.test[0][0].shape == (3, 16, 16)
    assert (nature.classes, nature.probe.epochs) == (3, 84)


def test_downstream_data_with_validation_images_of_its_own(monkeypatch):
    """C.1, as Kornblith et al. 2021: they choose λ, and train the last probe, too."""
    opened = []

    def open_one(root, transform, split):
        opened.append(split)
        return Pictures(root, transform)

    for name, splits in TORCHVISION.items():
        monkeypatch.setattr(f"torchvision.datasets.{splits.kind}", open_one)
        opened.clear()
        found = load_downstream(name, "somewhere", (3, 16, 16))
        has = name in {"aircraft", "flowers", "dtd"}
        assert (found.validation is not None) == has
        assert opened == (["train", "test", "val"] if has else [splits.train, "test"])
        by_class = name in {"aircraft", "pets", "flowers"}
        assert found.criterion == ("class_accuracy" if by_class else "accuracy")
    assert TORCHVISION["pets"].train == "trainval"


@pytest.mark.parametrize("split", ["validation", "test"])
def test_validation_images_train_the_last_probe(tmp_path, monkeypatch, split):
    digits = load_images("digits")
    parts = [digits.train.subset(torch.arange(i * 200, i * 200 + 200)).pairs for i in range(3)]
    other = Downstream(*parts[:2], 10, parts[2], "class_accuracy")
    monkeypatch.setattr(_transfer, "load_downstream", lambda *_: other)
    probed = []

    def probe(known, labels, new, truth, validation, criterion, **_):
        probed.append((len(known), len(labels), len(new), len(truth), validation))
        assert criterion == "class_accuracy"
        return ProbeResult.of(truth, truth)

    monkeypatch.setattr(_transfer, "logistic_probe", probe)
    preset = EXPERIMENTS["placement"].presets("quick", None)
    preset = preset.but(options={**preset.options, "probes": ("dtd",)})
    task = TransferTask(preset, digits, network, tmp_path)
    roles = Roles(digits.train, digits.train)
    assert task.score(task.build(), roles, trial(split))["dtd"] == 1.0
    ((*counts, validation),) = probed
    if split == "validation":
        assert (counts, validation) == ([320, 320, 80, 80], 0.2)
    else:
        assert counts == [200, 200, 200, 200]
        assert [len(part) for part in validation] == [200, 200]


@pytest.mark.parametrize(
    ("text", "message"),
    [("[", "is no JSON"), ('{"a": ["x"]}', "two superclasses"),
     ('{"a": ["x"], "b": ["x"]}', "x twice"), ('{"a": [], "b": ["x"]}', "one class or more")],
)  # fmt: skip
def test_class_files_that_cannot_be(tmp_path, text, message):
    (tmp_path / "file.json").write_text(text)
    with pytest.raises(DataError, match=message):
        read_classes(tmp_path / "file.json")


# The search ---------------------------------------------------------------------------------


class Toy:
    """A task whose score is known beforehand, and that remembers what it was asked."""

    def __init__(self):
        self.asked = []

    def build(self):
        return nn.Linear(2, 2)

    def train(self, model, trial):
        if trial["x"] == 9:
            raise FloatingPointError("nine")
        if trial["x"] == 13:
            raise RuntimeError("out of memory")

    def evaluate(self, model, trial):
        self.asked.append((trial["split"], trial["x"], trial.seed))
        return {"score": -abs(trial["x"] - 3) + trial.seed / 1e6}


def study(tmp_path, toy, **changes):
    return Study(toy, tmp_path / "store", "score", 2, 2, AblationOptions(progress=False), **changes)


def test_a_search_never_sees_the_test_split(tmp_path):
    toy = Toy()
    one, two = study(tmp_path, toy).run(
        [Arm("one", grid={"x": (1, 4, 9, 5)}), Arm("two", fixed={"x": 7})]
    )
    assert one.chosen == {"x": 4}
    assert [a["settings"]["x"] for a in one.attempts] == [1, 4, 9, 5]
    assert math.isnan(one.attempts[2]["mean"])
    assert two.attempts == []
    searched = [x for split, x, _ in toy.asked if split == "validation"]
    assert searched == [1, 1, 4, 4, 5, 5]
    tested = [(x, seed) for split, x, seed in toy.asked if split == "test"]
    assert tested == [(4, 0), (7, 0), (4, 1), (7, 1)]
    assert {s for split, _, s in toy.asked if split == "validation"} == {1000, 1001}


def test_a_search_may_look_for_the_smallest(tmp_path):
    found = study(tmp_path, Toy(), largest=False).run([Arm("one", grid={"x": (1, 4, 9, 5)})])
    assert found[0].chosen == {"x": 1}  # as far from 3 as 5 is, and first


def test_trials_that_fail_are_not_left_out_silently(tmp_path):
    for arm in (Arm("one", fixed={"x": 13}), Arm("one", grid={"x": (1, 13, 4)})):
        with pytest.raises(AblationError, match="out of memory"):
            study(tmp_path / str(len(arm.grid)), Toy()).run([arm])


class Diverging(Toy):
    """Its training diverges with some seeds."""

    def train(self, model, trial):
        if trial["x"] > trial.seed:
            raise FloatingPointError("nan")


def test_trainings_that_diverge_are_counted(tmp_path):
    (found,) = study(tmp_path, Diverging()).run([Arm("one", fixed={"x": 1})])
    assert [record.status for record in found.records] == ["failed", "done"]
    assert [record.seed for record in found.finished] == [1]
    with pytest.raises(AblationError, match="FloatingPointError"):
        study(tmp_path / "b", Diverging()).run([Arm("one", fixed={"x": 2})])


def test_an_arm_that_always_diverges_is_a_row(tmp_path):
    good, bad, unfound = Arm("good", fixed={"x": 1}), Arm("bad", fixed={"x": 9}), Arm(
        "unfound", grid={"x": (9,), "y": (1, 2)})  # fmt: skip
    counts = []
    found = study(tmp_path, Toy(), on_trials=lambda *numbers: counts.append(numbers)).run(
        [good, bad, unfound]
    )
    assert [len(part.finished) for part in found] == [2, 0, 0]
    assert [len(part.records) for part in found] == [2, 2, 0]
    assert found[2].chosen is None and counts[-1] == (8, 8)
    with pytest.raises(AblationError, match="Every point of the search of unfound diverged"):
        study(tmp_path, Toy()).run([unfound, good])


def test_a_report_survives_arms_that_diverge(tmp_path, monkeypatch):
    """One diverges in every test, one at every point of its search, one is compared with those."""

    def train(self, model, trial):
        if trial["strength"] > 1:
            raise FloatingPointError("nan")
        return learn(self, model, trial)

    learn = HierarchyTask.train
    monkeypatch.setattr(HierarchyTask, "train", train)
    arms = [Arm("none", fixed={"strength": 0}), Arm("tested", "blocks", {"strength": 2}),
            Arm("searched", "blocks", {"demean": "activations"}, {"strength": (2, 3)}),
            Arm("other", "blocks", {"strength": 1}, versus="tested")]  # fmt: skip
    changed = replace(EXPERIMENTS["hierarchy"], arms=lambda _: arms)
    monkeypatch.setitem(EXPERIMENTS, "hierarchy", changed)
    outcome = run(tmp_path / "one")
    text = str(outcome)
    assert "| tested | – | – | – | 0, 2 diverged |" in text
    assert "| searched | – | – | – | 0, every point of its search diverged |" in text
    assert "- searched (demean = activations): every point of its search diverged." in text
    assert "strength 2: diverged; strength 3: diverged" in text
    assert [row["name"] for row in outcome.report["rows"] if row["by_seed"]] == ["none", "other"]
    assert (tmp_path / "one" / "report.html").exists()
    assert (tmp_path / "one" / "hierarchy.png").stat().st_size > 1000
    assert "| hierarchy | other | tested |" in summary_in(tmp_path / "one")


def summary_in(folder):
    """The page's summary of one report."""
    (folder / "evidence").mkdir()
    (folder / "hierarchy.json").rename(folder / "evidence" / "hierarchy.json")
    return summary(folder / "evidence")


class Guarded(TensorDataset):
    """Test images that must not be looked at yet."""

    opened = False

    @property
    def tensors(self):
        assert Guarded.opened, "A search looks at test images."
        return self._tensors

    @tensors.setter
    def tensors(self, found):
        self._tensors = found


def guarded(data):
    pairs = Guarded(*data.test.pairs.tensors)
    return replace(data, test=ImageSet(pairs, data.test.labels))


@pytest.mark.parametrize(
    "name", ["transfer", "placement", "hierarchy", "long-tail", "collapse", "noise"]
)
def test_no_search_looks_at_test_images(tmp_path, monkeypatch, name):
    digits = load_images("digits")
    few = digits.train.subset(balanced_indices(digits.train.labels, 300, 0))
    few = guarded(replace(digits, train=few, test=digits.test.subset(torch.arange(100))))
    other = Downstream(few.train.pairs, few.test.pairs, 10, few.train.pairs)
    monkeypatch.setattr(_transfer, "load_downstream", lambda *_: other)
    monkeypatch.setattr(_noise, "load_downstream", lambda *_: other)
    tried, ablate = [], Study._ablate

    def watched(self, arm, point, seeds, split):
        Guarded.opened = split == "test"
        tried.append(split)
        return ablate(self, arm, point, seeds, split)

    monkeypatch.setattr(Study, "_ablate", watched)
    monkeypatch.setattr(Guarded, "opened", True)  # the folder says which data it is of
    experiment = EXPERIMENTS[name]
    arms = [Arm("none"), Arm("VCReg", "blocks", grid=TINY.grid)]
    monkeypatch.setitem(EXPERIMENTS, name, replace(experiment, arms=lambda _: arms))
    preset = experiment.presets("quick", None)
    options = {"probes": ("unseen", "all", "digits", "dtd"), "images": 60, "strengths": (1.0,),
               "information_images": 60, "steps": 5, "epochs": (1,), "largest": 20}  # fmt: skip
    preset = preset.but(
        training=replace(preset.training, epochs=1),
        train_images=preset.train_images and 60,
        validation=100,
        grid=TINY.grid,
        options={**preset.options, **{k: options[k] for k in options if k in preset.options}},
        seeds=2,
    )
    outcome = reproduce(name, tmp_path / "out", preset=preset, data=few, network=network)
    assert tried[:2] == ["validation"] * 2 and tried[2:] == ["test"] * 4
    assert all(len(row["by_seed"]) == 2 for row in outcome.report["rows"])
    assert not any("failed" in found for found in outcome.report["search"][1]["attempts"])


# A whole experiment -------------------------------------------------------------------------


def data(classes=4, each=24):
    generator = torch.Generator().manual_seed(0)
    sets = []
    for _ in range(2):
        labels = torch.arange(classes).repeat_interleave(each)
        images = torch.randn(len(labels), 1, 8, 8, generator=generator)
        images[:, 0, 0, :classes] += 4 * torch.eye(classes)[labels]
        sets.append(ImageSet.of(images, labels))
    return ImageData("own", *sets, tuple("abcdef"[:classes]), {"x": (0, 1), "y": (2, 3)})


TINY = Preset(
    "own",
    "resnet8-half",
    TrainSettings(epochs=2, batch_size=16),
    train_images=48,
    validation=0.25,
    grid={"alpha": (0.64,), "beta": (0.16, 0.02)},
    seeds=2,
)


class Residual(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.linear, self.norm = nn.Linear(width, width), nn.BatchNorm1d(width)

    def forward(self, x):
        return x + self.norm(self.linear(x)).relu()


def network(shape, classes):
    return nn.Sequential(
        nn.Flatten(), nn.Linear(math.prod(shape), 8), Residual(8), Residual(8), nn.Dropout(0.1),
        nn.Linear(8, classes),
    )  # fmt: skip


def run(folder, **changes):
    arguments = {"preset": TINY, "data": data(), "network": network, **changes}
    return reproduce("hierarchy", folder, **arguments)


def test_own_model_and_data(tmp_path):
    records, counts = [], []
    outcome = run(
        tmp_path / "one", on_record=records.append, on_trials=lambda *found: counts.append(found)
    )
    assert len(records) == 6 * 2 + 8 * 2
    assert counts == [(i, len(records)) for i in range(1, len(records) + 1)]
    report = json.loads((tmp_path / "one" / "hierarchy.json").read_text())
    assert report == outcome.report
    names = [row["name"] for row in report["rows"]]
    assert names == [
        "no VCReg", "mean removal alone", "VCReg", "VCReg, mean removed", "VCReg, Algorithm 1",
        "VCReg, Algorithm 1, mean removed", "VCReg, ratio kept", "VCReg, calibrated",
    ]  # fmt: skip
    assert report["rows"][5]["settings"]["convention"] == "algorithm1"
    assert set(report["rows"][0]["by_seed"]) == {"0", "1"}
    assert (tmp_path / "one" / "hierarchy.png").stat().st_size > 1000
    assert "data:image/png;base64," in (tmp_path / "one" / "report.html").read_text("utf-8")
    assert not list((tmp_path / "one" / "checkpoints").iterdir())
    text = outcome.to_markdown()
    assert "60.7" in text  # the paper's
    assert "beta 0.02" in text  # the search's
    again = run(tmp_path / "two", arms=names[:3])
    assert numbers(again.report) == numbers(report)[:3]
    counts.clear()
    more = run(
        tmp_path / "one", seeds=3, arms=names[:2], on_trials=lambda *found: counts.append(found)
    )
    assert counts[-1] == (6, 6)  # those of before are counted
    assert set(more.report["rows"][0]["by_seed"]) == {"0", "1", "2"}
    assert more.report["rows"][0]["by_seed"]["1"] == report["rows"][0]["by_seed"]["1"]


def numbers(report):
    return [row["by_seed"] for row in report["rows"]]


def test_a_stopped_run_goes_on_with_the_same_numbers(tmp_path, monkeypatch):
    some = ["no VCReg", "VCReg", "VCReg, calibrated"]
    whole = run(tmp_path / "whole", arms=some)
    steps = []

    def stop(model, epoch):
        steps.append(epoch)
        if len(steps) in {3, 9}:
            os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patched:
        patched.setattr(
            HierarchyTask, "on_epoch", lambda self, model, epoch, roles, trial: stop(model, epoch)
        )
        for _ in range(2):
            with pytest.raises(Stopped, match="SIGTERM"):
                run(tmp_path / "stopped", arms=some)
            assert len(list((tmp_path / "stopped" / "checkpoints").iterdir())) == 1
        outcome = run(tmp_path / "stopped", arms=some)
    # Every epoch was trained once: what was stopped went on after its last whole epoch.
    assert len(steps) == 2 * (2 * 2 + 3 * 2)
    assert numbers(outcome.report) == numbers(whole.report)
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_strengths_that_are_found(tmp_path, monkeypatch):
    """One arm is inserted with a ratio; one is calibrated to it before its first step."""
    seen = {}

    def watched(model, images, settings, **arguments):
        found = vcreg_fx.sites(model)
        seen[len(seen)] = ([(site.alpha, site.beta) for site in found],
                           [site.config.ratio for site in found])  # fmt: skip
        return fit(model, images, settings, **arguments)

    monkeypatch.setattr("vcreg_fx.experiments.papers._image_task.fit", watched)
    arms = {arm.name: arm for arm in EXPERIMENTS["hierarchy"].arms(TINY)}
    task = HierarchyTask(TINY, data(), network, tmp_path)
    for name in ("VCReg, ratio kept", "VCReg, calibrated"):
        torch.manual_seed(0)
        model, point = task.build(), dict(arms[name].points[1])
        one = trial("test", **{k: point.pop(k) for k in ("calibrated",) if k in point})
        vcreg_fx.insert(model, "blocks", example_inputs=(torch.zeros(2, 1, 8, 8),), **point)
        task.train(model, one)
    (_, ratios), (coefficients, none) = seen.values()
    assert ratios == [0.3, 0.3] and none == [None, None]
    torch.manual_seed(0)
    model = task.build()
    vcreg_fx.insert(model, "blocks", example_inputs=(torch.zeros(2, 1, 8, 8),))
    images = task.labelled(task.roles(trial("test")).train).pairs
    x, y = images.tensors
    vcreg_fx.calibrate(model, x, lambda output: nn.functional.cross_entropy(output, y), 0.3)
    for site, expected in zip(vcreg_fx.sites(model), coefficients, strict=True):
        assert (site.alpha, site.beta) == pytest.approx(expected, rel=0.02)  # dropout


def test_strengths_are_found_on_images_of_all_classes(tmp_path, monkeypatch):
    """A folder of images lies class by class."""
    seen = []
    monkeypatch.setattr(HierarchyTask, "first", 8)
    monkeypatch.setattr(
        "vcreg_fx.experiments.papers._image_task.calibrate_as",
        lambda trial, model, images, labels: seen.append(labels.tolist()),
    )
    preset = TINY.but(train_images=None, training=TrainSettings(epochs=1, batch_size=48))
    task = HierarchyTask(preset, data(), network, tmp_path)
    task.train(task.build(), trial("test", calibrated=0.1))
    assert seen == [[0, 0, 0, 0, 1, 1, 1, 1]]


def test_strengths_are_found_without_a_change_of_random_numbers(tmp_path, monkeypatch):
    states = []
    monkeypatch.setattr(
        "vcreg_fx.experiments.papers._image_task.fit",
        lambda *_, **__: states.append(torch.get_rng_state()) or [],
    )
    task = HierarchyTask(TINY.but(train_images=None), data(), network, tmp_path)  # has dropout
    for params in ({}, {"calibrated": 0.1}):
        torch.manual_seed(0)
        model = task.build()
        vcreg_fx.insert(model, "blocks", example_inputs=(torch.zeros(2, 1, 8, 8),))
        task.train(model, trial("test", **params))
    assert torch.equal(*states)


def test_a_folder_belongs_to_one_experiment(tmp_path):
    run(tmp_path / "one", arms=["no VCReg"])
    other = TINY.but(training=replace(TINY.training, epochs=3))
    with pytest.raises(ReproductionError, match=r"preset\.training\.epochs is 2 there, 3 here"):
        run(tmp_path / "one", preset=other)
    file = tmp_path / "one" / "experiment.json"
    known = json.loads(file.read_text())
    del known["identity"]  # as a version before wrote it
    file.write_text(json.dumps(known))
    run(tmp_path / "one", arms=["no VCReg"])
    (tmp_path / "two").mkdir()
    (tmp_path / "two" / "thesis.tex").touch()
    with pytest.raises(ReproductionError, match="holds no experiment"):
        run(tmp_path / "two")


def part_of(data, **changes):
    return replace(data, **{
        name: ImageSet.of(getattr(data, name).pairs.tensors[0] + change, getattr(data, name).labels)
        for name, change in changes.items()
    })  # fmt: skip


def test_a_folder_belongs_to_its_data(tmp_path):
    """Data, a network or weights of the same name, which are others, are not taken for the same."""

    def own(*more):
        return lambda *given: nn.Sequential(*network(*given), *more)

    run(tmp_path / "one", arms=["no VCReg"], network=own())

    def refused(message, **changes):
        given = {"network": own(), **changes}
        with pytest.raises(ReproductionError, match=message):
            run(tmp_path / "one", arms=["no VCReg"], **given)

    refused("other training images", data=part_of(data(), train=1.0))
    refused("other test images", data=part_of(data(), test=1.0))
    refused("other classes", data=replace(data(), groups={"x": (0, 2), "y": (1, 3)}))
    refused("other network", network=own(nn.Linear(2, 2)))
    for name in ("one", "two"):
        write_idx(tmp_path / name / "FashionMNIST" / "raw", False)
    pixels = tmp_path / "two" / "FashionMNIST" / "raw" / "train-images-idx3-ubyte"
    pixels.write_bytes(pixels.read_bytes()[:-1] + b"!")
    one, two = (load_images("fashion-mnist", tmp_path / name) for name in ("one", "two"))
    whole = TINY.but(train_images=None, grid={})
    tasks = [HierarchyTask(whole, each, network, tmp_path) for each in (one, one, two)]
    assert tasks[0].identity() == tasks[1].identity() != tasks[2].identity()


def test_a_folder_belongs_to_its_weights(tmp_path):
    file = tmp_path / "weights.pt"

    def begun(seed):
        torch.manual_seed(seed)
        torch.save(network((1, 8, 8), 3).state_dict(), file)
        return transfer(tmp_path / "one", options={"weights": str(file)})

    begun(0)
    begun(0)
    with pytest.raises(ReproductionError, match="other weights"):
        begun(1)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seeds": 1}, "1 seed cannot tell"),
        ({"network": "resnet9"}, "no network 'resnet9'"),
        ({"scale": "huge"}, "no scale 'huge'. It has quick, default, large, paper"),
        ({"data": replace(data(), groups={})}, "own has no superclasses"),
        ({"classes": "living_9"}, "its root and its classes in itself"),
        ({"data_root": "here"}, "its root and its classes in itself"),
        ({"network": "videomae-tiny"}, "videomae-tiny takes videos, and own are images"),
        ({"preset": TINY.but(validation=95)}, "of its 96 training images of 4 classes, 95 are"),
        ({"preset": TINY.but(train_images=90)}, "72 are left to train on"),
        ({"preset": TINY.but(train_images=3)}, "3 images are too few for 4 classes"),
    ],
)
def test_what_cannot_be_run_is_refused(tmp_path, changes, message):
    with pytest.raises((ReproductionError, AblationError), match=message):
        run(tmp_path / "one", **changes)


@pytest.mark.parametrize(
    ("name", "shape", "kind"),
    [
        ("timm/test_convnext", (1, 32, 32), "ConvNeXt"),
        ("timm/test_vit", (3, 96, 96), "VisionTransformer"),
        ("torchvision/resnet18", (3, 32, 32), "ResNet"),
        ("torchvision/vit_b_32", (3, 64, 64), "VisionTransformer"),
    ],
)
def test_networks_of_libraries(name, shape, kind):
    model = find_network(name)(shape, 7)
    assert type(model).__name__ == kind
    assert model.eval()(torch.zeros(2, *shape)).shape == (2, 7)


@pytest.mark.parametrize(
    ("name", "message"),
    [("timm/convnext_ato", "no network 'timm/convnext_ato'"), ("resnet18", "timm/NAME"),
     ("torchvision/raft_small", "no network")],
)  # fmt: skip
def test_networks_that_there_are_not(name, message):
    with pytest.raises(ReproductionError, match=message):
        find_network(name)
    with pytest.raises(ReproductionError, match="take a network of timm"):
        find_network("torchvision/resnet18")((1, 32, 32), 7)


def test_a_missing_tensorboard_is_found_out_before_training(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(ModuleNotFoundError, match="tensorboard"):
        run(tmp_path / "one", tensorboard=True)
    assert not (tmp_path / "one").exists()


@pytest.mark.parametrize("name", ["transfer", "hierarchy", "collapse"])
def test_the_large_scale_is_for_a_gpu(name):
    """ConvNeXt-Atto, 200,000 glyphs, tens of epochs; nothing is searched."""
    preset = EXPERIMENTS[name].presets("large", None)
    assert (preset.data, preset.network) == ("glyphs-200k", "convnext-atto")
    assert (preset.training.epochs, preset.training.batch_size) == (20, 2048)
    assert preset.train_images is None and preset.training.amp == "bfloat16"
    assert {len(arm.points) for arm in EXPERIMENTS[name].arms(preset)} == {1}
    model = find_network(preset.network)((3, 32, 32), 5)
    assert model(torch.zeros(2, 3, 32, 32)).shape == (2, 5)
    for scale in ("video", "placement", "long-tail", "two-moons", "noise", "timing"):
        assert "large" not in EXPERIMENTS[scale].scales


@pytest.mark.slow
@pytest.mark.parametrize("name", ["transfer", "hierarchy", "collapse"])
def test_the_large_scale_trains(tmp_path, name):
    """With digits, of which some 100 steps learn most, and on whatever device there is."""
    preset = EXPERIMENTS[name].presets("large", None)
    changed = {"images": 300, "information_images": 300, "steps": 20, "epochs": (1, 5),
               "probes": ("glyphs-slant",)}  # fmt: skip
    options = {**preset.options, **{k: v for k, v in changed.items() if k in preset.options}}
    training = replace(preset.training, epochs=5, batch_size=32, warmup_epochs=1, amp="none")
    arms = ["no VCReg", "VCReg, Algorithm 1, mean removed", "VCReg, calibrated"]
    preset = preset.but(training=training, options=options, train_images=600)
    outcome = reproduce(
        name,
        tmp_path / "out",
        scale="large",
        data=load_images("digits", size=32),
        preset=preset,
        seeds=2,
        arms=arms,
    )
    assert [row["sites"] for row in outcome.report["rows"]] == [0, 12, 12]
    assert "--scale large" in str(outcome)
    metric = {"hierarchy": "subclass", "transfer": "own", "collapse": "accuracy"}[name]
    assert outcome.report["rows"][0]["by_seed"]["0"][metric] > 0.5


def test_two_moons_takes_neither_data_nor_network(tmp_path):
    for changes in ({"data": "digits"}, {"network": "resnet32"}):
        with pytest.raises(ReproductionError, match="its own"):
            reproduce("two-moons", tmp_path / "one", **changes)


SMALL_TRANSFER = EXPERIMENTS["transfer"].presets("quick", None).but(
    training=TrainSettings(epochs=2, batch_size=16), train_images=48, validation=24, grid=TINY.grid,
)  # fmt: skip


def transfer(folder, **changes):
    options = {"seen": 3, "probes": ("unseen", "all"), "strengths": (1.0,)}
    given = {"preset": SMALL_TRANSFER, "data": data(6), "network": network, "arms": ["no VCReg"],
             "options": {**options, **changes.pop("options", {})}, **changes}  # fmt: skip
    return reproduce("transfer", folder, **given)


def test_settings_of_a_training_keep_what_is_not_named():
    transfer = EXPERIMENTS["transfer"]

    def found(scale, **given):
        return _reproduce._preset(
            transfer, scale, None, None, None, None, {"finetune": given}
        )["finetune"]  # fmt: skip

    assert found("default", epochs=9) == {"epochs": 9, "batch_size": 64, "learning_rate": 1e-3}
    assert found("paper", epochs=9) == {
        "epochs": 9, "batch_size": 256, "optimizer": "sgd", "learning_rate": 0.01,
    }  # fmt: skip
    assert found("paper", momentum=0.8)["steps"] == 20_000


def test_every_task_has_a_column():
    for name in ("transfer", "placement", "ssl"):
        preset = EXPERIMENTS[name].presets("quick", None)
        preset = preset.but(options={**preset.options, "probes": ("glyphs", "dtd", "digits")})
        titles = [metric.title for metric in EXPERIMENTS[name].measured(preset)]
        assert titles[:4] == ["mean of tasks", "DTD", "digits", "glyphs"]
    for name, probe, title in (("vicreg", "dtd", "DTD"), ("video", "motion", "probe: motion")):
        preset = EXPERIMENTS[name].presets("quick", None)
        preset = preset.but(options={**preset.options, "probes": (probe,)})
        assert title in [metric.title for metric in EXPERIMENTS[name].measured(preset)]


def test_a_preset_of_ones_own_is_not_changed_by_a_networks_recipe():
    experiment, network = EXPERIMENTS["transfer"], "torchvision/resnet50"
    mine = experiment.presets("paper", None).but(training=TrainSettings(epochs=7))
    found = _reproduce._preset(experiment, "paper", None, network, mine, None, {})
    assert found.training.epochs == 7
    found = _reproduce._preset(experiment, "paper", None, network, None, None, {})
    assert found.training.epochs == 600


def test_reports_say_what_is_augmented():
    experiment = EXPERIMENTS["hierarchy"]
    preset = experiment.presets("paper", "digits")
    assert preset.augment == "torchvision"
    assert _reproduce._images(experiment, preset, "digits", None, None)[0].augment == "none"
    own = replace(data(), train=replace(data().train, augmented=data().train.pairs))
    assert _reproduce._images(experiment, preset, own, None, None)[0].augment == "own"
    for name, augment in (("imagenet", "crop"), ("cifar10", "autoaugment")):
        with pytest.raises(DataError, match=f"{name} has no augmentation '{augment}'"):
            load_images(name, "nowhere", augment=augment)


def test_some_arms_alone_and_others_later(tmp_path):
    names = ["VCReg, mean removed", "mean removal alone"]
    outcome = transfer(tmp_path / "one", arms=names)
    assert [row["name"] for row in outcome.report["rows"]] == names[::-1]
    more = transfer(tmp_path / "one", arms=[*names, "DeCov"])
    assert numbers(more.report)[1:] == numbers(outcome.report)
    with pytest.raises(ReproductionError, match="no arm 'DeCove'; it has 'no VCReg', 'DeCov',"):
        transfer(tmp_path / "one", arms=["DeCove"])


def test_sites_that_a_network_lacks_are_found_out_before_training(tmp_path):
    with pytest.raises(vcreg_fx.PlacementError, match="downsample"):
        transfer(tmp_path / "one", arms=["no VCReg", "VCReg3"])
    assert not (tmp_path / "one").exists()


def test_probes_of_few_images_are_refused_before_training(tmp_path):
    """λ is chosen on a fifth of the images of a probe, in which each class must be."""
    few = SMALL_TRANSFER.but(train_images=12)
    with pytest.raises(ReproductionError, match="'unseen' has 6 .* of 3 classes, too few to hold"):
        transfer(tmp_path / "one", preset=few)
    assert not (tmp_path / "one").exists()


def test_options_of_a_preset(tmp_path):
    outcome = transfer(tmp_path / "one", options={"probes": ["unseen"]})
    assert "all" not in outcome.report["rows"][0]["by_seed"]["0"]
    alone = transfer(tmp_path / "alone", options={"probes": []})
    assert "| ours | own classes | seeds |" in str(alone)
    with pytest.raises(ReproductionError, match="transfer needs a probe at least, to choose"):
        transfer(tmp_path / "two", options={"probes": []}, arms=["no VCReg", "VCReg"])
    for options, message in (
        ({"probe": []}, "no option probe; it has seen,"),
        ({"protocol": "prob"}, "protocol='prob' must be"),
        ({"weights": "nowhere.pt"}, "nowhere.pt is no file"),
        ({"probes": ["birds"]}, "no downstream task 'birds'"),
        ({"probes": "all"}, "probes='all' must be a list"),
        ({"seen": 5}, "seen=5 leave 1 for the probe of unseen ones"),
        ({"seen": None}, "leave 0 for the probe"),
        ({"seen": 0, "probes": ["all"]}, "seen=0 must be from 2 to 6"),
        ({"seen": 7, "probes": ["all"]}, "seen=7 must be from 2 to 6"),
        ({"finetune": {"epoch": 3}}, "finetune: .*'epoch'.* There are the settings epochs"),
        ({"finetune": None}, "finetune=None must be settings"),
        ({"weights": __file__}, "test_reproduce.py holds no weights of network for 3 classes"),
    ):
        with pytest.raises((ReproductionError, DataError), match=message):
            transfer(tmp_path / "two", options=options)


def test_baselines_may_take_weights(tmp_path):
    """C.1: the baselines were downloaded, not trained."""
    torch.manual_seed(5)
    model = network((1, 8, 8), 3)
    torch.save(model.state_dict(), tmp_path / "weights.pt")
    arms = ["no VCReg", "mean removal alone"]
    found = transfer(
        tmp_path / "one", arms=arms, options={"weights": str(tmp_path / "weights.pt")}
    ).report
    baseline, trained = numbers(found)
    assert baseline["0"]["own"] == baseline["1"]["own"] and "loss" not in baseline["0"]
    assert "loss" in trained["0"]
    text = f"**no VCReg was not trained**: it has the weights in `{tmp_path / 'weights.pt'}`"
    assert text in render(found)
    searched = SMALL_TRANSFER.but(grid={**TINY.grid, "learning_rate": (1e-3, 1e-2)})
    for name in ("transfer", "placement"):
        points = [
            len(EXPERIMENTS[name].arms(searched.but(options={"weights": weights}))[0].points)
            for weights in (None, "weights.pt")
        ]
        assert points == [2, 1]
    task = TransferTask(SMALL_TRANSFER.but(options={**SMALL_TRANSFER.options, "seen": 3}),
                        data(6), network, tmp_path)  # fmt: skip
    assert baseline["0"]["own"] == task.accuracy(model, data(6).test)


def test_fine_tuning_keeps_the_layer_and_drops_the_penalty(tmp_path, monkeypatch):
    tuned = []

    def fitted(model, data, settings, seed, progress):
        tuned.append((copy.deepcopy(model), settings))
        return fit(model, data, settings, seed=seed, progress=progress)

    monkeypatch.setattr(_transfer, "fit", fitted)
    options = {
        "protocol": "finetune",
        "finetune": {"epochs": 20, "batch_size": 16, "learning_rate": 4e-3},
    }
    arms = ["no VCReg", "VCReg, mean removed"]
    outcome = transfer(tmp_path / "one", arms=arms, options=options)
    model, settings = tuned[-1]
    assert (settings.epochs, settings.batch_size) == (20, 16)
    assert model[-1].weight.shape == (6, 8)  # a new head, for all classes
    assert [(site.alpha, site.beta) for site in vcreg_fx.sites(model)] == [(0.0, 0.0)] * 2
    assert any("running_mean" in name for name in model.state_dict())
    assert all(row["by_seed"]["0"]["all"] > 0.3 for row in outcome.report["rows"])


def test_fine_tuning_at_the_head():
    """The site at the classifier's input stays, with a classifier of another size."""
    model = network((1, 8, 8), 3)
    vcreg_fx.insert(model, "head", example_inputs=(torch.zeros(2, 1, 8, 8),), demean="activations")
    tuned = with_new_head(model, 5, (1, 8, 8), 0)
    assert tuned(torch.zeros(2, 1, 8, 8)).shape == (2, 5)
    assert model(torch.zeros(2, 1, 8, 8)).shape == (2, 3)
    assert [site.name for site in vcreg_fx.sites(tuned)] == ["5:input"]


# Noise --------------------------------------------------------------------------------------


def noise_task(folder, **options):
    preset = EXPERIMENTS["noise"].presets("quick", None)
    preset = preset.but(
        training=replace(preset.training, epochs=1),
        options={**preset.options, "images": 100, **options},
    )
    return NoiseTask(preset, load_images("digits"), network, folder)


def test_noise_belongs_to_an_image(tmp_path):
    """Its unit is the standard deviation of the training images' pixels."""
    task = noise_task(tmp_path)
    clean = task._images(0.0, searching=False)
    for sigma in (1.0, 2.0):
        noisy, again = (task._images(sigma, searching=False) for _ in range(2))
        for part in range(2):
            added = noisy[part].tensors[0] - clean[part].tensors[0]
            expected = sigma * float(clean[0].tensors[0].std())
            assert float(added.std()) == pytest.approx(expected, rel=0.01)
            assert torch.equal(noisy[part].tensors[0], again[part].tensors[0])
            assert torch.equal(noisy[part].tensors[1], clean[part].tensors[1])
        assert not torch.equal(noisy[0].tensors[0][0], noisy[1].tensors[0][0])
    train, measure = task._images(1.0, searching=True)
    assert (len(train), len(measure)) == (80, 20)


def test_all_trials_begin_with_one_trained_network(tmp_path, monkeypatch):
    task, fitted = noise_task(tmp_path, sigmas=(1.0, 2.0)), []

    def watched(model, data, settings, **arguments):
        fitted.append(({k: v.clone() for k, v in model.state_dict().items()}, len(data), settings))
        return fit(model, data, settings, **arguments, progress=False)

    monkeypatch.setattr(_noise, "fit", watched)
    for rule in (None, "head"):
        model = task.build()
        if rule is not None:
            vcreg_fx.insert(model, rule, example_inputs=(torch.zeros(2, 1, 32, 32),),
                            demean="activations")  # fmt: skip
        one = trial("test")
        task.train(model, one)
        found = task.evaluate(model, one)
        assert set(found) == {"accuracy_1", "accuracy_2", "mean", "loss"}
        assert found["mean"] == pytest.approx((found["accuracy_1"] + found["accuracy_2"]) / 2)
    (_, count, settings), *tuned = fitted
    assert (count, settings.epochs) == (600, 2)
    weights = torch.load(tmp_path / "pretrained.pt", weights_only=True)
    assert len(tuned) == 4
    for begun, _, settings in tuned:
        assert settings.epochs == 1
        body = [name for name in weights if not name.startswith("5.")]  # all but the head
        assert all(torch.equal(begun[name], weights[name]) for name in body)
    assert any("running_mean" in name for name in tuned[-1][0].keys() - weights.keys())


def test_every_noise_has_a_column(tmp_path):
    preset = EXPERIMENTS["noise"].presets("quick", None)
    training = replace(preset.training, epochs=1)
    options = {**preset.options, "images": 60, "pretraining": {"epochs": 1}}
    outcome = reproduce(
        "noise", tmp_path / "one", preset=preset.but(training=training, options=options),
        network=network, options={"sigmas": [0.5, 3]}, arms=["no VCReg", "VCReg"],
        tensorboard=True,
    )  # fmt: skip
    assert "| ours | mean over σ | σ = 0.5 | σ = 3 | seeds |" in str(outcome)
    logs = sorted(path.name for path in (tmp_path / "one" / "logs").iterdir())
    assert len(logs) == 1 + 4 * 2 and "pretraining" in logs and logs[0].endswith("-0.5")


# What is said -------------------------------------------------------------------------------


def report_of(*values):
    rows = [
        {
            "name": name,
            "rule": None,
            "settings": {"beta": 0.1} if name != "none" else {},
            "by_seed": {str(i): {"score": v} for i, v in enumerate(found)},
        }
        for name, found in zip(("none", "up", "down", "same"), values, strict=True)
    ]
    preset = TINY.to_dict()
    return {
        "experiment": "toy", "data": "own", "scale": "default", "title": "Toy", "summary": "",
        "preset": preset, "criterion": "score",
        "headline": ["score"], "rows": rows, "search": [], "command": "vcreg-fx reproduce",
        "versions": {"a": "1"},
        "metrics": [{"name": "score", "title": "score", "percent": True, "higher": True}],
        "paper": {"where": "table 0", "columns": ["A"], "rows": {"x": [1.5]}, "unit": "%",
                  "protocol": "Long."},
    }  # fmt: skip


def test_help_harm_and_chance_are_told_apart():
    text = render(
        report_of([0.5, 0.51, 0.52], [0.6, 0.61, 0.63], [0.4, 0.41, 0.4], [0.5, 0.53, 0.51])
    )
    lines = [line for line in text.splitlines() if line.startswith("- ")]
    assert lines[0] == "- up (beta = 0.1): score +10.33 points [+8.90, +11.77], better."
    assert lines[1].startswith("- down (beta = 0.1): score −10.67 points [")
    assert lines[1].endswith("], **worse**.")
    assert lines[2].endswith("], no clear effect.")
    assert "| none | 51.00 ± 1.00 % | 3 |" in text
    lower = report_of([0.5, 0.51, 0.52], [0.6, 0.61, 0.63], [0.4, 0.41, 0.4], [0.5, 0.53, 0.51])
    lower["metrics"][0]["higher"] = False
    assert "up (beta = 0.1): score +10.33 points [+8.90, +11.77], **worse**." in render(lower)


def test_trainings_that_diverge_are_shown():
    report = report_of([0.5, 0.51, 0.52], [0.6, 0.62], [0.4, 0.41, 0.4], [0.5, 0.53, 0.51])
    assert "diverged" not in render(report)
    report["rows"][1]["diverged"] = 1
    text = render(report)
    assert "| up | 61.00 ± 1.41 % | 2, 1 diverged |" in text
    assert "better (2 of 3); **diverged** with 1 seed more." in text


def test_numbers_that_are_not_finite_are_counted():
    """A mean, a difference and a verdict say of how many seeds they are."""
    values = [0.6, math.inf, 0.61, 0.63, math.nan]
    report = report_of([0.5, 0.51, 0.52, 0.51, 0.5], values, [0.4] * 5, [0.5] * 5)
    text = render(report)
    assert "| up | 61.33 ± 1.53 % (3 of 5) | 5 |" in text and "(k of n)" in text
    assert "] (3 of 5), better (3 of 5)." not in text and "], better (3 of 5)." in text
    assert "]** (3 of 5) |" in text
    assert "| down | 40.00 ± 0.00 % | 5 |" in text


def test_equal_differences_are_no_evidence():
    report = report_of([0.7020, 0.7031], [0.7030, 0.7041], [0.70199, 0.70308], [0.7020, 0.7031])
    lines = [line for line in render(report).splitlines() if line.startswith("- ")]
    assert lines[0].endswith("+0.10 points [+0.10, +0.10], no spread, no verdict.")
    assert ": score −0.00 points [" in lines[1]
    assert lines[2].endswith("+0.00 points [+0.00, +0.00], no spread, no verdict.")


def test_a_rival_is_compared_with_vcreg_alone():
    report = report_of([0.5, 0.51], [0.6, 0.61], [0.4, 0.42], [0.5, 0.53])
    report["rows"][2]["rule"] = "blocks"
    assert "difference to up" not in render(report)
    report["rival"] = "up"
    part = render(report).split("| difference to up | score |")[1].split("\n\n")[0]
    assert part.splitlines()[2:] == ["| down | **−19.50 [−25.85, −13.15]** |"]


def test_what_stands_behind_a_layer_is_compared_with_the_layer_alone():
    report = report_of([0.5, 0.51], [0.6, 0.61], [0.7, 0.72], [0.5, 0.53])
    for row, alpha in zip(report["rows"][1:], (0, 0.5, 0.5), strict=True):
        row.update(rule="blocks", settings={"demean": "activations", "alpha": alpha})
    report["rows"][3]["settings"]["demean"] = "statistics"
    part = render(report).split("| difference to mean removal alone | score |")[1]
    assert part.split("\n\n")[0].splitlines()[2:] == ["| down | **+10.50 [+4.15, +16.85]** |"]


def test_accuracies_of_classes_are_shown():
    report = report_of([0.5, 0.51], [0.6, 0.61], [0.4, 0.41], [0.5, 0.53])
    for row in report["rows"]:
        for metrics in row["by_seed"].values():
            metrics.update({f"class_{i}": i / 10 for i in range(11)})
    head, _, first = render(report).split("| accuracy of class, in %")[1].splitlines()[:3]
    assert head == " | 0 | 1 | 2 | 3 | 4 | 5 | 6 | 7 | 8 | 9 | 10 |"
    assert first.startswith("| none | 0.0 | 10.0 | 20.0 |")


def test_the_page_is_what_the_reports_say():
    page = (ROOT / "docs" / "evidence.md").read_text("utf-8")
    parts = generated(page)
    assert {*QUICK, *SELF_SUPERVISED} <= set(parts)
    assert parts.pop(SUMMARY) == summary(ROOT / "docs" / "evidence")
    for name, text in parts.items():
        file = ROOT / "docs" / "evidence" / f"{name}.json"
        if not text.strip():  # it has not been run
            assert not file.exists()
            continue
        report = json.loads(file.read_text("utf-8"))
        assert text == section(report), f"{name} was edited by hand, or not written again"
        assert report["scale"] == "default"
        least = {"hierarchy": 10, **dict.fromkeys(SELF_SUPERVISED, 3), "vicreg-terms": 2}.get(
            name, 5
        )
        runs = [len(row["by_seed"]) + row.get("diverged", 0) for row in report["rows"]]
        assert min(runs) >= least
        assert file.with_suffix(".png").stat().st_size < 160_000


def test_evidence_needs_a_place_on_the_page(tmp_path):
    outcome = run(tmp_path / "one", arms=["no VCReg", "mean removal alone"])
    page = tmp_path / "evidence.md"
    page.write_text("Nothing.\n")
    with pytest.raises(ReproductionError, match="no place for hierarchy"):
        write_evidence(outcome, tmp_path)
    page.write_text(
        "A.\n\n<!-- generated: hierarchy -->\nwhat stood here\n<!-- end: hierarchy -->\n\nB.\n"
    )
    write_evidence(outcome, tmp_path)
    text = page.read_text()
    assert text.startswith("A.\n\n<!-- generated: hierarchy -->\n\nown,")
    assert text.endswith("<!-- end: hierarchy -->\n\nB.\n")
    assert "what stood here" not in text
    write_evidence(outcome, tmp_path)
    assert page.read_text() == text
    quick = replace(outcome, report={**outcome.report, "scale": "quick"})
    with pytest.raises(ReproductionError, match="the default scale, and this one is quick"):
        write_evidence(quick, tmp_path)
    for name, message in (("hierarchy", "this one is quick"), ("noise", "no place for noise")):
        result = command(name, "--quick", "--evidence", tmp_path, "-o", tmp_path / "two")
        assert result.exit_code == 1 and message in " ".join(result.stderr.split())
    assert not (tmp_path / "two").exists()


# Two moons ----------------------------------------------------------------------------------


class Line(nn.Module):
    """Says 1 to the left of an upright line."""

    def __init__(self, place):
        super().__init__()
        self.place = place

    def forward(self, x):
        return self.place - x[:, 0]


def test_margins_of_lines():
    points, labels = moons(400, 0.0, 0.5, 0)
    right = float(points[labels == 0][:, 0].min())
    left = float(points[labels == 1][:, 0].max())
    assert (left, right) == pytest.approx((-0.55, 0.55), abs=1e-3)
    line = Line(0.0)
    assert margin_of(line, field_of(line), points, labels) == pytest.approx(0.55, abs=0.02)
    line = Line(right + 0.3)  # the ends of one moon lie on the wrong side
    assert margin_of(line, field_of(line), points, labels) == pytest.approx(-0.3, abs=0.02)
    assert margin_of(Line(9.0), field_of(Line(9.0)), points, labels) == -4.0
    assert 0.55 < largest_margin(0.5) < 1.1  # a curved boundary leaves more room than a line


def test_two_moons_are_measured_where_their_points_are(tmp_path, monkeypatch):
    """On the CPU, also after a training on a GPU."""
    preset = EXPERIMENTS["two-moons"].presets("quick", None)
    task, here = TwoMoonsTask(preset, None, None, tmp_path), []
    task.history, model = [{"loss": 0.0}], task.build()
    monkeypatch.setattr(nn.Module, "cpu", lambda self: here.append(self) or self)
    model.register_forward_pre_hook(lambda *_: None if here else pytest.fail("on a GPU"))
    assert 0 <= task.evaluate(model, trial("test"))["accuracy"] <= 1
    assert here == [model]


def test_moons_leave_a_gap():
    """As in the code of gradient starvation: what has strayed is reflected."""
    points, labels = moons(300, 0.1, 0.1, 3)
    side = torch.where(labels == 0, 1.0, -1.0)
    assert bool((points[:, 0] * side > 0.1).all())
    assert labels.bincount().tolist() == [150, 150]
    turned, _ = moons(300, 0.1, 0.1, 3, angle=45)
    half = math.sqrt(0.5)
    turn = torch.tensor([[half, -half], [half, half]])
    assert torch.allclose(turned, points @ turn, atol=1e-6)
    closed, _ = moons(300, 0.0, None, 3)
    assert bool((closed[:, 0] * side < 0).any())


def test_layers_are_changed_as_asked():
    model = Layers(5)
    assert model(torch.zeros(4, 2)).shape == (4,)
    model.change(layers=5, dropout=0.25, batch_norm=True)
    assert [m.p for m in model.modules() if isinstance(m, nn.Dropout)] == [0.25] * 4
    assert len([m for m in model.modules() if isinstance(m, nn.BatchNorm1d)]) == 4
    assert len([m for m in model.modules() if isinstance(m, nn.Linear)]) == 5


def test_two_moons_has_the_panels_of_gradient_starvation():
    """Figure 3 of Pezeshki et al. 2021, from its code: ten panels, each with its numbers."""
    preset = EXPERIMENTS["two-moons"].presets("paper", None)
    assert dict(preset.options) == {"points": 300, "noise": 0.1, "gap": 0.1, "width": 500}
    training = preset.training
    assert (training.optimizer, training.learning_rate, training.momentum) == ("sgd", 0.01, 0.9)
    assert (training.steps, training.batch_size, training.schedule) == (1000, 300, "constant")
    assert (preset.seeds, training.weight_decay) == (10, 0.0)
    panels = [arm for arm in EXPERIMENTS["two-moons"].arms(preset) if arm.rule is None]
    assert [arm.fixed for arm in panels] == [
        {}, {"weight_decay": 0.01}, {"steps": 10_000},
        {"optimizer": "adam", "learning_rate": 1e-4}, {"optimizer": "adam", "learning_rate": 3e-3},
        {"angle": 45}, {"dropout": 0.7}, {"batch_norm": True}, {"layers": 5},
        {"decoupling": 0.006},  # λ/2 is 0.003
    ]  # fmt: skip


@pytest.mark.parametrize("arm", EXPERIMENTS["two-moons"].arms(
    EXPERIMENTS["two-moons"].presets("quick", None)), ids=lambda arm: arm.name)  # fmt: skip
def test_every_panel_separates_the_moons(tmp_path, arm):
    preset = EXPERIMENTS["two-moons"].presets("quick", None)
    task = EXPERIMENTS["two-moons"].task(preset, None, None, tmp_path)
    torch.manual_seed(0)
    model, point = task.build(), dict(arm.points[0])
    one = trial("test", **point)
    if arm.rule is not None:
        point.pop("calibrated", None)
        vcreg_fx.insert(model, arm.rule, example_inputs=task.example, **point)
        assert len(vcreg_fx.sites(model)) == 2
    task.train(model, one)
    assert task.evaluate(model, one)["accuracy"] > 0.9 or arm.fixed.get("learning_rate") == 1e-4


# Timing -------------------------------------------------------------------------------------


def test_timing_is_the_benchmark(tmp_path, monkeypatch):
    from vcreg_fx.benchmark import bench
    from vcreg_fx.experiments.papers import _timing

    called = []

    def shorter(models, inputs, **options):
        called.append((list(models), options))
        return bench(models, inputs, **{**options, "rounds": 1, "variants": ["ours"]})

    monkeypatch.setattr(_timing, "bench", shorter)
    outcome = reproduce("timing", tmp_path / "out", scale="quick")
    ((names, options),) = called
    assert names == ["torchvision/resnet18"] and options["rounds"] == 3
    assert outcome.report["measured"]["machine"]["threads"] == 1
    assert "| ours |" in str(outcome)
    written = json.loads((tmp_path / "out" / "timing.json").read_text())["measured"]
    assert [row["variant"] for row in written["models"][0]["rows"]] == ["identity", "ours"]
    assert (tmp_path / "out" / "table.png").stat().st_size > 10_000
    with pytest.raises(ReproductionError, match="takes no data"):
        reproduce("timing", tmp_path / "out", seeds=3)
    with pytest.raises(ReproductionError, match="runs by itself"):
        EXPERIMENTS["timing"].presets("quick", None)
    with pytest.raises(ReproductionError, match="benchmark's"):
        write_evidence(outcome, tmp_path)


# The command --------------------------------------------------------------------------------


def command(*arguments):
    return CliRunner().invoke(app, ["reproduce", *map(str, arguments)])


def test_data_that_is_too_small_for_a_preset_is_refused(tmp_path):
    for changes in ({"validation": 5_000}, {"validation": 80, "train_images": 48}):
        with pytest.raises(ReproductionError, match=r"own does not fit this preset: .* to be held"):
            HierarchyTask(TINY.but(**changes), data(), network, tmp_path)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["hierachy"], "Did you mean hierarchy"),
        (["hierarchy", "--quick", "--seeds", 1], "--seeds"),
        (["hierarchy", "--data", "cifar100"], "--data-root"),
        (["video", "--preset", "paper"], "HMDB51 has to be read from a folder: --data-root"),
        (["video", "--data", "hmdb"], "Did you mean hmdb51"),
        (["noise", "--preset", "paper", "--data-root", "nowhere"], "nowhere is no folder"),
        (["hierarchy", "--preset", "papers"], "no scale 'papers'"),
        (["placement", "--scale", "large"], "transfer, hierarchy, collapse, ssl have one"),
        (["timing", "--scale", "large"], "timing has no scale 'large'"),
        (["transfer", "--quick", "--weights", "nowhere.pt"], "nowhere.pt is not there"),
        (["hierarchy", "--quick", "--weights", __file__], "no option weights"),
        (["hierarchy", "--preset", "paper", "--quick"], "choose one"),
        (["hierarchy", "--quick", "--classes", "x.json"], "--data imagenet"),
        (["two-moons", "--data", "digits"], "makes its own data"),
        (["modalities", "--classes", "living_9"], "makes its own data"),
        (["collapse", "--quick", "--set", "epochs=[1,9]"], "and 4, the last that is trained"),
        (["collapse", "--quick", "--set", "epochs=[1]"], "and 4, the last that is trained"),
        (["noise", "--quick", "--set", "sigmas=[]"], "a list of different numbers"),
        (["noise", "--quick", "--set", 'sigmas=["a"]'], "a list of different numbers"),
        (["noise", "--quick", "--network", "videomae-small"], "videomae-small takes videos"),
        (["long-tail", "--quick", "--set", "largest=200"], "Give --set largest=116, or fewer"),
        (["long-tail", "--preset", "paper", "--data", "imagenet"], "no augmentation 'crop'"),
        (["timing", "--quick", "--tensorboard"], "--retry-failed"),
        (["timing", "--quick", "--retry-failed"], "--retry-failed"),
        (["collapse", "--data", "fashion-mnist", "--data-root", "nowhere"], "apt install"),
    ],
)
def test_mistakes_on_the_command_line(tmp_path, arguments, message):
    result = command(*arguments, "-o", tmp_path / "out")
    assert result.exit_code in {1, 2}
    assert message in " ".join(result.stderr.split())
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
@pytest.mark.parametrize("name", [*QUICK, *SELF_SUPERVISED])
def test_quick(tmp_path, name, monkeypatch):
    monkeypatch.setenv("COLUMNS", "1000")  # so that nothing is wrapped
    result = command(name, "--quick", "-o", tmp_path)
    assert result.exit_code == 0, result.output
    report = json.loads((tmp_path / f"{name}.json").read_text())
    assert report["scale"] == "quick"
    main = report["criterion"]
    for row in report["rows"]:
        assert all(math.isfinite(metrics[main]) for metrics in row["by_seed"].values())
        assert row["name"] in result.stdout and row["name"] in (tmp_path / f"{name}.md").read_text()
    assert (tmp_path / f"{name}.png").stat().st_size > 10_000


@pytest.mark.parametrize(
    "name", sorted({*QUICK, *SELF_SUPERVISED} - {"video", "two-moons", "modalities"})
)
def test_digits_fit_every_experiment_of_images(tmp_path, name):
    """They need no package, and so a study can be begun with them at once."""
    experiment = EXPERIMENTS[name]
    for scale in ("quick", "default"):
        preset = experiment.presets(scale, "digits")
        task = experiment.task(preset, load_images("digits"), None, tmp_path)
        for split in ("validation", "test"):
            roles = task.roles(trial(split))
            assert min(len(roles.train), len(roles.measure)) > 50


def test_the_command_of_a_report_repeats_it(tmp_path):
    """It names all that was asked for: the same folder takes it, where nothing is left to do."""
    asked = ["transfer", "--quick", "--data", "digits", "--network", "resnet8-half", "--seeds", 2,
             "--set", 'probes=["unseen"]', "--set", "strengths=[1.0]", "--arm", "no VCReg",
             "--arm", "mean removal alone"]  # fmt: skip
    assert command(*asked, "-o", tmp_path / "one").exit_code == 0
    report = json.loads((tmp_path / "one" / "transfer.json").read_text())
    program, *words = shlex.split(report["command"])
    assert program == "vcreg-fx" and report["command"] in (tmp_path / "one/transfer.md").read_text()
    before = sorted((tmp_path / "one" / "store").rglob("trial.json"))
    times = [path.stat().st_mtime_ns for path in before]
    again = command(*words[1:], "-o", tmp_path / "one")
    assert again.exit_code == 0, again.output
    assert sorted((tmp_path / "one" / "store").rglob("trial.json")) == before
    assert [path.stat().st_mtime_ns for path in before] == times
    assert json.loads((tmp_path / "one" / "transfer.json").read_text()) == report


def test_the_command_of_a_report_names_no_files():
    preset = EXPERIMENTS["transfer"].presets("paper", None)
    found = _reproduce._command(
        "transfer", "paper", preset, "/data/here", "torchvision/vit_b_32", None,
        {"weights": "/data/w.pt", "protocol": "finetune"}, "living_9",
    )  # fmt: skip
    assert found == (
        "vcreg-fx reproduce transfer --preset paper --data imagenet --data-root DIR --classes "
        "living_9 --network torchvision/vit_b_32 --weights FILE --set protocol=finetune --seeds 3"
    )


def test_a_report_of_settings_from_python_says_so(tmp_path):
    outcome = run(tmp_path / "one", arms=["no VCReg", "mean removal alone"])
    assert outcome.report["command"] is None
    assert "It was started from Python" in outcome.to_markdown()


@pytest.mark.slow
def test_quick_timing(tmp_path):
    result = command("timing", "--quick", "-o", tmp_path)
    assert result.exit_code == 0, result.output
    measured = json.loads((tmp_path / "timing.json").read_text())["measured"]
    assert len(measured["models"][0]["rows"]) > 3
    assert (tmp_path / "table.png").stat().st_size > 10_000


@pytest.mark.slow
def test_a_command_that_was_terminated_goes_on(tmp_path):
    arguments = [
        sys.executable,
        "-m",
        "vcreg_fx",
        "reproduce",
        "hierarchy",
        "--quick",
        "--seeds",
        "2",
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run([*arguments, "-o", tmp_path / "whole"], cwd=ROOT, env=environment, check=True)
    process = subprocess.Popen([*arguments, "-o", tmp_path / "stopped"], cwd=ROOT, env=environment)
    folder = tmp_path / "stopped" / "checkpoints"
    while not (folder.exists() and any(folder.glob("*.pt"))):
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    assert process.wait() in {128 + signal.SIGTERM, -signal.SIGTERM}
    subprocess.run([*arguments, "-o", tmp_path / "stopped"], cwd=ROOT, env=environment, check=True)
    found = [
        json.loads((tmp_path / name / "hierarchy.json").read_text())
        for name in ("whole", "stopped")
    ]
    assert numbers(found[0]) == numbers(found[1])


@pytest.mark.slow
def test_under_torchrun(tmp_path):
    """Two processes train along, and only the first writes."""
    script = tmp_path / "script.py"
    script.write_text(
        "from vcreg_fx.experiments.papers import reproduce, EXPERIMENTS\n"
        "preset = EXPERIMENTS['hierarchy'].presets('quick', None).but(\n"
        "    grid={'alpha': (0.64,), 'beta': (0.08,)}, train_images=200)\n"
        f"outcome = reproduce('hierarchy', {str(tmp_path / 'out')!r}, preset=preset, seeds=2)\n"
        "print('RANK SAYS', len(outcome.report['rows']))\n"
    )
    printed = torchrun(script)
    assert printed.count("RANK SAYS 8") == 2
    report = json.loads((tmp_path / "out" / "hierarchy.json").read_text())
    assert all(row["by_seed"]["0"]["superclass"] > 0.3 for row in report["rows"][:3])


def test_image_sets():
    images = ImageSet(TensorDataset(torch.arange(6.0), torch.arange(6)), torch.arange(6))
    some = images.of_classes([4, 1])
    assert some.labels.tolist() == [1, 0]
    assert some.pairs.tensors[0].tolist() == [1.0, 4.0]
