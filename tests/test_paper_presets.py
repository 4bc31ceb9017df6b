"""The presets "paper": their numbers beside their places in the papers, and that they train."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import vcreg_fx
from tests.ranks import torchrun
from vcreg_fx.ablation import Trial
from vcreg_fx.ablation._trials import INSERT
from vcreg_fx.experiments.images import IMAGENET_SUBSETS, ImageSet, load_images, read_classes
from vcreg_fx.experiments.images._datasets import RECIPES as IMAGENET_RECIPES
from vcreg_fx.experiments.papers import EXPERIMENTS, NETWORKS
from vcreg_fx.experiments.papers._vicreg_terms import method_of
from vcreg_fx.experiments.training._self_supervised import Method
from vcreg_fx.experiments.training._settings import (
    averaging_weight,
    make_optimizer,
    make_schedule,
)
from vcreg_fx.experiments.video import uniform_clips

IMAGENET, CIFAR = 1_281_167, 50_000
LONG_TAIL = {"cifar10": 12_406, "cifar100": 10_847}  # images, with an imbalance of 100

# Settings by their place in VCReg.
APPENDIX_A = {  # ConvNeXt-Atto on ImageNet, and torchvision's recipe for ConvNeXts
    "epochs": 90, "batch_size": 4096, "optimizer": "adamw", "warmup_epochs": 5,
    "weight_decay": 0.05, "norm_weight_decay": 0.0,
}  # fmt: skip
TORCHVISION = {
    "warmup_start": 0.01, "label_smoothing": 0.1, "mixup": 0.2, "cutmix": 1.0,
    "ema_decay": 0.99998, "ema_every": 32, "repeats": 4,
}  # fmt: skip
APPENDIX_C3 = {**APPENDIX_A, "epochs": 200}
APPENDIX_C4 = {
    "epochs": 100, "batch_size": 256, "optimizer": "adamw", "warmup_epochs": 10,
    "weight_decay": 0.05, "norm_weight_decay": 0.0,
    "mixup": 0.0, "cutmix": 0.0, "repeats": 1, "label_smoothing": 0.0, "ema_decay": 0.0,
}  # fmt: skip
RATES = (0.016, 0.008)  # A and C.4


@pytest.mark.parametrize(
    ("name", "data", "network", "settings", "steps", "augment"),
    [
        ("placement", "imagenet", "convnext-atto", {**APPENDIX_A, **TORCHVISION}, 312 * 90,
         "torchvision"),
        ("collapse", "imagenet", "convnext-atto", {**APPENDIX_A, **TORCHVISION}, 312 * 90,
         "torchvision"),
        ("hierarchy", "cifar100", "convnext-atto", {**APPENDIX_C3, **TORCHVISION}, 12 * 200,
         "torchvision"),
        ("long-tail", "cifar100", "resnet32", APPENDIX_C4, 42 * 100, "crop"),
        ("long-tail", "cifar10", "resnet32", APPENDIX_C4, 48 * 100, "crop"),
    ],
)  # fmt: skip
def test_settings_of_the_paper(name, data, network, settings, steps, augment):
    preset = EXPERIMENTS[name].presets("paper", data)
    training = preset.training
    assert (preset.data, preset.network, preset.augment) == (data, network, augment)
    assert {key: getattr(training, key) for key in settings} == settings
    assert preset.seeds == 3  # C.1: every experiment three times
    assert tuple(preset.grid["learning_rate"]) == RATES
    assert training.learning_rate in RATES
    images = LONG_TAIL[data] if name == "long-tail" else {"imagenet": IMAGENET}.get(data, CIFAR)
    assert training.epochs * (images // training.batch_size) == steps
    rates = rates_of(training, steps)
    top = training.warmup_epochs * steps // training.epochs
    assert rates[0] == pytest.approx(0.01)
    assert rates[top // 2] == pytest.approx(0.505, abs=0.01)
    assert rates[top] == max(rates) == 1.0
    assert rates[(top + steps) // 2] == pytest.approx(0.5, abs=0.01)
    assert rates[-1] < 1e-5
    if training.ema_decay:
        reference = (1 - 0.99998) * training.batch_size * 32 / training.epochs
        weight = averaging_weight(training, steps)
        assert weight == pytest.approx(reference * IMAGENET / images, rel=0.03)


@pytest.mark.parametrize(
    ("network", "settings", "steps"),
    [
        # torchvision's references/classification/README.md, on 8 GPUs: batches of all of them
        ("resnet50", {"epochs": 600, "batch_size": 8 * 128, "optimizer": "sgd",
                      "learning_rate": 0.5, "momentum": 0.9, "weight_decay": 2e-5,
                      "norm_weight_decay": 0.0, "warmup_epochs": 5, "warmup_start": 0.01,
                      "label_smoothing": 0.1, "mixup": 0.2, "cutmix": 1.0, "repeats": 4,
                      "clip_norm": None}, 1251 * 600),
        ("convnext_tiny", {"epochs": 600, "batch_size": 8 * 128, "optimizer": "adamw",
                           "learning_rate": 1e-3, "weight_decay": 0.05, "norm_weight_decay": 0.0,
                           "warmup_epochs": 5, "warmup_start": 0.01, "label_smoothing": 0.1,
                           "mixup": 0.2, "cutmix": 1.0, "repeats": 4}, 1251 * 600),
        ("vit_b_32", {"epochs": 300, "batch_size": 8 * 512, "optimizer": "adamw",
                      "learning_rate": 3e-3, "weight_decay": 0.3, "norm_weight_decay": None,
                      "warmup_epochs": 30, "warmup_start": 0.033, "label_smoothing": 0.11,
                      "mixup": 0.2, "cutmix": 1.0, "repeats": 3, "clip_norm": 1.0}, 312 * 300),
    ],
)  # fmt: skip
def test_recipes_of_table_1(network, settings, steps):
    recipe = EXPERIMENTS["transfer"].recipes[f"torchvision/{network}"]
    training = recipe["training"]
    assert {key: getattr(training, key) for key in settings} == settings
    assert (training.ema_decay, training.ema_every) == (0.99998, 32)
    assert training.epochs * (IMAGENET // training.batch_size) == steps
    crop, resize, policy, erasing = IMAGENET_RECIPES[recipe["augment"]]
    if network == "vit_b_32":
        assert (crop, resize, policy, erasing) == (224, 256, "AutoAugment", 0.0)
    else:
        assert (crop, resize, policy, erasing) == (176, 232, "TrivialAugmentWide", 0.1)
    steps //= 45  # the curve is one of shares of the steps
    rates = rates_of(training, steps)
    top = training.warmup_epochs * steps // training.epochs
    assert rates[0] == pytest.approx(training.warmup_start)
    assert rates[top] == max(rates) == 1.0
    left = (1 - averaging_weight(training, steps)) ** ((steps - top) // training.ema_every)
    assert left < 0.01  # of the weights at the end of the warm-up
    assert rates[-1] < 1e-5


def test_transfer_searches_vcreg_alone_on_the_papers_tasks():
    """C.1: α and β, all else from torchvision; 45 λ from 1e-5 to 1e5; the mean of three runs."""
    preset = EXPERIMENTS["transfer"].presets("paper", None)
    assert sorted(preset.grid) == ["alpha", "beta"]
    assert sorted(preset.grid["alpha"]) == [0.16, 0.32, 0.64, 1.28]
    assert sorted(preset.grid["beta"]) == [0.01, 0.02, 0.04, 0.08, 0.16]
    assert (len(preset["strengths"]), preset.seeds) == (45, 3)
    assert (min(preset["strengths"]), max(preset["strengths"])) == pytest.approx((1e-5, 1e5))
    assert preset["probes"] == (
        "inat18", "places205", "food101", "cars", "aircraft", "pets", "flowers", "dtd",
    )  # fmt: skip
    paper = EXPERIMENTS["transfer"].paper
    assert len(paper.rows) == 8
    for name, (*values, mean) in paper.rows.items():
        assert len(values) == 8
        assert mean == pytest.approx(sum(values) / 8, abs=0.011), name


# VCReg's C.2: "10 clips × 3 crops", α ∈ 1, 3, 5, β ∈ {0.1, 0.3, 0.5}, the rest from VideoMAE.
# VideoMAE's supplementary material (arXiv 2203.12602v3, section 7): "HMDB51. […] 16 frames with a
# temporal stride of 2 are sampled. For fine-tuning, the model is trained with repeated
# augmentation and a batch size of 128 for 50 epochs. The base learning rate, layer decay and drop
# path are set to 1e-3, 0.7 and 0.2"; table 12: AdamW, weight decay 0.05, 5 epochs of warm-up, a
# cosine, each video twice, label smoothing 0.1, mixup 0.8, cutmix 1.0. Its FINETUNE.md: the rate is
# that of 256, and a batch counts videos. Its run_class_finetuning.py: the head's weights × 0.001,
# no decay of biases and norms.
VIDEOMAE = {
    "optimizer": "adamw", "weight_decay": 0.05, "norm_weight_decay": 0.0, "bias_weight_decay": 0.0,
    "layer_decay": 0.7, "repeats": 2, "label_smoothing": 0.1, "mixup": 0.8, "cutmix": 1.0,
    "schedule": "cosine", "warmup_start": 1e-6 / 1e-3, "ema_decay": 0.0, "clip_norm": None,
}  # fmt: skip
HMDB51 = 51 * 70  # videos to train on, in each split


@pytest.mark.parametrize("name", ["video", "noise"])
def test_settings_of_table_2(name):
    """And of figures 3 and 4, on the same clips."""
    experiment = EXPERIMENTS[name]
    preset = experiment.presets("paper", None)
    training = preset.training
    assert (preset.data, preset.augment, preset.size) == ("hmdb51", "videomae", 224)
    assert {key: getattr(training, key) for key in VIDEOMAE} == VIDEOMAE
    assert (training.learning_rate, training.final_rate) == (1e-3 * 128 / 256, 1e-6 * 128 / 256)
    assert training.batch_size == 128 * 2  # clips
    seen = training.epochs * (HMDB51 // training.batch_size) * training.batch_size
    assert seen == pytest.approx(50 * 2 * HMDB51, rel=0.08)  # an incomplete batch is left out
    assert training.warmup_epochs / training.epochs == 5 / 50
    wanted = {"frames": 16, "stride": 2, "clips": 10, "crops": 3, "drop_path": 0.2,
              "head_scale": 1e-3, "weights": None, "pretraining": None}  # fmt: skip
    assert {key: preset[key] for key in wanted} == wanted
    assert dict(preset.grid) == {"alpha": (1.0, 3.0, 5.0), "beta": (0.1, 0.3, 0.5)}
    assert preset.seeds == 3  # a split each
    arms = experiment.arms(preset)
    assert {arm.rule for arm in arms[1:]} == {"head"}
    assert {len(arm.points) for arm in arms if "alpha" in arm.grid} == {9}
    if name == "noise":
        assert preset["sigmas"] == (1.0, 1.5, 2.0)
    vivit = experiment.recipes["vivit-base"]["options"]
    assert vivit == {**preset.options, "frames": 32}
    clips, crops, frames = preset["clips"], preset["crops"], preset["frames"]
    shown = uniform_clips(40, frames, preset["stride"], clips)
    assert [len(shown), len(shown[0]), crops] == [10, 16, 3]


def test_rows_of_table_2():
    rows = EXPERIMENTS["video"].paper.rows
    found = {name: value for name, (value,) in rows.items()}
    assert found == {
        "VideoMAE-S": 79.9, "VideoMAE-S (VCReg)": 80.6,
        "VideoMAE-B": 82.2, "VideoMAE-B (VCReg)": 83.0,
        "VideoMAEv2-S": 83.6, "VideoMAEv2-S (VCReg)": 83.9,
        "VideoMAEv2-B": 86.5, "VideoMAEv2-B (VCReg)": 86.9,
        "ViViT-B": 70.9, "ViViT-B (VCReg)": 71.6,
    }  # fmt: skip


def rates_of(settings, steps):
    """Return each step's learning rate, as a share of the largest."""
    optimizer = make_optimizer(nn.Linear(2, 2), settings)
    schedule, found = make_schedule(optimizer, steps, settings), []
    for _ in range(steps):
        found.append(optimizer.param_groups[0]["lr"] / settings.learning_rate)
        optimizer.step()
        schedule.step()
    return found


# Self-supervised learning -------------------------------------------------------------------

ZBONTAR = {  # Barlow Twins' protocol, which VCReg's C.5 follows
    "optimizer": "lars", "momentum": 0.9, "weight_decay": 1.5e-6, "norm_weight_decay": 0.0,
    "schedule": "cosine", "label_smoothing": 0.0, "mixup": 0.0, "cutmix": 0.0, "repeats": 1,
}  # fmt: skip


@pytest.mark.parametrize(("method", "base"), [("SimCLR", 0.3), ("VICReg", 0.2)])
def test_self_supervised_settings_of_vcreg(tmp_path, method, base):
    """C.5: LARS, the base rates of a batch of 256, 100 epochs, 5 of them a warm-up, batch 4096."""
    experiment = EXPERIMENTS["ssl"]
    preset = experiment.presets("paper", None)
    assert (preset.data, preset.network) == ("imagenet", "torchvision/resnet50")
    arms = [arm for arm in experiment.arms(preset) if arm.fixed["method"] == method]
    assert [arm.rule for arm in arms][:6] == [None, *["blocks"] * 5]
    for arm in arms:
        training = preset.training_with(arm.fixed)
        assert {key: getattr(training, key) for key in ZBONTAR} == ZBONTAR
        assert (training.epochs, training.warmup_epochs, training.batch_size) == (100, 5, 4096)
        assert training.learning_rate == pytest.approx(base * 4096 / 256)
        assert training.final_rate == pytest.approx(training.learning_rate / 1000)
        assert arm.rule is None or arm.fixed["calls"] == "mean"
    rates = rates_of(replace(training, optimizer="sgd"), 1000)
    assert rates[0] == pytest.approx(1e-6) and max(rates) == rates[50] == 1.0
    assert rates[25] == pytest.approx(0.5, abs=1e-5) and rates[-1] == pytest.approx(1e-3, abs=1e-5)
    assert sorted(preset.grid["alpha"]) == [0.16, 0.32, 0.64, 1.28]
    assert sorted(preset.grid["beta"]) == [0.01, 0.02, 0.04, 0.08, 0.16]
    method = Method(**preset["methods"][method])
    if base == 0.3:  # 2048 → 2048 → 256, ReLU between, batch norm after every layer
        assert (method.loss, method.expander, method.norm) == ("simclr", (2048, 256), "all")
    else:  # 2048 → 8192 → 8192; "fed to the infoNCE loss" must be VICReg's
        assert (method.loss, method.expander, method.norm) == ("mean square", (8192, 8192), "all")
        assert (method.invariance, method.variance, method.covariance) == (25, 25, 1)
    assert (preset.seeds, preset["views"], preset["probe"]) == (3, "vcreg", "sgd")
    assert preset["labelled"] == (0.01, 0.1)  # VICReg's C.2, semi-supervised
    assert len(preset["probes"]) == 8 and preset["crop"] is preset["drawn"] is None


VICREG_C4 = {  # "identical to the setting described in section 4.2", but epochs and base rate
    "optimizer": "lars", "momentum": 0.9, "weight_decay": 1e-6, "norm_weight_decay": 0.0,
    "batch_size": 2048, "learning_rate": 0.3 * 8, "final_rate": 0.002, "constant_rate": None,
}  # fmt: skip
BYOL_C4 = {**VICREG_C4, "batch_size": 4096, "learning_rate": 0.45 * 16, "final_rate": 0.0}
SIMSIAM_C4 = {
    **VICREG_C4, "optimizer": "sgd", "weight_decay": 1e-4, "norm_weight_decay": None,
    "learning_rate": 0.05 * 8, "final_rate": 0.0, "constant_rate": "predictor.",
}  # fmt: skip


@pytest.mark.parametrize(
    ("row", "settings", "views", "expander", "predictor"),
    [
        ("BYOL, ME SG PR BN", BYOL_C4, "byol", (4096, 256), (4096, 256)),
        ("SimSiam, SG PR BN", SIMSIAM_C4, "simsiam", (2048, 2048, 2048), (512, 2048)),
        ("SimSiam, SG PR", SIMSIAM_C4, "simsiam", (2048, 2048, 2048), (512, 2048)),
        ("SimSiam, SG", {**SIMSIAM_C4, "constant_rate": None}, "simsiam", (2048,) * 3, ()),
        ("VICReg, PR", VICREG_C4, "vicreg", (8192, 8192, 8192), (8192, 8192)),
        ("VICReg, PR BN", VICREG_C4, "vicreg", (8192, 8192, 8192), (8192, 8192)),
        ("VICReg, BN", VICREG_C4, "vicreg", (8192, 8192, 8192), ()),
        ("VICReg", VICREG_C4, "vicreg", (8192, 8192, 8192), ()),
    ],
)
def test_settings_of_vicregs_table_4(row, settings, views, expander, predictor):
    """C.4, with the architectures of each method's paper; 100 epochs, 10 of them a warm-up."""
    experiment = EXPERIMENTS["vicreg-terms"]
    preset = experiment.presets("paper", None)
    assert (preset.network, preset.seeds) == ("torchvision/resnet50", 2)
    found = [arm for arm in experiment.arms(preset) if arm.fixed["row"] == row]
    assert [arm.fixed["terms"] for arm in found] == ["none", "var", "var + cov"]
    for arm in found:
        training = preset.training_with(arm.fixed)
        assert {key: getattr(training, key) for key in settings} == pytest.approx(settings)
        assert (training.epochs, training.warmup_epochs) == (100, 10)
        assert arm.fixed.get("views", preset["views"]) == views
        method = method_of(row, arm.fixed["terms"], preset["heads"])
        assert (tuple(method.expander), tuple(method.predictor)) == (expander, predictor)
        assert method.momentum == (0.99 if row.startswith("BYOL") else 0.0)


def test_settings_of_vicregs_ablations():
    """Section 4.2 and C.4: an expander of 8192, λ = µ = 25, ν = 1, batches of 2048."""
    preset = EXPERIMENTS["vicreg"].presets("paper", None)
    assert {key: getattr(preset.training, key) for key in VICREG_C4} == VICREG_C4
    assert (preset.training.epochs, preset.training.warmup_epochs) == (100, 10)
    method = Method(**preset["methods"]["VICReg"])
    assert method == Method() and tuple(method.expander) == (8192,) * 3
    assert (method.invariance, method.variance, method.covariance) == (25, 25, 1)
    assert (preset["views"], preset["probe"], preset.seeds) == ("vicreg", "sgd", 3)
    assert preset["widths"] == (256, 512, 1024, 2048, 4096, 8192, 16384)
    assert [*preset["batches"]] == [128, 256, 512, 1024, 2048, 4096]
    assert [*preset["networks"]] == ["R101", "ViT-S"]


def test_table_4_of_vcreg():
    """Averages leave ImageNet out."""
    paper = EXPERIMENTS["ssl"].paper
    assert len(paper.rows) == 4
    for name, (_, *values, mean) in paper.rows.items():
        assert len(values) == 8
        assert mean == pytest.approx(sum(values) / 8, abs=0.011), name


# They train ---------------------------------------------------------------------------------


def few_digits(each=40):
    """Scikit-learn's digits, fewer and small, so that an epoch of a paper's batch is one step."""
    data = load_images("digits")
    chosen = torch.cat([(data.train.labels == i).nonzero().flatten()[:each] for i in range(10)])
    train, test = (
        ImageSet.of(nn.functional.avg_pool2d(part.pairs.tensors[0], 4), part.labels)
        for part in (data.train.subset(chosen), data.test)
    )
    return replace(data, train=train, test=test)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "options", "chances"),
    [
        ("placement", {"probes": ("all",), "strengths": (0.1, 10.0)}, {"mean": 0.1, "own": 0.1}),
        ("transfer", {"probes": ("all",), "strengths": (0.1, 10.0)}, {"mean": 0.1, "own": 0.1}),
        ("hierarchy", {}, {"subclass": 0.1, "superclass": 0.4}),
        ("long-tail", {"imbalance": 10}, {"accuracy": 0.1}),
        ("collapse", {"epochs": (90,), "images": 400, "information_images": 400, "steps": 50},
         {"accuracy": 0.1, "ncc": 0.1}),
    ],
)  # fmt: skip
def test_a_papers_preset_learns(tmp_path, name, options, chances):
    """Shrunk in data and model alone, it is far better than chance when it is measured."""
    experiment = EXPERIMENTS[name]
    preset = experiment.presets("paper", None)
    training = replace(preset.training, amp="none")  # bfloat16 is slow on many CPUs
    preset = preset.but(training=training, options={**preset.options, **options})
    task = experiment.task(preset, few_digits(), NETWORKS["resnet8-half"], tmp_path)
    trial = Trial("baseline", None, 0, {}, {"split": "test", "learning_rate": 0.016})
    torch.manual_seed(0)
    model = task.build()
    task.train(model, trial)
    found = task.evaluate(model, trial)
    for metric, chance in chances.items():
        assert found[metric] > chance + 0.4, (metric, found)


@pytest.mark.slow
@pytest.mark.parametrize(
    "arm",
    [
        "SimCLR", "SimCLR (VCReg)", "SimCLR (SIGReg)", "SimCLR (Radial-VCReg)",
        "VICReg", "VICReg (VCReg)", "VICReg (SIGReg)", "VICReg (Radial-VCReg)",
    ],
)  # fmt: skip
def test_vcregs_self_supervised_presets_learn(tmp_path, arm):
    """Few views of few images, 100 steps of LARS; probes beat chance, far.

    VICReg's expander is an eighth as wide: its loss is a mean over features, and biases, which LARS
    does not scale, take steps that are so much longer where there are fewer. The warm-up has 40
    steps, where it would have 5 of the paper's 1,560 with one step an epoch, and VICReg diverges.
    """
    experiment = EXPERIMENTS["ssl"]
    preset = experiment.presets("paper", None)
    widths = {"SimCLR": (64, 32), "VICReg": (1024, 1024)}
    methods = {key: {**found, "expander": widths[key]} for key, found in preset["methods"].items()}
    preset = preset.but(
        training=replace(preset.training, amp="none", workers=0, warmup_epochs=40),
        options={**preset.options, "probes": (), "drawn": 4, "methods": methods},
    )
    task = experiment.task(preset, few_digits(), NETWORKS["resnet8-half"], tmp_path)
    found = self_supervised(task, next(a for a in experiment.arms(preset) if a.name == arm))
    assert found["own"] > 0.5 and found["std_z"] > 0.3


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "arm"),
    [
        ("vicreg", "VICReg"), ("vicreg", "Barlow Twins"),
        ("vicreg-terms", "BYOL, ME SG PR BN: var"), ("vicreg-terms", "SimSiam, SG PR BN: none"),
        ("vicreg-terms", "VICReg, PR BN: var + cov"),
    ],
)  # fmt: skip
def test_vicregs_presets_learn(tmp_path, name, arm):
    """The same with VICReg's, BYOL's and SimSiam's settings: they learn, and do not collapse."""
    experiment = EXPERIMENTS[name]
    preset = experiment.presets("paper", None)
    options = {**preset.options, "drawn": 4}
    if name == "vicreg":
        options["methods"] = {key: {**found, "expander": (1024, 1024, 1024)}
                              for key, found in preset["methods"].items()}  # fmt: skip
    else:
        options["heads"] = {"byol": ((64, 32), (64, 32)), "simsiam": ((32,) * 3, (16, 32)),
                            "vicreg": ((1024,) * 3, (1024, 1024))}  # fmt: skip
    training = replace(preset.training, amp="none", workers=0)
    task = experiment.task(preset.but(training=training, options=options), few_digits(),
                           NETWORKS["resnet8-half"], tmp_path)  # fmt: skip
    found = self_supervised(task, next(a for a in experiment.arms(preset) if a.name == arm))
    assert found["own"] > 0.5 and not found["collapsed"]


def self_supervised(task, arm):
    """Train an arm with the seed 0 and measure it."""
    torch.manual_seed(0)
    model, point = task.build(), dict(arm.points[0])
    if arm.rule is not None:
        given = {name: point.pop(name) for name in {*INSERT} & {*point}}
        vcreg_fx.insert(
            model, arm.rule, example_inputs=(torch.zeros(2, *task.data.shape),), **given
        )
    trial = Trial(arm.name, arm.rule, 0, {}, {"split": "test", **point})
    task.train(model, trial)
    return task.evaluate(model, trial)


@pytest.mark.slow
@pytest.mark.parametrize("network", EXPERIMENTS["transfer"].recipes)
def test_table_1s_recipes_learn(tmp_path, network):
    """Each on digits with a small network; 600 epochs are shortened, their batch is one step."""
    transfer = EXPERIMENTS["transfer"]
    training = replace(transfer.recipes[network]["training"], amp="none", epochs=150)
    options = {**transfer.presets("paper", None).options, "probes": ("all",), "strengths": (1.0,)}
    preset = transfer.presets("paper", None).but(training=training, options=options)
    task = transfer.task(preset, few_digits(), NETWORKS["resnet8-half"], tmp_path)
    trial = Trial("baseline", None, 0, {}, {"split": "test"})
    torch.manual_seed(0)
    model = task.build()
    task.train(model, trial)
    assert task.evaluate(model, trial)["own"] > 0.5


@pytest.mark.slow
def test_two_moons_of_the_paper_are_separated(tmp_path):
    experiment = EXPERIMENTS["two-moons"]
    task = experiment.task(experiment.presets("paper", None), None, None, tmp_path)
    trial = Trial("baseline", None, 0, {}, {"split": "test"})
    torch.manual_seed(0)
    model = task.build()
    task.train(model, trial)
    found = task.evaluate(model, trial)
    assert found["accuracy"] > 0.95 and found["margin"] > 0


@pytest.mark.slow
def test_a_row_of_table_1_on_two_processes(tmp_path):
    """ImageNet's layout with a few images: ``torchrun``, a network of torchvision, two tasks."""
    folder = tmp_path / "data"
    pictures = [f"{part}/n{label}/{i}.png" for part in ("train", "val") for label in range(3)
                for i in range(8)]  # fmt: skip
    pictures += [f"places205/{name}" for name in pictures]
    pictures += [f"inat18/train_val2018/{i}.png" for i in range(12)]
    for number, name in enumerate(pictures):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(number).integers(0, 255, (40, 50, 3), np.uint8)
        Image.fromarray(pixels).save(folder / name)
    for part in ("train", "val"):
        found = {
            "images": [{"id": i, "file_name": f"train_val2018/{i}.png"} for i in range(12)],
            "annotations": [{"image_id": i, "category_id": i % 2} for i in range(12)],
            "categories": [{"id": 0}, {"id": 1}],
        }
        (folder / "inat18" / f"{part}2018.json").write_text(json.dumps(found))
    script = tmp_path / "script.py"
    script.write_text(f"""
from dataclasses import replace
from vcreg_fx.experiments.papers import EXPERIMENTS, reproduce
from vcreg_fx.experiments.papers._reproduce import _preset
transfer = EXPERIMENTS["transfer"]
preset = _preset(transfer, "paper", None, "torchvision/convnext_tiny", None, 2, {{}})
training = replace(preset.training, epochs=1, batch_size=8, warmup_epochs=0, workers=0, amp="none")
reproduce(
    "transfer", {str(tmp_path / "out")!r}, data_root={str(folder)!r}, scale="paper",
    preset=preset.but(training=training, size=64, grid={{"alpha": (0.64,), "beta": (0.08,)}}),
    arms=["no VCReg", "VCReg, Algorithm 1, mean removed"],
    options={{"probes": ("places205", "inat18")}},
)
""")
    torchrun(script)
    report = json.loads((tmp_path / "out" / "transfer.json").read_text())
    assert report["preset"]["network"] == "torchvision/convnext_tiny"
    assert [row["sites"] for row in report["rows"]] == [0, 18]
    assert {"mean", "places205", "inat18", "own"} <= set(report["rows"][1]["by_seed"]["1"])


# Table 5's subsets of ImageNet -----------------------------------------------------------------

TABLE_5 = {"living_9": (9, 72), "mixed_10": (10, 60), "mixed_13": (13, 78),
           "geirhos_16": (16, 32), "big_12": (12, 240)}  # fmt: skip


@pytest.mark.parametrize("name", IMAGENET_SUBSETS)
def test_subsets_of_imagenet(name):
    """Table 5: superclasses and classes; of each superclass the first ones by their number."""
    from timm.data import ImageNetInfo

    groups = IMAGENET_SUBSETS[name]
    classes = [wordnet for members in groups.values() for wordnet in members]
    assert (len(groups), len(set(classes)), len(classes)) == (*TABLE_5[name], len(set(classes)))
    assert len({len(members) for members in groups.values()}) == 1
    known = ImageNetInfo().label_names()
    assert set(classes) <= set(known)
    for members in groups.values():
        assert list(members) == sorted(members)
    assert read_classes(name) is groups


def test_subsets_have_what_their_superclasses_say():
    from timm.data import ImageNetInfo

    info = ImageNetInfo()
    lemmas = {
        group: [info.label_name_to_description(name, detailed=False) for name in members]
        for group, members in IMAGENET_SUBSETS["mixed_13"].items()
    }
    assert lemmas["boat"] == ["canoe", "fireboat", "gondola", "lifeboat", "speedboat", "yawl"]
    assert "tiger" not in lemmas["dog"] and "Chihuahua" in lemmas["dog"]
    assert lemmas["feline"][0].startswith("tabby")
    dogs = set(IMAGENET_SUBSETS["big_12"]["dog"])
    assert not dogs & set(IMAGENET_SUBSETS["big_12"]["carnivore"])  # the nearest superclass counts
