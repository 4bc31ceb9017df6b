"""Self-supervised training: losses beside lightly's and the papers' formulas, views, branches."""

from __future__ import annotations

import copy
import itertools
import json
import math
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import TensorDataset

import vcreg_fx
from placement_rules import parse
from tests.ranks import torchrun
from vcreg_fx.ablation import Trial
from vcreg_fx.experiments.images import DataError, ImageData, ImageSet, load_images
from vcreg_fx.experiments.images._glyphs import glyphs
from vcreg_fx.experiments.images._views import VIEWS, Views
from vcreg_fx.experiments.papers import EXPERIMENTS, NETWORKS, ReproductionError, reproduce
from vcreg_fx.experiments.papers._ssl import SelfSupervisedTask, without_head
from vcreg_fx.experiments.papers._transfer import TransferTask
from vcreg_fx.experiments.papers._vicreg_terms import COLLAPSED, ROWS, TERMS, method_of
from vcreg_fx.experiments.training import Stopped, TrainSettings, fit
from vcreg_fx.experiments.training._distributed import Processes, synchronized
from vcreg_fx.experiments.training._self_supervised import (
    Embedded,
    Method,
    Objective,
    Siamese,
    make_head,
)
from vcreg_fx.experiments.training._settings import make_optimizer, make_schedule

ROOT = Path(__file__).resolve().parent.parent
lightly_loss = pytest.importorskip("lightly.loss")


def embedded(n=16, d=6, *, seed=0, predictor=False):
    """Two correlated views in float64, whose gradients are wanted."""
    generator = torch.Generator().manual_seed(seed)
    first, noise, other = (torch.randn(n, d, generator=generator).double() for _ in range(3))
    z = first.requires_grad_(), (first.detach() + noise / 2 + 0.3).requires_grad_()
    p = (z[0] * 1.5 + other, z[1] - other) if predictor else z
    return Embedded(z, z, p, z)


def gradients(loss, found):
    return torch.stack(torch.autograd.grad(loss, found.embeddings, retain_graph=True))


def same(loss, expected, found):
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)
    ours, theirs = gradients(loss, found), gradients(expected, found)
    assert float((ours - theirs).norm() / theirs.norm()) < 1e-6


# Losses -------------------------------------------------------------------------------------


@pytest.mark.parametrize("weights", [(25.0, 25.0, 1.0), (1.0, 0.0, 0.3), (0.0, 10.0, 1.0)])
def test_vicreg_is_that_of_lightly_and_of_the_functional_core(weights):
    """lightly halves the variance term and averages the invariance, as the published code does."""
    found = embedded()
    loss = Objective(Method("mean square", *weights))(found)
    same(loss, lightly_loss.VICRegLoss(*weights)(*found.embeddings), found)
    invariance, variance, covariance = weights
    core = vcreg_fx.vicreg_loss(*found.embeddings, invariance / 6, variance / 2, covariance)
    same(loss, core, found)


def test_simclr_is_the_papers_formula():
    """Chen et al. 2020, Eq. 1: each view against all others of the batch."""
    found = embedded()
    z = F.normalize(torch.cat(found.embeddings), dim=1)
    similarity = (z @ z.T / 0.1).exp()
    similarity = similarity - torch.diag(similarity.diagonal())
    other = torch.arange(32).roll(16)
    expected = -(similarity[torch.arange(32), other] / similarity.sum(dim=1)).log().mean()
    same(Objective(Method("simclr"))(found), expected, found)


def test_barlow_twins_is_the_papers_formula():
    """Zbontar et al. 2021, Eq. 1 and 2, with λ = 0.005."""
    found = embedded()
    a, b = ((z - z.mean(0)) / z.std(0, correction=0) for z in found.embeddings)
    c = a.T @ b / 16
    off = c - torch.diag(c.diagonal())
    expected = (1 - c.diagonal()).square().sum() + 5e-3 * off.square().sum()
    ours = Objective(Method("barlow"))(found)
    assert ours.item() == pytest.approx(expected.item(), rel=1e-3)  # it adds ε to variances


@pytest.mark.parametrize(
    ("kind", "distance"),
    [
        ("mean square", lambda z, p: (z - p).square().mean(dim=1)),
        ("normalized square", lambda z, p: 2 - 2 * F.cosine_similarity(z, p)),
        ("cosine", lambda z, p: -F.cosine_similarity(z, p)),
    ],
)
@pytest.mark.parametrize("terms", [(0.0, 0.0), (1.0, 0.0), (1.0, 0.01)])
def test_predictions_are_compared_as_equation_8_says(kind, distance, terms):
    found = embedded(predictor=True)
    (z, other), (p, q) = found.embeddings, found.predictions
    expected = (distance(z, q) + distance(other, p)).sum() / 32
    variances, covariances = (
        [term(view) for view in (z, other)]
        for term in (
            vcreg_fx.variance_loss,
            lambda view: vcreg_fx.covariance_loss(view, normalization="vicreg"),
        )
    )
    if kind != "mean square":  # of directions, whose standard deviation is to be 1/√d
        units = [F.normalize(view, dim=1) for view in (z, other)]
        variances = [vcreg_fx.variance_loss(view, 1 / math.sqrt(6)) for view in units]
    expected = expected + terms[0] * sum(variances) / 2 + terms[1] * sum(covariances)
    same(Objective(Method(kind, 1.0, *terms))(found), expected, found)


def test_normalized_embeddings():
    """Table 8: standardized, the variance term asks for nothing; of length 1, γ is 1/√d."""
    found = embedded()
    standard = [(z - z.mean(0)) / z.std(0, correction=0) for z in found.embeddings]
    loss = Objective(Method(embedding="std"))(found)
    expected = vcreg_fx.vicreg_loss(*standard, 25 / 6, 12.5)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-3)  # torch's ε
    unit = [F.normalize(z, dim=1) for z in found.embeddings]
    expected = vcreg_fx.vicreg_loss(*unit, 25 / 6, 12.5, gamma=1 / math.sqrt(6))
    same(Objective(Method(embedding="l2"))(found), expected, found)


# Branches -----------------------------------------------------------------------------------


def encoder(width=6):
    return nn.Sequential(nn.Flatten(), nn.Linear(16, width), nn.BatchNorm1d(width), nn.ReLU())


def pairs(n=32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    base = torch.randn(n, 1, 1, 4, 4, generator=generator)
    views = base + 0.2 * torch.randn(n, 2, 1, 4, 4, generator=generator)
    return TensorDataset(views, torch.zeros(n, dtype=torch.long))


BYOL = Method("normalized square", 1.0, 0.0, 0.0, (8, 4), (8, 4), momentum=0.9)
SIMSIAM = Method("cosine", 1.0, 0.0, 0.0, (8, 4), (8, 4), stop_gradient=True)
PLAIN = Method(expander=(8, 8))


def test_heads_are_the_papers():
    """VCReg's C.5: ReLU between layers, batch norm after every one; VICReg's 4.2: inner ones."""
    kinds = [type(m).__name__ for m in make_head(5, (7, 3), "all").layers]
    assert kinds == ["Linear", "BatchNorm1d", "ReLU", "Linear", "BatchNorm1d"]
    kinds = [type(m).__name__ for m in make_head(5, (7, 7, 3), "inner").layers]
    assert kinds == ["Linear", "BatchNorm1d", "ReLU"] * 2 + ["Linear"]
    assert [type(m).__name__ for m in make_head(5, (7, 3), "none").layers] == [
        "Linear", "ReLU", "Linear",
    ]  # fmt: skip


def test_targets_get_no_gradient():
    views = pairs().tensors[0]
    for method in (SIMSIAM, BYOL):
        model = Siamese(encoder(), 6, method)
        found = model(views)
        assert [z.requires_grad for z in (*found.predictions, *found.targets)] == [
            True, True, False, False,
        ]  # fmt: skip
        Objective(method)(found).backward()
        assert all(p.grad is not None for p in model.predictor.parameters())
    assert all(p.grad is None for p in model.teacher.parameters())
    plain = Siamese(encoder(), 6, PLAIN)(views)
    assert plain.predictions is plain.embeddings is plain.targets


def test_the_momentum_encoder_follows():
    """The weight of the old average rises from its first value to 1 by a cosine."""
    model = Siamese(encoder(), 6, BYOL)
    before = [p.clone() for p in model.teacher.parameters()]
    live = [*model.encoder.parameters(), *model.expander.parameters()]
    for p in live:
        p.data.add_(1.0)
    model.follow(1, 11)
    moved = [float((p - b).mean()) for p, b in zip(model.teacher.parameters(), before, strict=True)]
    assert moved == pytest.approx([0.1] * len(moved), abs=1e-6)
    model.follow(6, 11)  # half of the way: 0.95
    moved = [float((p - b).mean()) for p, b in zip(model.teacher.parameters(), before, strict=True)]
    assert moved == pytest.approx([0.1 + 0.9 * 0.05] * len(moved), abs=1e-6)
    model.follow(11, 11)
    again = [float((p - b).mean()) for p, b in zip(model.teacher.parameters(), before, strict=True)]
    assert again == pytest.approx(moved, abs=1e-6)


@pytest.mark.parametrize("demean", ["statistics", "activations"])
def test_the_momentum_encoder_has_no_penalty(demean):
    """Where means are removed from the live encoder, they are removed from its copy."""
    live, example = encoder(), (torch.zeros(2, 1, 4, 4),)
    vcreg_fx.insert(live, "modules('1')", example_inputs=example, demean=demean)
    teacher = Siamese(live, 6, BYOL).teacher
    sites = vcreg_fx.sites(teacher)
    assert len(sites) == (demean == "activations")
    assert all(site.alpha == site.beta == 0 for site in sites)
    assert [site.alpha for site in vcreg_fx.sites(live)] == [vcreg_fx.VCRegConfig.alpha]
    views = pairs().tensors[0][:, 0]
    assert torch.equal(teacher[0](views), live(views))


def test_branches_of_their_own():
    method = Method(expander=(8, 8), branches="own")
    model = Siamese(encoder(), 6, method, (encoder(9), 9))
    found = model(pairs().tensors[0])
    assert [y.shape[1] for y in found.representations] == [6, 9]
    assert [z.shape[1] for z in found.embeddings] == [8, 8]
    objective = Objective(method)
    objective(found).backward()
    assert all(p.grad is not None for p in model.parameters())
    assert set(objective.measures()) == {"std_z", "std_y", "corr_z", "corr_y"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"branches": "own", "momentum": 0.9}, "takes branches that are shared"),
        ({"branches": "own", "predictor": (4,)}, "takes branches that are shared"),
        ({"loss": "simclr", "predictor": (4,)}, "takes neither a predictor"),
    ],
)
def test_what_does_not_go_together_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        Method(**changes)


def test_a_second_branch_needs_an_encoder():
    with pytest.raises(ValueError, match="takes a second encoder"):
        Siamese(encoder(), 6, Method(expander=(4,), branches="own"))


# Collapse -----------------------------------------------------------------------------------


def measured(z):
    found = Embedded(*([(z, z)] * 4))
    objective = Objective(PLAIN)
    assert objective.measures() == {}
    objective(found)
    return objective.measures()


def test_measures_of_collapse():
    """1 where vectors are spread over the sphere, 0 where they are one; Eq. 9 beside it."""
    torch.manual_seed(0)
    spread = measured(torch.randn(4000, 8))
    assert spread["std_z"] == pytest.approx(1.0, abs=0.02)
    assert spread["corr_z"] == pytest.approx(0.0, abs=1e-3)
    assert measured(torch.ones(50, 8) * 3)["std_z"] == pytest.approx(0.0, abs=1e-6)
    assert "corr_z" not in measured(torch.ones(50, 8))  # nothing varies
    line = torch.randn(50, 1) * torch.ones(1, 8)
    assert measured(line)["corr_z"] == pytest.approx(1.0)
    two = torch.randn(500, 2)
    doubled = torch.cat([two, two], dim=1)  # of 12 pairs, 4 are equal
    assert measured(doubled)["corr_z"] == pytest.approx(1 / 3, abs=0.02)


def test_an_encoder_collapses_without_a_variance_term():
    """And does not with one, from the same weights."""
    found = {}
    for variance in (0.0, 25.0):
        torch.manual_seed(0)
        method = Method("mean square", 25.0, variance, 0.0, (8, 8), norm="none")
        objective = Objective(method)
        model = Siamese(nn.Sequential(nn.Flatten(), nn.Linear(16, 6)), 6, method)
        settings = TrainSettings(epochs=40, batch_size=32, learning_rate=0.02)
        fit(model, pairs(), settings, loss=objective)
        found[variance] = objective.measures()["std_z"]
    assert found[0.0] < 0.5 < found[25.0]


# Training -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options", [None, {"interval": 3}, {"interval": 3, "demean": "activations"}]
)
def test_a_stopped_run_goes_on_with_the_same_momentum_encoder(tmp_path, options):
    settings = TrainSettings(epochs=4, batch_size=16, learning_rate=0.02)

    def trained(path, stop=False):
        torch.manual_seed(0)
        live = encoder()
        if options is not None:
            example = (torch.zeros(2, 1, 4, 4),)
            vcreg_fx.insert(live, "modules('1')", example_inputs=example, beta=0.5, **options)
        model = Siamese(live, 6, BYOL)
        steps = []

        def interrupt(model, epoch):
            if stop and epoch == 2:
                raise Stopped(2)

        def follow(step, total):
            steps.append((step, total))
            model.follow(step, total)

        def run():
            fit(model, pairs(), settings, loss=Objective(BYOL), checkpoint=path,
                on_update=follow, on_epoch=interrupt)  # fmt: skip

        if stop:
            with pytest.raises(Stopped):
                run()
            return None
        run()
        return model, steps

    whole, steps = trained(tmp_path / "whole.pt")
    assert steps == [(i, 8) for i in range(1, 9)]
    trained(tmp_path / "stopped.pt", stop=True)
    again, rest = trained(tmp_path / "stopped.pt")
    assert rest == [(i, 8) for i in range(3, 9)]
    for one, two in zip(whole.state_dict().values(), again.state_dict().values(), strict=True):
        assert torch.equal(one, two)


def test_lars_leaves_biases_and_norms_alone():
    """BYOL and SimCLR: neither decay nor scaling there; elsewhere steps are relative to weights."""
    model = encoder()
    settings = TrainSettings(optimizer="lars", learning_rate=2.0, weight_decay=1e-6)
    optimizer = make_optimizer(model, settings)
    weights, others = optimizer.param_groups
    assert [p.ndim for p in weights["params"]] == [2] and len(others["params"]) == 3
    assert (weights["weight_decay"], others["weight_decay"]) == (1e-6, 0.0)
    before = copy.deepcopy(model)
    for p in model.parameters():
        p.grad = torch.full_like(p, 1e3)
    optimizer.step()
    step = before[1].weight - model[1].weight
    assert float(step.norm() / before[1].weight.norm()) == pytest.approx(2e-3, rel=1e-3)
    assert torch.allclose(before[1].bias - model[1].bias, torch.tensor(2e3))


def test_the_rate_of_some_parameters_may_stay():
    """SimSiam's predictor; and a cosine may end above 0."""
    model = Siamese(encoder(), 6, SIMSIAM)
    settings = TrainSettings(epochs=1, optimizer="sgd", learning_rate=0.1, final_rate=0.01,
                             warmup_epochs=0, constant_rate="predictor.")  # fmt: skip
    optimizer = make_optimizer(model, settings)
    schedule, kept = make_schedule(optimizer, 20, settings), {*model.predictor.parameters()}
    for _ in range(20):
        for p in model.parameters():
            p.grad = torch.zeros_like(p)
        optimizer.step()
        rates = {group["lr"] for group in optimizer.param_groups if kept & {*group["params"]}}
        assert rates == {0.1}
        schedule.step()
    others = [group for group in optimizer.param_groups if not kept & {*group["params"]}]
    assert [group["lr"] for group in others] == pytest.approx([0.01] * len(others))
    assert sum(len(group["params"]) for group in optimizer.param_groups) == len(
        [*model.parameters()]
    )
    with pytest.raises(ValueError, match="no parameter's name begins so"):
        make_optimizer(encoder(), settings)
    with pytest.raises(ValueError, match="final_rate=1.0 must be from 0 to below"):
        TrainSettings(final_rate=1.0)


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_batch_norms_are_synchronized_between_gpus(device):
    """All of them, as in VICReg's, BYOL's and SimCLR's code; the encoder has its own back after."""
    own, images = encoder(), pairs().tensors[0]
    vcreg_fx.insert(own, "modules('1')", example_inputs=(images[:2, 0],))
    model = Siamese(own, 6, replace(BYOL, norm="all"))
    names = {name: m for name, m in model.named_modules() if "BatchNorm" in type(m).__name__}
    assert len(names) == 2 * 3 + 1  # of the live branch and the teacher, and of the predictor
    keys, parameters = list(model.state_dict()), list(model.parameters())
    with synchronized(model, Processes(0, 2, torch.device(device))):
        kinds = {type(model.get_submodule(name)) for name in names}
        assert kinds == ({nn.SyncBatchNorm} if device == "cuda" else {nn.BatchNorm1d})
        assert list(model.state_dict()) == keys
        assert all(a is b for a, b in zip(model.parameters(), parameters, strict=True))
        model.get_submodule("encoder.2").running_mean.add_(1.0)
    assert all(model.get_submodule(name) is m for name, m in names.items())
    assert own[2].running_mean.eq(1.0).all() and len(vcreg_fx.sites(own)) == 1
    Objective(BYOL)(model(images)).backward()
    with synchronized(model, Processes(0, 1, torch.device("cuda"))):
        assert type(own[2]) is nn.BatchNorm1d


def test_batch_norms_that_do_more_are_not_replaced():
    from timm.layers import BatchNormAct2d

    model = nn.Sequential(nn.Conv2d(3, 4, 3), BatchNormAct2d(4))
    where = Processes(0, 2, torch.device("cuda"))
    with (
        pytest.raises(ValueError, match="BatchNormAct2d is no plain batch norm"),
        synchronized(model, where),
    ):
        pass
    assert type(model[1]) is BatchNormAct2d


# Views --------------------------------------------------------------------------------------


@pytest.mark.parametrize("recipe", VIEWS)
def test_views_of_images_in_memory(recipe):
    data = load_images("digits")
    some = data.train.subset(torch.arange(12))
    torch.manual_seed(0)
    views, label = Views(some, data, recipe)[3]
    assert views.shape == (2, 1, 32, 32) and label == int(some.labels[3])
    assert not torch.equal(views[0], views[1])
    low, high = data.train.pairs.tensors[0].aminmax()
    assert low <= views.min() and views.max() <= high


def test_views_may_be_drawn_beforehand():
    data = load_images("digits")
    some = data.train.subset(torch.arange(5))
    torch.manual_seed(1)
    state = torch.get_rng_state()
    one, same, other = (Views(some, data, "vicreg", None, 3, seed) for seed in (0, 0, 1))
    assert torch.equal(torch.get_rng_state(), state)
    assert one._kept.shape == (5, 3, 1, 32, 32)
    assert torch.equal(one._kept, same._kept) and not torch.equal(one._kept, other._kept)
    known = [[float(view.sum()) for view in views] for views in one._kept]
    for index, _ in itertools.product(range(5), range(20)):
        first, second = (float(view.sum()) for view in one[index][0])
        assert first in known[index] and second in known[index] and first != second
    with pytest.raises(DataError, match="drawn=1 must be 2"):
        Views(some, data, "vicreg", None, 1)


class Pictures(torch.utils.data.Dataset):
    """A data set as torchvision has them."""

    def __init__(self, root, transform, **split):
        self.transform, self.targets, self.classes = transform, [0, 1, 2], ["a", "b", "c"]

    def __len__(self):
        return 3

    def __getitem__(self, index):
        import numpy as np
        from PIL import Image

        picture = Image.fromarray(np.full((32, 32, 3), 80 * index, np.uint8))
        return (self.transform or (lambda found: found))(picture), self.targets[index]


def test_views_of_pictures_in_files(monkeypatch):
    """They are standardized as the images to measure on are."""
    monkeypatch.setattr("torchvision.datasets.CIFAR10", Pictures)
    data = load_images("cifar10", "somewhere", augment="pictures")
    some = data.train.of_classes([2, 0])
    views, label = Views(some, data, "vcreg")[0]
    assert views.shape == (2, 3, 32, 32) and label == 1
    plain, _ = data.train.pairs[0]
    assert torch.allclose(views[0].amin(dim=(1, 2)), plain[:, 0, 0], atol=1e-4)  # black stays so
    augmented = load_images("cifar10", "somewhere", augment="crop")
    with pytest.raises(DataError, match='views take augment="pictures"'):
        Views(augmented.train, augmented)
    with pytest.raises(DataError, match="no views 'moco'; there are vicreg, vcreg"):
        Views(data.train, data, "moco")
    own = ImageData("own", data.train, data.test, ("a",))
    with pytest.raises(DataError, match="by which statistics"):
        Views(own.train, own)


def test_without_lightly_it_is_said_what_to_install(monkeypatch, tmp_path):
    from typer.testing import CliRunner

    from vcreg_fx.cli._app import app

    for name in [name for name in sys.modules if name.partition(".")[0] == "lightly"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "lightly", None)
    monkeypatch.setattr("importlib.metadata.requires", lambda _: ["lightly>=1; extra == 'ssl'"])
    result = CliRunner().invoke(app, ["reproduce", "ssl", "--quick", "-o", str(tmp_path / "out")])
    assert result.exit_code == 1
    assert 'The package lightly is needed for this: pip install "vcreg-fx[ssl]"' in " ".join(
        result.stderr.split()
    )
    assert not (tmp_path / "out").exists()


# The experiment -----------------------------------------------------------------------------


def few(each=12, side=8):
    """Four classes of small images."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(4).repeat_interleave(each)
    sets = []
    for _ in range(2):
        images = torch.rand(len(labels), 1, side, side, generator=generator)
        images[:, 0, 0, :4] += 2 * torch.eye(4)[labels]
        sets.append(ImageSet.of(images, labels))
    return ImageData("few", *sets, tuple("abcd"))


def ssl_preset(**options):
    preset = EXPERIMENTS["ssl"].presets("quick", None)
    methods = {name: {**m, "expander": (16, 8)} for name, m in preset["methods"].items()}
    return preset.but(
        training=TrainSettings(epochs=2, batch_size=16),
        train_images=None,
        options={**preset.options, "methods": methods, "probes": (), "drawn": 2, **options},
    )


def test_each_method_is_compared_with_itself(tmp_path):
    """The arms with VCReg have its sites in the encoder that is measured; tables are by method."""
    preset = ssl_preset(labelled=(0.1,))
    arms = ["SimCLR", "VICReg", "VICReg (VCReg)"]
    outcome = reproduce("ssl", tmp_path / "out", preset=preset, data=few(), arms=arms)
    rows = outcome.report["rows"]
    assert [row["sites"] for row in rows] == [0, 0, 3]
    assert [row.get("versus") for row in rows] == [None, None, "VICReg"]
    text = outcome.to_markdown()
    assert "difference to VICReg |" in text and "difference to SimCLR |" not in text
    assert "- VICReg (VCReg) (" in text and "- VICReg (method" not in text
    for row in rows:
        for numbers in row["by_seed"].values():
            assert 0 <= numbers["labels_0.1"] <= numbers["labels_0.1_top5"] == 1
            assert {"own", "std_z", "std_z_1", "std_z_2", "corr_y"} <= numbers.keys()
            assert "mean" not in numbers  # there are no other tasks
    again = reproduce("ssl", tmp_path / "again", preset=preset, data=few(), arms=arms[:1])
    assert again.report["rows"][0]["by_seed"] == rows[0]["by_seed"]


@pytest.mark.parametrize(
    ("options", "message"),
    [({"protocol": "finetune"}, 'protocol="probe"'), ({"probe": "svm"}, "must be sgd or adamw"),
     ({"views": "moco"}, "no views 'moco'"), ({"probes": ("birds",)}, "no downstream task"),
     ({"labelled": (0.05,)}, "must be a list of shares")],
)  # fmt: skip
def test_options_that_cannot_be(tmp_path, options, message):
    with pytest.raises((ReproductionError, DataError), match=message):
        reproduce("ssl", tmp_path / "out", preset=ssl_preset(**options))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_features_are_taken_where_the_encoder_is(tmp_path, monkeypatch, device):
    """On a GPU, which meta tensors stand for."""
    monkeypatch.setattr(TransferTask, "features", lambda _, model, images: model(images))
    task = SelfSupervisedTask(ssl_preset(), few(), NETWORKS["resnet8-half"], tmp_path)
    task._width = 6
    with torch.device(device):
        assert task.features(encoder(), torch.zeros(4, 1, 4, 4)).device.type == device


def test_vcreg_is_in_both_branches(tmp_path):
    """Where each view has an encoder of its own."""
    preset = ssl_preset(methods={"VICReg": {"expander": (16, 8), "branches": "own"}})
    task = SelfSupervisedTask(preset, few(), NETWORKS["resnet8-half"], tmp_path)
    config = {"alpha": 0.3, "calls": "mean"}
    params = {"split": "test", "method": "VICReg"}
    network, _ = task.second(Trial("VCReg", parse("blocks"), 0, config, params))
    assert [(site.alpha, site.config.calls) for site in vcreg_fx.sites(network)] == [
        (0.3, "mean")
    ] * 3
    network, _ = task.second(Trial("none", None, 0, {}, params))
    assert vcreg_fx.sites(network) == []


def test_pictures_in_files_are_left_for_views(tmp_path, monkeypatch):
    """Every preset reads CIFAR and ImageNet so that views can be made of them."""
    monkeypatch.setattr("torchvision.datasets.CIFAR10", Pictures)
    for name in ("ssl", "vicreg", "vicreg-terms"):
        experiment = EXPERIMENTS[name]
        for scale in experiment.scales:
            preset = experiment.presets(scale, "cifar10").but(train_images=None, grid={})
            data = load_images("cifar10", "somewhere", augment=preset.augment)
            preset = preset.but(options={**preset.options, "probes": ()})
            task = experiment.task(preset, data, NETWORKS["resnet8-half"], tmp_path)
            views = task.views(data.train, trial())
            assert views[0][0].shape == (2, 3, 32, 32)


def test_an_encoder_is_a_network_without_its_classifier():
    network = NETWORKS["resnet8-half"]((1, 8, 8), 5)
    logits = network(torch.ones(2, 1, 8, 8))
    head = network.head
    encoder, width = without_head(network, (1, 8, 8))
    assert (encoder, width) == (network, 64)
    assert torch.equal(head(encoder(torch.ones(2, 1, 8, 8))), logits)
    resnet, width = without_head(NETWORKS["resnet18-cifar"]((3, 32, 32), 5), (3, 32, 32))
    assert width == 512
    assert resnet.layer1(resnet.maxpool(torch.ones(1, 64, 32, 32))).shape[-1] == 32

    class Convolution(nn.Sequential):
        def forward(self, x):
            return super().forward(x).flatten(1)

    other = Convolution(nn.Conv2d(1, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Conv2d(4, 2, 1))
    with pytest.raises(ReproductionError, match="one linear classifier"):
        without_head(other, (1, 8, 8))


# VICReg's own studies -----------------------------------------------------------------------


def test_the_rows_of_table_4_are_what_section_6_says():
    """Momentum encoder, stop-gradient, predictor, batch norm; and the terms on the embeddings."""
    heads = EXPERIMENTS["vicreg-terms"].presets("paper", None)["heads"]
    found = {}
    for row in ROWS:
        method = method_of(row, "none", heads)
        letters = {"ME": method.momentum, "SG": method.stop_gradient, "PR": method.predictor,
                   "BN": method.norm != "none"}  # fmt: skip
        found[row] = " ".join(name for name, has in letters.items() if has)
        assert method.variance == method.covariance == 0
    assert list(found.values()) == [
        "ME SG PR BN",
        "SG PR BN",
        "SG PR",
        "SG",
        "PR",
        "PR BN",
        "BN",
        "",
    ]
    assert all(row.split(", ")[1:] == ([ticks] if ticks else []) for row, ticks in found.items())
    distances = [method_of(row, "none", heads).loss for row in ROWS]
    assert distances == ["normalized square", *["cosine"] * 3, *["mean square"] * 4]
    assert [method_of(row, "var", heads).variance for row in ROWS] == [1.0] * 4 + [25.0] * 4
    both = [method_of(row, "var + cov", heads) for row in ROWS]
    assert [method.covariance for method in both] == [0.01] * 4 + [1.0] * 4
    assert [method.invariance for method in both] == [1.0] * 4 + [25.0] * 4


def test_table_4_has_its_cells_in_order():
    experiment = EXPERIMENTS["vicreg-terms"]
    arms = experiment.arms(experiment.presets("default", None))
    assert len(arms) == 24
    assert [arm.name for arm in arms[:3]] == [
        "BYOL, ME SG PR BN: none", "BYOL, ME SG PR BN: var", "BYOL, ME SG PR BN: var + cov",
    ]  # fmt: skip
    assert {arm.versus for arm in arms} == {f"{row}: none" for row in ROWS}
    assert list(experiment.paper.rows) == list(ROWS)
    values = [value for row in experiment.paper.rows.values() for value in row]
    assert values.count(None) == 5  # cells that collapse


def small(name):
    """The preset quick of a study with heads and data that are smaller still."""
    preset = EXPERIMENTS[name].presets("quick", None)
    options = {**preset.options, "drawn": 2}
    if name == "vicreg-terms":
        options["heads"] = {family: ((8,) * len(e), (4, 8)) for family, (e, _)
                            in preset["heads"].items()}  # fmt: skip
    else:
        options["methods"] = {n: {**m, "expander": (8, 8, 8)} for n, m in preset["methods"].items()}
        options["widths"], options["batches"] = (8, 4), {16: 4e-3, 8: 4e-3}
    return preset.but(
        training=TrainSettings(epochs=1, batch_size=16),
        train_images=None,
        options=options,
    )


def test_a_study_of_terms_says_what_collapsed(tmp_path):
    arms = [f"{row}: {terms}" for row in ["SimSiam, SG PR BN"] for terms in ("none", "var")]
    outcome = reproduce(
        "vicreg-terms", tmp_path / "out", preset=small("vicreg-terms"), data=few(), arms=arms
    )
    for row in outcome.report["rows"]:
        for numbers in row["by_seed"].values():
            assert numbers["collapsed"] == float(numbers["std_z"] < COLLAPSED)
            assert {"own", "corr_y", "std_z_1", "std_y_1"} <= numbers.keys()
    text = outcome.to_markdown()
    assert "| SimSiam, SG | collapse | 56.8 | 66.1 |" in text
    assert "difference to SimSiam, SG PR BN: none |" in text
    assert (tmp_path / "out" / "vicreg-terms.png").stat().st_size > 5_000


@pytest.mark.slow
def test_cells_that_collapse_are_told_by_their_spread(tmp_path):
    """Those that the paper prints as a collapse, and cells beside them."""
    preset = EXPERIMENTS["vicreg-terms"].presets("quick", None)
    preset = preset.but(training=replace(preset.training, epochs=8, batch_size=32))
    arms = ["SimSiam, SG PR BN: none", "SimSiam, SG: none", "VICReg: none", "VICReg, BN: var"]
    outcome = reproduce("vicreg-terms", tmp_path / "out", preset=preset, arms=arms)
    printed = EXPERIMENTS["vicreg-terms"].paper.rows
    for found in outcome.report["rows"]:
        row, _, terms = found["name"].partition(": ")
        collapses = printed[row][list(TERMS).index(terms)] is None
        for numbers in found["by_seed"].values():
            assert numbers["collapsed"] == float(collapses), (found["name"], numbers["std_z"])


def test_axes_of_vicreg():
    """Each value of each axis once; VICReg as it is stands for what it shares with all of them."""
    experiment = EXPERIMENTS["vicreg"]
    preset = experiment.presets("paper", None)
    arms = {arm.name: arm.fixed for arm in experiment.arms(preset)}
    assert len(arms) == 1 + 10 + 4 + 11 + 6 + 5
    assert set(arms) <= set(experiment.paper.rows)
    shared = {"λ 25, µ 25, ν 1", "hidden Std, embedding None", "width 8192", "batch 2048"}
    assert set(experiment.paper.rows) - set(arms) == shared
    assert {experiment.paper.rows[name] for name in shared} == {(68.6,)}
    assert experiment.paper.rows["hidden None, embedding None"] == (67.4,)  # as in table 4
    assert arms["width 16384"]["width"] == 16384
    rates = {name: f["learning_rate"] * 256 / f["batch_size"] for name, f in arms.items()
             if name.startswith("batch")}  # fmt: skip
    assert rates == pytest.approx({"batch 128": 0.8, "batch 256": 0.5, "batch 512": 0.4,
                                   "batch 1024": 0.3, "batch 4096": 0.3})  # fmt: skip
    some = experiment.arms(preset.but(options={**preset.options, "axes": ("width",)}))
    assert [arm.name for arm in some[:2]] == ["VICReg", "width 256"] and len(some) == 7


@pytest.mark.slow
def test_every_axis_of_vicreg_trains(tmp_path):
    """One arm of each; what it changes arrives where it acts."""
    names = [
        "VICReg", "λ 0, µ 25, ν 1", "hidden None, embedding L2", "VICReg, own weights",
        "Barlow Twins", "Barlow Twins, ConvNeXt", "SimCLR, own weights", "width 4", "batch 8",
    ]  # fmt: skip
    preset = small("vicreg")
    outcome = reproduce("vicreg", tmp_path / "out", preset=preset, data=few(side=32), arms=names)
    rows = {row["name"]: row for row in outcome.report["rows"]}
    assert set(rows) == set(names)
    accuracies = {row["by_seed"]["0"]["std_z"] for row in rows.values()}
    assert len(accuracies) == len(names)  # no two are the same training
    task = EXPERIMENTS["vicreg"].task(preset, few(side=32), NETWORKS["resnet8-half"], tmp_path)
    arms = {arm.name: arm.fixed for arm in EXPERIMENTS["vicreg"].arms(preset)}
    methods = {name: task.method(trial(**arms[name])) for name in names}
    assert methods["width 4"].expander == (4, 4, 4)
    assert methods["λ 0, µ 25, ν 1"].invariance == 0
    assert methods["hidden None, embedding L2"].norm == "none"
    assert preset.training_with(arms["batch 8"]).batch_size == 8
    network, width = task.second(trial(**arms["Barlow Twins, ConvNeXt"]))
    assert width == 128 and any("ConvNeXt" in type(m).__name__ for m in network.modules())
    with pytest.raises(ReproductionError, match="no axis depth; there are coefficients"):
        reproduce("vicreg", tmp_path / "two", preset=preset, options={"axes": ("depth",)})


def trial(**params):
    return Trial("baseline", None, 0, {}, {"split": "test", **params})


@pytest.mark.slow
def test_the_large_scale_trains(tmp_path):
    """ResNet-18 with the stem for small images, with few of its glyphs."""
    preset = EXPERIMENTS["ssl"].presets("large", None)
    assert (preset.data, preset.network) == ("glyphs-200k", "resnet18-cifar")
    training = TrainSettings(epochs=1, batch_size=32)
    options = {**preset.options, "images": 60, "probes": ("glyphs-slant",), "drawn": 2}
    some = replace(glyphs("glyphs", 244, 122), name="some")
    arms = ["SimCLR", "SimCLR (VCReg)"]
    outcome = reproduce("ssl", tmp_path / "out", scale="large", data=some, seeds=2, arms=arms,
                        preset=preset.but(training=training, options=options))  # fmt: skip
    assert [row["sites"] for row in outcome.report["rows"]] == [0, 8]


@pytest.mark.slow
def test_two_processes_learn_together(tmp_path):
    """Under ``torchrun``: embeddings are gathered, and only the first process writes."""
    script = tmp_path / "script.py"
    script.write_text(
        "from tests.test_self_supervised import few, ssl_preset\n"
        "from vcreg_fx.experiments.papers import reproduce\n"
        f"reproduce('ssl', {str(tmp_path / 'out')!r}, preset=ssl_preset(), data=few(),\n"
        "          arms=['SimCLR', 'VICReg', 'VICReg (VCReg)'])\n"
    )
    torchrun(script)
    report = json.loads((tmp_path / "out" / "ssl.json").read_text())
    assert all(len(row["by_seed"]) == 2 for row in report["rows"])
