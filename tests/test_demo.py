"""The demo, its measurements, and the words it finds for them."""

from __future__ import annotations

import copy
import dataclasses
import json
import resource
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import vcreg_fx
from vcreg_fx import evaluation
from vcreg_fx._shared.keeping import using_threads
from vcreg_fx.experiments import (
    DemoSettings,
    Observer,
    _demo,
    _demo_report,
    conclusions,
    run_demo,
)
from vcreg_fx.experiments._digits_ablation import TRAINING
from vcreg_fx.experiments._gradient_check import check_gradients
from vcreg_fx.experiments.images._digits import GROUPS, load_digits
from vcreg_fx.experiments.training import fit

ROOT = Path(__file__).resolve().parent.parent
FILES = ["model.png", "report.html", "report.json", "report.md", "spectra.png"]
TINY = DemoSettings(steps=3, batch_size=16, check_images=4, seed=7)


class Log(Observer):
    """Remembers what it is told."""

    def __init__(self):
        self.calls = []
        self.losses = []

    def planned(self, plan):
        self.calls.append(("planned", len(plan.sites)))

    def started(self, task, steps):
        self.calls.append((task, steps))

    def advanced(self, loss=None):
        self.losses.append(loss)

    def checked(self, checks):
        self.calls.append(("checked", len(checks)))

    def written(self, files):
        self.calls.append(("written", sorted(file.name for file in files)))


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    folder = tmp_path_factory.mktemp("demo") / "made" / "by the demo"
    log = Log()
    before = torch.get_rng_state(), torch.get_num_threads()
    result = run_demo(folder, TINY, log)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert torch.get_num_threads() == before[1]
    return result, folder, log


# The whole ----------------------------------------------------------------------------------


def test_it_writes_a_report_with_pictures(demo):
    _, folder, _ = demo
    assert sorted(path.name for path in folder.iterdir()) == FILES
    report = (folder / "report.md").read_text("utf-8")
    assert "(spectra.png)" in report
    assert "(model.png)" in report
    assert "stages.3.blocks.1:output" in report
    assert str(folder) not in report
    for name in ("spectra.png", "model.png"):
        assert (folder / name).read_bytes().startswith(b"\x89PNG")


def test_it_writes_the_numbers(demo):
    result, folder, _ = demo
    data = json.loads((folder / "report.json").read_text("utf-8"))
    assert data["settings"] == TINY.to_dict()
    assert len(data["sites"]) == len(data["gradient_check"]["sites"]) == 13
    for name, measured in (("without_vcreg", result.plain), ("with_vcreg", result.vcreg)):
        numbers = data[name]
        assert numbers["probe_accuracy"] == measured.probe_accuracy
        for key in ("coarse_accuracy", "probe_accuracy", "low_spread", "correlation"):
            assert 0 <= numbers[key] <= 1
        assert len(numbers["spectrum"]) == 320
        assert numbers["spectrum"] == sorted(numbers["spectrum"], reverse=True)


def test_the_injected_gradient_is_the_naive_one(demo):
    result, _, _ = demo
    assert [check.name for check in result.checks] == [site.name for site in result.plan.sites]
    assert result.largest_error <= 1e-5
    assert max(check.float64 for check in result.checks) <= 1e-12


def test_it_tells_what_it_does(demo):
    result, _, log = demo
    assert log.calls == [
        ("planned", 13),
        ("comparing gradients", 26),
        ("checked", 13),
        ("training without VCReg", 3),
        ("training with VCReg", 3),
        ("written", FILES),
    ]
    losses = [loss for loss in log.losses if loss is not None]
    assert len(log.losses) == 26 + 6
    assert losses[0] == losses[3], "both models start from the same weights and the same batch"
    assert losses[1] != losses[4], "VCReg changed the first step"
    assert (losses[2], losses[5]) == (result.plain.train_loss, result.vcreg.train_loss)


def test_flatter_spectra_are_flatter_curves(tmp_path, monkeypatch):
    drawn, made = [], _demo_report.panels

    def kept(*arguments, **named):
        drawn.append(made(*arguments, **named))
        return drawn[-1]

    monkeypatch.setattr(_demo_report, "panels", kept)
    steep, even = torch.tensor([90.0, 9.0, 0.9, 0.0]), torch.full((4,), 0.02)
    spectra = {"steep": steep, "scaled": 7 * steep, "even": even, "nothing": torch.zeros(4)}
    _demo_report.draw_spectra(spectra, tmp_path / "s.png", "")
    _, [axes] = drawn[0]
    assert axes.get_xscale() == axes.get_yscale() == "log"
    curves = {line.get_label(): list(line.get_ydata()) for line in axes.lines}
    assert curves["scaled"] == pytest.approx(curves["steep"]), "a scale makes nothing flatter"
    assert curves["even"] == pytest.approx([1] * 4)
    assert curves["all directions alike"] == [1, 1]


@pytest.mark.slow
def test_the_same_seed_gives_the_same_numbers(demo, monkeypatch):
    result, _, _ = demo
    monkeypatch.setattr(_demo, "check_gradients", lambda *_: [])
    with using_threads(TINY.threads):
        again = _demo._run(TINY, Observer())
    for first, second in ((result.plain, again.plain), (result.vcreg, again.vcreg)):
        numbers, others = first.to_dict(), second.to_dict()
        assert numbers.pop("seconds") > 0
        others.pop("seconds")
        assert numbers == others


def test_a_folder_that_cannot_be_made_is_noticed_first(tmp_path):
    (tmp_path / "taken").write_text("a file")
    log = Log()
    with pytest.raises(OSError, match="taken"):
        run_demo(tmp_path / "taken", TINY, log)
    assert log.calls == []


@pytest.mark.parametrize("name", ["steps", "batch_size", "check_images", "threads"])
def test_settings_are_checked(name):
    with pytest.raises(ValueError, match=name):
        DemoSettings(**{name: 0})


@pytest.mark.slow
def test_quick_command(tmp_path):
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    result = subprocess.run(
        [sys.executable, "-m", "vcreg_fx", "demo", "--quick", "-o", str(tmp_path / "demo")],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert result.returncode == 0, result.stderr
    assert "Traceback" not in result.stderr
    assert "Largest relative error of 13 sites" in result.stdout
    assert "mean absolute off-diagonal correlation" in result.stdout
    assert sorted(path.name for path in (tmp_path / "demo").iterdir()) == FILES
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert after.ru_utime - before.ru_utime < 45, "seconds of one core, however busy it is"


def train(model, images, labels, *, seed, on_step=None, **settings):
    data = torch.utils.data.TensorDataset(images, labels)
    how = dataclasses.replace(TRAINING, **settings)
    return fit(model, data, how, seed=seed, on_step=on_step, progress=False)[-1]["loss"]


@pytest.mark.parametrize("steps", [3, 4, 5, 6, 10])
def test_training_of_any_length(steps):
    model, losses = small_model(), []
    labels = torch.arange(16) % 3
    mean = train(
        *(model, torch.randn(16, 4), labels),
        steps=steps,
        batch_size=5,
        learning_rate=0.1,
        weight_decay=0.0,
        seed=0,
        on_step=losses.append,
    )
    assert len(losses) == steps
    assert mean == pytest.approx(sum(losses) / steps)


@pytest.mark.parametrize("batch_size", [5, 64])
def test_a_short_run_is_adamw_on_a_one_cycle_schedule(batch_size):
    """Bit for bit what a plain loop gives, over one long order of all images again and again."""
    images, labels = torch.randn(37, 4), torch.arange(37) % 3
    model = small_model()
    plain = copy.deepcopy(model)
    optimizer = torch.optim.AdamW(plain.parameters(), lr=0.1, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=17, pct_start=0.2)
    generator = torch.Generator().manual_seed(5)
    size, order = min(batch_size, 37), torch.empty(0)
    for _ in range(17):
        if len(order) < size:
            order = torch.randperm(37, generator=generator)
        chosen, order = order[:size], order[size:]
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(plain(images[chosen]), labels[chosen]).backward()
        optimizer.step()
        schedule.step()
    settings = {"learning_rate": 0.1, "weight_decay": 0.05, "batch_size": batch_size}
    train(model, images, labels, steps=17, seed=5, **settings)
    assert all(map(torch.equal, model.parameters(), plain.parameters()))


# Its words ----------------------------------------------------------------------------------


def reworded(result, *, wins, losses, **changes):
    """Return the sentences for other numbers."""
    count = 599
    ours, theirs = torch.ones(count, dtype=torch.bool), torch.ones(count, dtype=torch.bool)
    theirs[:wins] = False
    ours[wins : wins + losses] = False
    plain = dataclasses.replace(
        result.plain, probe_right=theirs, probe_accuracy=float(theirs.double().mean())
    )
    vcreg = dataclasses.replace(
        result.vcreg, probe_right=ours, probe_accuracy=float(ours.double().mean()), **changes
    )
    return " ".join(conclusions(dataclasses.replace(result, plain=plain, vcreg=vcreg)))


def test_words_when_vcreg_wins(demo):
    text = reworded(demo[0], wins=30, losses=5)
    assert "4.2 points more accurate with VCReg" in text
    assert "30 are read correctly only with VCReg and 5 only without" in text
    assert "unlikely to be chance" in text


def test_words_when_vcreg_loses(demo):
    text = reworded(demo[0], wins=5, losses=30, correlation=1.0, low_spread=2.0)
    assert "4.2 points less accurate with VCReg" in text
    assert text.count("against what VCReg intends") == 2


def test_words_when_nothing_differs(demo):
    plain = demo[0].plain
    text = reworded(
        demo[0], wins=4, losses=4, correlation=plain.correlation, low_spread=plain.low_spread
    )
    assert "equally accurate" in text
    assert "no clear difference" in text
    assert text.count("is the same") == 2


# Its parts ----------------------------------------------------------------------------------


def test_digits_are_split_honestly():
    train, test = load_digits(0)
    assert (len(train), len(test)) == (1198, 599)
    assert train.images.shape[1:] == test.images.shape[1:] == (1, 32, 32)
    assert float(train.images.min()) == -1
    assert float(train.images.max()) == 1
    assert sorted(digit for members in GROUPS.values() for digit in members) == list(range(10))
    assert set(train.groups.tolist()) == {0, 1, 2}
    assert torch.equal(train.groups[train.digits == 4].unique(), torch.tensor([1]))
    seen = {image.numpy().tobytes() for image in train.images}
    assert not any(image.numpy().tobytes() in seen for image in test.images)
    assert not torch.equal(load_digits(1)[1].digits, test.digits)


class Residual(torch.nn.Module):
    """A block with a site."""

    def __init__(self):
        super().__init__()
        self.linear = torch.nn.Linear(6, 6)

    def forward(self, x):
        return x + self.linear(x).relu()


def small_model():
    return torch.nn.Sequential(torch.nn.Linear(4, 6), Residual(), Residual(), torch.nn.Linear(6, 3))


def test_the_gradient_check_notices_a_wrong_gradient(monkeypatch):
    from vcreg_fx.experiments import _gradient_check

    model, x = small_model(), torch.randn(16, 4)
    plan = vcreg_fx.plan(model, "blocks | head", example_inputs=(x,))
    assert max(check.float64 for check in check_gradients(plan, x)) < 1e-12

    def wrong(h, alpha, beta, *rest, **named):
        return 1.001 * vcreg_fx.vcreg_loss(h, alpha, beta, *rest, **named)

    monkeypatch.setattr(_gradient_check, "vcreg_loss", wrong)
    assert all(check.float64 > 1e-4 for check in check_gradients(plan, x))
    assert vcreg_fx.sites(model) == []


def test_features_are_the_heads_input():
    model, x = small_model(), torch.randn(10, 4)
    model[1].eval()
    features = evaluation.head_features(model, x, batch_size=3)
    assert torch.allclose(features, model[:3](x))
    assert not features.requires_grad
    assert [module.training for module in model] == [True, False, True, True]


def test_spread_correlation_and_spectrum():
    x = torch.randn(500, 3, generator=torch.Generator().manual_seed(0))
    features = torch.stack([2 * x[:, 0], x[:, 1] / 2, 0.1 * x[:, 1], 3 - 2 * x[:, 0]], dim=1)
    assert evaluation.share_below(features) == 0.5
    r = abs(float(torch.corrcoef(x[:, :2].T)[0, 1]))
    assert evaluation.mean_correlation(features) == pytest.approx((2 + 4 * r) / 6, rel=1e-4)
    spectrum = evaluation.covariance_spectrum(features)
    expected = torch.linalg.eigvalsh(torch.cov(features.double().T)).flip(0)
    torch.testing.assert_close(spectrum, expected.clamp(min=0), atol=1e-6, rtol=1e-6)
    constant = torch.cat([features, torch.ones(500, 1)], dim=1)
    assert evaluation.mean_correlation(constant) == pytest.approx((2 + 4 * r) / 6, rel=1e-4)
    assert evaluation.effective_rank(torch.ones(5, 3)) == 0
    equal = torch.cat([torch.eye(4), -torch.eye(4)])
    assert evaluation.effective_rank(equal) == pytest.approx(4)


def test_probe_and_sign_test():
    centres = torch.eye(3) * 4
    labels = torch.arange(60) % 3
    noise = torch.randn(60, 3, generator=torch.Generator().manual_seed(0)) / 4
    features = centres[labels] + noise
    found = evaluation.linear_probe(features[:30], labels[:30], features[30:], labels[30:])
    assert torch.equal(found.predictions, labels[30:])
    assert found.accuracy == 1
    assert evaluation.sign_test(5, 5) == 1
    assert evaluation.sign_test(0, 0) == 1
    assert evaluation.sign_test(10, 0) == evaluation.sign_test(0, 10) == pytest.approx(2 / 1024)
