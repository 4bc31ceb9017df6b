"""Each measurement against a slow transparent version and against a case with a known answer."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch
from torch import nn

import vcreg_fx
from tests.models import resnet18, vit_tiny
from vcreg_fx import evaluation
from vcreg_fx.evaluation import metrics


def blobs(n=200, d=6, classes=4, spread=0.5, seed=0, shift=0.0):
    """Features around one center a class."""
    generator = torch.Generator().manual_seed(seed)
    centers = 3 * torch.randn(classes, d, generator=torch.Generator().manual_seed(99))
    labels = torch.arange(n) % classes
    return centers[labels] + spread * torch.randn(n, d, generator=generator) + shift, labels


# Classes: Eq. 11 and Eq. 12 -----------------------------------------------------------------


def slow_cdnv(features, labels):
    """Eq. 11, pair by pair, sample by sample."""
    groups = [
        [f for f, y in zip(features.tolist(), labels.tolist(), strict=True) if y == c]
        for c in sorted(set(labels.tolist()))
    ]
    means = [[sum(column) / len(group) for column in zip(*group, strict=True)] for group in groups]
    variances = [
        sum(math.dist(f, mean) ** 2 for f in group) / len(group)
        for group, mean in zip(groups, means, strict=True)
    ]
    values = [
        (variances[i] + variances[j]) / (2 * math.dist(means[i], means[j]) ** 2)
        for i in range(len(groups))
        for j in range(len(groups))
        if i != j
    ]
    return sum(values) / len(values)


def test_cdnv_is_eq_11():
    features, labels = blobs(50)
    assert evaluation.cdnv(features, labels) == pytest.approx(slow_cdnv(features, labels), 1e-5)


def test_cdnv_of_a_known_case():
    # Two classes at ±2 on one axis, each ±1 on the other: σ² = 1, ‖µ₁ − µ₂‖² = 16.
    features = torch.tensor([[2.0, 1.0], [2.0, -1.0], [-2.0, 1.0], [-2.0, -1.0]])
    labels = torch.tensor([5, 5, 9, 9])
    assert evaluation.cdnv(features, labels) == pytest.approx(1 / 16)
    collapsed = features * torch.tensor([1.0, 0.0])
    assert evaluation.cdnv(collapsed, labels) == 0
    assert evaluation.cdnv(features * torch.tensor([0.0, 1.0]), labels) == math.inf
    with pytest.raises(ValueError, match="two classes or more"):
        evaluation.cdnv(features, torch.zeros(4, dtype=torch.long))


def test_nearest_center_is_eq_12():
    train, train_labels = blobs(60, spread=3.0)
    features, labels = blobs(40, spread=3.0, seed=1)
    centers = [train[train_labels == c].mean(dim=0) for c in range(4)]
    expected = [min(range(4), key=lambda c: math.dist(f, centers[c])) for f in features]
    found = evaluation.nearest_center(train, train_labels, features)
    assert found.tolist() == expected
    accuracy = sum(e == y for e, y in zip(expected, labels.tolist(), strict=True)) / 40
    assert 0 < accuracy < 1, "the case must be able to tell right from wrong"
    assert evaluation.nearest_center_accuracy(
        train, train_labels, features, labels
    ) == pytest.approx(accuracy)


def test_labels_that_do_not_fit_are_refused():
    features, labels = blobs(10)
    with pytest.raises(ValueError, match=r"\(10, 6\) and labels of shape \(9,\)"):
        evaluation.cdnv(features, labels[:9])
    with pytest.raises(ValueError, match="whole numbers"):
        evaluation.class_moments(features, labels.float())


# Correlation, spread, spectrum --------------------------------------------------------------


def test_squared_correlation_is_vicregs_eq_9():
    a, b = torch.randn(30, 5), torch.randn(30, 5)
    total = 0.0
    for view in (a, b):
        y = (view - view.mean(dim=0)) / view.std(dim=0)
        c = y.T @ y / 29
        total += sum(float(c[i, j]) ** 2 for i in range(5) for j in range(5) if i != j)
    assert evaluation.squared_correlation(a, b) == pytest.approx(total / (2 * 5 * 4), 1e-5)
    line = torch.arange(9.0)
    assert evaluation.squared_correlation(torch.stack([line, -3 * line, line + 7], 1)) == 1
    assert evaluation.squared_correlation(torch.eye(4).repeat(2, 1) - 0.25) == pytest.approx(1 / 9)


def test_mean_std_and_ranks():
    features = torch.tensor([[1.0, 3.0], [-1.0, -3.0]])
    assert evaluation.mean_std(features) == pytest.approx(math.sqrt(2) * 2)
    equal = torch.cat([torch.eye(4), -torch.eye(4)])
    for kind in ("participation", "entropy"):
        assert evaluation.effective_rank(equal, kind) == pytest.approx(4)
        assert evaluation.effective_rank(torch.ones(5, 3), kind) == 0
    p = np.array([4, 1]) / 5
    two = torch.tensor([[2.0, 0.0], [-2.0, 0.0], [0.0, 1.0], [0.0, -1.0]])
    assert evaluation.effective_rank(two, "entropy") == pytest.approx(math.exp(-(p @ np.log(p))))
    assert evaluation.effective_rank(two) == pytest.approx(1 / (p @ p))
    with pytest.raises(ValueError, match="participation"):
        evaluation.effective_rank(two, "rank")


# Batch by batch -----------------------------------------------------------------------------


@pytest.mark.parametrize("mean", [0.0, 1000.0])
def test_feature_statistics_are_those_of_the_whole(mean):
    features = torch.randn(101, 7) @ torch.randn(7, 7) + mean
    features[:, 3] = 0.1 + mean  # never changes
    metric = metrics.FeatureStatistics(7)
    for part in features.split(13):
        metric.update(part)
    found = metric.compute()
    assert float(found["std"]) == pytest.approx(evaluation.mean_std(features), 1e-6)
    assert float(found["share_below"]) == pytest.approx(evaluation.share_below(features))
    assert float(found["correlation"]) == pytest.approx(evaluation.mean_correlation(features), 1e-6)
    assert float(found["squared_correlation"]) == pytest.approx(
        evaluation.squared_correlation(features), 1e-6
    )
    assert float(found["effective_rank"]) == pytest.approx(
        evaluation.effective_rank(features), 1e-6
    )
    torch.testing.assert_close(
        found["spectrum"], evaluation.covariance_spectrum(features), rtol=1e-6, atol=1e-8
    )
    with pytest.raises(ValueError, match="give \\(n, 7\\)"):
        metric.update(features[:, :3])
    single = metrics.FeatureStatistics(7)
    single.update(features[:1])
    with pytest.raises(ValueError, match="1 samples have no variance"):
        single.compute()


def test_class_metrics_are_those_of_the_whole():
    features, labels = blobs(90, spread=2.0)
    clusters = metrics.ClassDistanceNormalizedVariance(6, classes=10)  # not all of them occur
    for part, some in zip(features.split(17), labels.split(17), strict=True):
        clusters.update(part, some)
    assert float(clusters.compute()) == pytest.approx(slow_cdnv(features, labels), 1e-5)
    centers = metrics.NearestClassCenterAccuracy(clusters.moments())
    test, test_labels = blobs(70, spread=2.0, seed=3)
    for part, some in zip(test.split(11), test_labels.split(11), strict=True):
        centers.update(part, some)
    expected = evaluation.nearest_center_accuracy(features, labels, test, test_labels)
    assert float(centers.compute()) == pytest.approx(expected)
    with pytest.raises(ValueError, match="made for 0 to 9"):
        clusters.update(features, labels + 9)


def _rank(rank, folder, queue):
    import torch.distributed as dist

    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2
    )
    features, labels = blobs(60, spread=2.0)
    mine = slice(0, 45) if rank == 0 else slice(45, 60)
    statistics = metrics.FeatureStatistics(6)
    clusters = metrics.ClassDistanceNormalizedVariance(6, classes=4)
    statistics.update(features[mine])
    clusters.update(features[mine], labels[mine])
    found = statistics.compute()
    queue.put((rank, float(found["correlation"]), float(clusters.compute())))
    dist.destroy_process_group()


@pytest.mark.slow
def test_metrics_join_over_ranks(tmp_path):
    context = torch.multiprocessing.get_context("spawn")
    queue = context.Queue()
    processes = [context.Process(target=_rank, args=(r, str(tmp_path), queue)) for r in range(2)]
    for process in processes:
        process.start()
    results = [queue.get(timeout=240) for _ in processes]
    for process in processes:
        process.join(timeout=30)
        assert process.exitcode == 0
    features, labels = blobs(60, spread=2.0)
    for _, correlation, clustering in results:
        assert correlation == pytest.approx(evaluation.mean_correlation(features), 1e-6)
        assert clustering == pytest.approx(evaluation.cdnv(features, labels), 1e-6)


# Mutual information -------------------------------------------------------------------------


@pytest.mark.parametrize("rho", [0.0, 0.6, 0.9])
def test_mutual_information_of_gaussians(rho):
    """Two correlated pairs of Gaussians share −½ log(1 − ρ²) nats each."""
    generator = torch.Generator().manual_seed(1)
    x, noise = torch.randn(2, 8000, 2, generator=generator)
    z = rho * x + math.sqrt(1 - rho**2) * noise
    found = evaluation.mutual_information(3 * x + 5, z, steps=500, hidden=32, learning_rate=3e-3)
    assert found == pytest.approx(-math.log(1 - rho**2), abs=0.1)


def test_mutual_information_does_not_learn_by_heart():
    """With few samples of much noise, a network can tell the training pairs apart."""
    x, z = torch.randn(64, 50), torch.randn(64, 50)
    assert evaluation.mutual_information(x, z, steps=300) < 0.5


def test_mutual_information_repeats_and_leaves_the_random_state():
    x = torch.randn(64, 1, 2, 2)
    state = torch.get_rng_state()
    first = evaluation.mutual_information(x, x.flatten(1), steps=30)
    assert torch.equal(torch.get_rng_state(), state)
    assert first == evaluation.mutual_information(x, x.flatten(1), steps=30) > 0
    with pytest.raises(ValueError, match="16 at least"):
        evaluation.mutual_information(x[:8], x[:8])
    with pytest.raises(ValueError, match="x has 64 samples and z has 63"):
        evaluation.mutual_information(x, x[:63])


# Probes -------------------------------------------------------------------------------------


def test_logistic_probe_is_the_regularized_optimum():
    """Its weights are where the gradient of the written objective vanishes."""
    x, y = blobs(60, spread=2.0)
    strength = 30.0
    asked = 3 * torch.randn(3000, 6, generator=torch.Generator().manual_seed(1))
    result = evaluation.logistic_probe(
        *(x, y, asked, torch.zeros(3000, dtype=torch.long)),
        **{"validation": (x[:20], y[:20]), "strengths": [strength], "max_iter": 5000},
    )
    every_x, every_y = torch.cat([x, x[:20]]).double(), torch.cat([y, y[:20]])

    def agreement(other):
        w = torch.zeros(4, 6, dtype=torch.double, requires_grad=True)
        b = torch.zeros(4, dtype=torch.double, requires_grad=True)
        optimizer = torch.optim.LBFGS([w, b], max_iter=500, line_search_fn="strong_wolfe")

        def objective():
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(every_x @ w.T + b, every_y, reduction="sum")
            loss = loss + other / 2 * w.square().sum()
            loss.backward()
            return loss

        optimizer.step(objective)
        found = (asked.double() @ w.T + b).argmax(dim=1)
        return float((result.predictions == found).double().mean())

    assert agreement(strength) > 0.998
    assert agreement(strength / 2) < 0.99, "else the test could not tell"
    assert agreement(strength * 2) < 0.99
    assert result.details["converged"] == 1
    assert result.details["l2"] == strength


def test_logistic_probe_chooses_its_strength_on_validation():
    """Where features are noise but one, a strong λ does best; where they are clean, a weak one."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(120) % 2
    noise = torch.randn(120, 200, generator=generator)
    signal = noise.clone()
    signal[:, 0] += 1.5 * (2 * labels - 1)
    val = (signal[60:], labels[60:])
    options = {"validation": val, "strengths": [1e-5, 1.0, 1e5]}
    result = evaluation.logistic_probe(signal[:60], labels[:60], *val, **options)
    scores = {
        s: evaluation.logistic_probe(
            signal[:60], labels[:60], *val, validation=val, strengths=[s]
        ).details["validation_accuracy"]
        for s in (1e-5, 1.0, 1e5)
    }
    assert result.details["validation_accuracy"] == max(scores.values())
    assert len(set(scores.values())) > 1
    assert scores[result.details["l2"]] == max(scores.values())


def test_the_papers_grid_of_strengths():
    assert len(evaluation.STRENGTHS) == 45
    assert evaluation.STRENGTHS[0] == pytest.approx(1e-5)
    assert evaluation.STRENGTHS[-1] == pytest.approx(1e5)
    ratios = np.diff(np.log(evaluation.STRENGTHS))
    assert np.allclose(ratios, ratios[0])


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_gradient_probe_against_a_slow_loop(optimizer):
    """Steps written out: weight decay, momentum, Adam's averages, the cosine."""
    x, y = blobs(20, spread=2.0)
    rate, decay, momentum, epochs = 0.1, 0.7, 0.9, 3
    settings = evaluation.ProbeSettings(optimizer, rate, decay, momentum, 8, epochs)
    found = evaluation.gradient_probe(x, y, x, y, settings, seed=5)
    torch.manual_seed(5)
    probe = nn.Linear(6, 4)
    state = [(p, torch.zeros_like(p), torch.zeros_like(p)) for p in probe.parameters()]
    step, steps = 0, 3 * epochs
    for _ in range(epochs):
        total = 0.0
        for chosen in torch.randperm(20).split(8):
            now = rate * (1 + math.cos(math.pi * step / steps)) / 2
            step += 1
            loss = nn.functional.cross_entropy(probe(x[chosen]), y[chosen])
            probe.zero_grad()
            loss.backward()
            total += loss.item() * len(chosen)
            with torch.no_grad():
                for p, first, second in state:
                    if optimizer == "sgd":
                        first.mul_(momentum).add_(p.grad + decay * p)
                        p.sub_(now * first)
                        continue
                    first.lerp_(p.grad, 0.1)
                    second.lerp_(p.grad**2, 0.001)
                    change = first / (1 - 0.9**step) / ((second / (1 - 0.999**step)).sqrt() + 1e-8)
                    p.sub_(now * (decay * p + change))
    assert found.details["train_loss"] == pytest.approx(total / 20, rel=1e-4)
    assert torch.equal(found.predictions, probe(x).argmax(dim=1))


def test_the_papers_settings_of_gradient_probes():
    """VCReg, C.3 and C.1, which follows Barlow Twins: 14 epochs of SGD for Places, 84 for iNat18.

    VICReg, C.2 and C.3, which divides by 10 at 4, 8, 12 and at 24, 48, 72.
    """
    settings = evaluation.ProbeSettings
    assert settings("adamw", 0.016, 0.05, 0.0, 256, 100) == evaluation.ADAMW_PROBE
    assert settings("sgd", 0.02, 1e-6, 0.9, 256, 100) == evaluation.SGD_PROBE
    found = evaluation.PLACES_PROBE
    assert settings("sgd", 0.01, 5e-4, 0.9, 256, 14, (14 / 3, 28 / 3)) == found
    found = evaluation.INATURALIST_PROBE
    assert settings("sgd", 0.01, 5e-4, 0.9, 256, 84, (28, 56)) == found
    found = evaluation.VICREG_PLACES_PROBE
    assert settings("sgd", 0.003, 1e-4, 0.9, 256, 28, (4, 8, 12)) == found
    found = evaluation.VICREG_INATURALIST_PROBE
    assert settings("sgd", 0.005, 1e-4, 0.9, 256, 84, (24, 48, 72)) == found


@pytest.mark.parametrize(
    "settings",
    [
        evaluation.ADAMW_PROBE,
        evaluation.SGD_PROBE,
        evaluation.PLACES_PROBE,
        evaluation.INATURALIST_PROBE,
    ],
)
def test_gradient_probes_learn_what_is_separable(settings):
    x, y = blobs(400, spread=0.2)
    x = 8 * x
    result = evaluation.gradient_probe(x, y + 7, x[:40], y[:40] + 7, settings)
    assert result.accuracy == 1
    assert result.details["train_loss"] < 0.5
    again = evaluation.gradient_probe(x, y + 7, x[:40], y[:40] + 7, settings)
    assert again.details == result.details


@pytest.mark.parametrize(
    ("settings", "rates"),
    [
        (evaluation.ProbeSettings("sgd", 1.0, 0, epochs=4, milestones=(1, 3)), [1, 0.1, 0.1, 0.01]),
        (evaluation.ProbeSettings("sgd", 1.0, 0, epochs=2), [1.0, 0.5]),
        (
            evaluation.VICREG_PLACES_PROBE,
            [0.003] * 4 + [0.0003] * 4 + [0.00003] * 4 + [0.000003] * 16,
        ),
        (evaluation.PLACES_PROBE, [0.01] * 5 + [0.001] * 4 + [0.0001] * 5),
    ],
)
def test_schedules(settings, rates, monkeypatch):
    seen = []
    step = torch.optim.SGD.step

    def watched(self, *args, **kwargs):
        seen.append(self.param_groups[0]["lr"])
        return step(self, *args, **kwargs)

    monkeypatch.setattr(torch.optim.SGD, "step", watched)
    x, y = blobs(20)
    evaluation.gradient_probe(x, y, x, y, settings)
    assert seen == pytest.approx(rates)


@pytest.mark.parametrize("weights", ["similarity", "uniform"])
def test_knn_probe_against_a_loop(weights):
    x, y = blobs(80, spread=3.0)
    test, labels = blobs(30, spread=3.0, seed=5)
    expected = []
    for f in test:
        similarity = nn.functional.cosine_similarity(x.double(), f.double()[None])
        nearest = similarity.argsort(descending=True)[:5]
        votes = torch.zeros(4, dtype=torch.double)
        for i in nearest:
            votes[y[i]] += math.exp(similarity[i] / 0.07) if weights == "similarity" else 1
        expected.append(int(votes.argmax()))
    found = evaluation.knn_probe(x, y, test, labels, k=5, weights=weights)
    assert found.predictions.tolist() == expected
    assert 0 < found.accuracy < 1
    assert evaluation.knn_probe(x[:3], y[:3], test, labels, k=20).details["k"] == 3


def test_accuracies_of_a_probe():
    """Of all samples, of each class on average, and among the five likeliest classes."""
    truth = torch.tensor([0, 0, 0, 7, 9, 9])
    found = evaluation.ProbeResult.of(torch.tensor([0, 0, 1, 7, 1, 1]), truth)
    assert found.accuracy == pytest.approx(0.5)
    assert found.class_accuracy == pytest.approx((2 / 3 + 1 + 0) / 3)
    assert found.top5_accuracy is None
    scores = -(torch.arange(10.0) - truth[:, None]).abs()  # neighbors are likely, too
    shifted = (truth + torch.tensor([2, 3, -1, 2, 3, 9])) % 10
    found = evaluation.ProbeResult.of(truth, shifted, (scores, torch.arange(10)))
    assert found.top5_accuracy == pytest.approx(4 / 6)


@pytest.mark.parametrize("probe", evaluation.PROBES.values())
def test_every_probe_says_what_is_likely(probe):
    x, y = blobs(120, spread=2.5)
    test, labels = blobs(60, spread=2.5, seed=4)
    labels[0] = 2
    few = probe(x, y + 3, test, labels + 3, seed=0)
    assert few.top5_accuracy == 1  # of four classes
    assert 0.25 < few.class_accuracy < 1
    assert few.accuracy == pytest.approx(float((few.predictions == labels + 3).double().mean()))


def test_lambda_may_be_chosen_by_the_accuracy_of_classes():
    """Where one class is rare, the strongest λ is right most often, and wrong about that class."""
    generator = torch.Generator().manual_seed(0)
    y = (torch.arange(800) % 10 == 0).long()
    x = torch.randn(800, 3, generator=generator) + 0.7 * y[:, None]
    chosen = {}
    for criterion in ("accuracy", "class_accuracy"):
        options = {"validation": (x[400:], y[400:]), "criterion": criterion}
        alone = {
            strength: evaluation.logistic_probe(
                x[:400], y[:400], x, y, strengths=[strength], **options
            ).details["validation_accuracy"]
            for strength in (1e4, 30.0, 1e-3)
        }
        found = evaluation.logistic_probe(x[:400], y[:400], x, y, strengths=tuple(alone), **options)
        assert found.details["validation_accuracy"] == pytest.approx(max(alone.values()), abs=1e-3)
        chosen[criterion] = found.details["l2"]
    assert chosen["class_accuracy"] < chosen["accuracy"]


def test_svm_probe():
    """A cost a class by cross-validation; mean average precision, also with several labels."""
    from sklearn.metrics import average_precision_score

    x, y = blobs(90, spread=2.5)
    test, labels = blobs(60, spread=2.5, seed=4)
    one = evaluation.svm_probe(x, y, test, labels, costs=(0.1, 1.0))
    several = evaluation.svm_probe(
        x, nn.functional.one_hot(y), test, nn.functional.one_hot(labels), costs=(0.1, 1.0)
    )
    assert several.details == one.details
    assert 0.5 < one.details["mean_average_precision"] < 1
    assert several.predictions.shape == (60, 4)
    assert (one.predictions == labels).double().mean() == pytest.approx(one.accuracy)
    from sklearn.svm import LinearSVC

    fixed = evaluation.svm_probe(x, y, test, labels, costs=(1.0,))
    machines = [LinearSVC(C=1.0).fit(x.numpy(), y.numpy() == c) for c in range(4)]
    expected = [
        average_precision_score(labels.numpy() == c, machine.decision_function(test.numpy()))
        for c, machine in enumerate(machines)
    ]
    assert fixed.details["mean_average_precision"] == pytest.approx(sum(expected) / 4, abs=1e-3)
    with pytest.raises(ValueError, match="too few or too many for 3 folds"):
        evaluation.svm_probe(x[:6], torch.tensor([0, 0, 0, 0, 1, 1]), x, y)
    with pytest.raises(ValueError, match="costs must be positive"):
        evaluation.svm_probe(x, y, x, y, costs=())


def test_probes_refuse_what_they_cannot_learn_from():
    x, y = blobs(20)
    broken = x.clone()
    broken[3, 2] = torch.nan
    with pytest.raises(ValueError, match="has diverged"):
        evaluation.knn_probe(broken, y, x, y)
    with pytest.raises(ValueError, match="one class only"):
        evaluation.gradient_probe(x, torch.zeros_like(y), x, y)
    with pytest.raises(ValueError, match="trained on 6 features and tested on 5"):
        evaluation.logistic_probe(x, y, x[:, :5], y)
    with pytest.raises(ValueError, match="cannot be split"):
        evaluation.logistic_probe(x, torch.arange(20), x, y)
    with pytest.raises(ValueError, match="strengths must be positive"):
        evaluation.logistic_probe(x, y, x, y, strengths=[0.0])
    with pytest.raises(ValueError, match="k must be at least 1"):
        evaluation.knn_probe(x, y, x, y, k=0)


def test_measure_features_gives_every_number():
    train, test = blobs(120, spread=2.0), blobs(60, spread=2.0, seed=2)
    found = evaluation.measure_features(train, test, inputs=test[0])
    assert set(found) == {
        *(f"{name}_accuracy" for name in (*evaluation.PROBES, "ncc")),
        *(f"{name}_{kind}_accuracy" for name in evaluation.PROBES for kind in ("class", "top5")),
        "svm_precision",
        *("cdnv", "std", "share_below_1", "correlation", "squared_correlation"),
        *("effective_rank", "mutual_information"),
    }
    assert found["knn_accuracy"] == evaluation.knn_probe(*train, *test).accuracy
    few = evaluation.measure_features(train, test, probes=["knn"])
    assert few == {name: found[name] for name in few}
    with pytest.raises(ValueError, match="no probe trees"):
        evaluation.measure_features(train, test, probes=["trees"])


# Features -----------------------------------------------------------------------------------


def test_features_at_the_head_by_default():
    model, images = resnet18(), torch.randn(5, 3, 32, 32)
    model.layer1.eval()
    before = [module.training for module in model.modules()]
    found = evaluation.extract_features(model, images, batch_size=2)
    assert [module.training for module in model.modules()] == before
    seen = []
    handle = model.fc.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    model.eval()(images)
    handle.remove()
    torch.testing.assert_close(found.only, seen[0], atol=1e-5, rtol=1e-5)
    assert found.labels is None
    assert not found.only.requires_grad


@pytest.mark.parametrize("inserted", [None, "statistics", "activations"])
def test_features_in_the_middle_of_forwards(inserted):
    """On models with VCReg there and without; relu_ follows each add of a ResNet."""
    model, images = resnet18(), torch.randn(4, 3, 32, 32)
    sites = vcreg_fx.plan(model, "residual").sites
    assert {site.form for site in sites} == {"inside"}
    if inserted is not None:
        vcreg_fx.insert(model, "residual", demean=inserted)
        model(torch.randn(4, 3, 32, 32) + 1).sum().backward()  # running means that are not 0
    found = evaluation.extract_features(model, images, "residual", pool="none")
    assert list(found.tensors) == [site.name for site in sites]
    seen = {}
    for site in sites:
        block = model.get_submodule(site.path)
        block.register_forward_hook(lambda _, __, out, name=site.name: seen.update({name: out}))
    model.eval()(images)
    for name, rows in found.tensors.items():
        expected = seen[name].movedim(1, -1).flatten(0, 2)
        torch.testing.assert_close(rows.relu(), expected, atol=1e-5, rtol=1e-5)
        assert (rows < 0).any()
    assert len(vcreg_fx.sites(model)) == (0 if inserted is None else 8), "the model is as it was"


def test_features_of_vit_in_the_middle_and_at_the_end():
    model, images = vit_tiny(), torch.randn(4, 3, 32, 32)
    vcreg_fx.insert(model, "head")
    found = evaluation.extract_features(model, images, "residual | head", batch_size=3)
    middle, end = [], []
    for block in model.blocks:
        block.norm2.register_forward_pre_hook(lambda _, args: middle.append(args[0].mean(dim=1)))
        block.register_forward_hook(lambda *args: end.append(args[2].mean(dim=1)))
    model.eval()(images)
    expected = [tensor for pair in zip(middle, end, strict=True) for tensor in pair]
    values = [v for name, v in found.tensors.items() if name.startswith("blocks")]
    for value, other in zip(values, expected, strict=True):
        torch.testing.assert_close(value, other, atol=1e-4, rtol=1e-4)
    assert found.tensors["head:input"].shape == (4, 192)
    assert [site.name for site in vcreg_fx.sites(model)] == ["head:input"]


def test_features_that_are_overwritten_further_down():
    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(4, 4)

        def forward(self, x):
            return x + self.linear(x)

    model, x = nn.Sequential(nn.Linear(4, 4), Block(), nn.ReLU(inplace=True)), torch.randn(9, 4)
    found = evaluation.extract_features(model, x, "blocks")
    torch.testing.assert_close(found.only, model[1](model[0](x)))
    assert (found.only < 0).any()


def test_features_of_every_location():
    model, images = resnet18(), torch.randn(3, 3, 32, 32)
    pooled = evaluation.extract_features(model, images, "stages")
    rows = evaluation.extract_features(model, images, "stages", pool="none")
    assert [t.shape for t in pooled.tensors.values()] == [(3, 16), (3, 24), (3, 32), (3, 48)]
    assert rows.tensors["layer1.1:output"].shape == (3 * 8 * 8, 16)
    torch.testing.assert_close(
        rows.tensors["layer1.1:output"].view(3, 64, 16).mean(dim=1),
        pooled.tensors["layer1.1:output"],
    )


def test_features_of_a_data_loader(capsys):
    model = resnet18()
    images, labels = torch.randn(5, 3, 32, 32), torch.arange(5)
    data = torch.utils.data.TensorDataset(images, labels)
    loader = torch.utils.data.DataLoader(data, batch_size=2)
    found = evaluation.extract_features(model, loader, progress=True)
    assert found.labels.tolist() == [0, 1, 2, 3, 4]
    assert "extracting features" in capsys.readouterr().err
    of_set = evaluation.extract_features(model, data, batch_size=2)
    assert torch.equal(of_set.only, found.only) and torch.equal(of_set.labels, found.labels)
    torch.testing.assert_close(
        found.only, evaluation.extract_features(model, images, batch_size=2).only
    )


def test_features_of_named_arguments():
    class Named(nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.head = nn.Linear(4, 6), nn.Linear(6, 3)

        def forward(self, *, pixel_values, scale):
            return self.head(self.body(pixel_values).relu() * scale)

    model, x = Named(), torch.randn(6, 4)
    parts = [
        {"pixel_values": x[i : i + 3], "scale": 2.0, "labels": torch.arange(3)} for i in (0, 3)
    ]
    found = evaluation.extract_features(model, parts)
    torch.testing.assert_close(found.only, model.body(x).relu() * 2)
    assert found.labels.tolist() == [0, 1, 2, 0, 1, 2]


class Patches(nn.Module):
    """Blocks that see patches of all images on one axis, as MobileViT's do."""

    def __init__(self):
        super().__init__()
        self.block, self.head = nn.Linear(4, 4), nn.Linear(4, 3)

    def forward(self, x):  # (n, 6, 4)
        patches = x.reshape(-1, 2, 4)
        return self.head(self.block(patches).reshape(len(x), 6, 4).mean(1))


def test_features_where_images_are_not_the_first_axis():
    model, x = Patches(), torch.randn(5, 6, 4)
    rule = vcreg_fx.rules.modules("block")
    every = evaluation.extract_features(model, x, rule, pool="none", batch_size=2).only
    torch.testing.assert_close(every, model.block(x).flatten(0, 1))
    one = evaluation.extract_features(model, x, rule, batch_size=1).only
    torch.testing.assert_close(one, model.block(x).mean(1))
    with pytest.raises(vcreg_fx.PlacementError, match="batch_size=1"):
        evaluation.extract_features(model, x, rule, batch_size=2)


def test_features_that_are_none():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.head = nn.Linear(4, 4), nn.Linear(4, 3)

        def forward(self, x):
            return self.head(self.body(self.body(x)))

    with pytest.raises(vcreg_fx.PlacementError, match="passed 2 times in one forward"):
        evaluation.extract_features(Twice(), torch.randn(4, 4), vcreg_fx.rules.modules("body"))
    with pytest.raises(vcreg_fx.PlacementError, match="3 sites"):
        _ = evaluation.extract_features(resnet18(), torch.randn(2, 3, 32, 32), "downsample").only
    with pytest.raises(ValueError, match="data is empty"):
        evaluation.extract_features(resnet18(), [])
    with pytest.raises(TypeError, match="A batch is a str"):
        evaluation.extract_features(resnet18(), ["image"])
    with pytest.raises(ValueError, match="pool="):
        evaluation.extract_features(resnet18(), torch.randn(2, 3, 32, 32), pool="max")


# Semi-supervised -----------------------------------------------------------------------------


class Wide(nn.Module):
    """A network without normalization, and its classifier."""

    def __init__(self, classes=None):
        super().__init__()
        self.body = nn.Sequential(nn.Flatten(), nn.Linear(16, 12), nn.Tanh())
        if classes:
            self.head = nn.Linear(12, classes)

    def forward(self, x):
        h = self.body(x)
        return self.head(h) if hasattr(self, "head") else h


def labelled_images(count, seed=0):
    torch.manual_seed(seed)
    labels = torch.arange(count) % 3 + 4
    images = torch.randn(count, 1, 4, 4)
    images[:, 0, 0, 0] += 3 * (labels - 5)
    return images, labels


def test_the_settings_are_vicregs():
    """Appendix C.2, Semi-supervised evaluation."""
    for share, head, encoder in ((0.01, 0.08, 0.03), (0.1, 0.1, 0.01)):
        assert evaluation.SEMI_SUPERVISED[share] == evaluation.ProbeSettings(
            "sgd", head, 0.0, momentum=0.9, batch_size=256, epochs=20, encoder_rate=encoder
        )


@pytest.mark.parametrize("kind", ["classifier", "encoder", "with VCReg", "data set", "frozen"])
def test_semi_supervised_probe_is_two_rates_of_sgd(kind):
    """Two rates of plain SGD over the whole of the labelled images at once, by hand."""
    torch.manual_seed(1)
    model = Wide(None if kind == "encoder" else 7)
    if kind == "with VCReg":
        vcreg_fx.insert(model, "head", alpha=9.0, example_inputs=(torch.zeros(2, 1, 4, 4),))
    model.requires_grad_(kind != "frozen")
    before = copy.deepcopy(model.state_dict())
    train, test = labelled_images(30), labelled_images(60, seed=1)
    settings = evaluation.ProbeSettings("sgd", 0.5, 0.0, epochs=8, encoder_rate=0.2)
    given = [torch.utils.data.TensorDataset(*p) for p in (train, test)]
    pairs = given if kind == "data set" else (train, test)
    random = torch.get_rng_state()
    given_labels = train[1] if kind == "data set" else None
    how = {"labels": given_labels, "classifier": kind != "encoder", "seed": 3}
    found = evaluation.semi_supervised_probe(model, *pairs, 1.0, settings, **how)
    assert torch.equal(torch.get_rng_state(), random)
    assert all(torch.equal(model.state_dict()[name], value) for name, value in before.items())
    assert all(p.requires_grad == (kind != "frozen") for p in model.parameters())
    assert [s.alpha for s in vcreg_fx.sites(model)] == ([9.0] if kind == "with VCReg" else [])
    expected = Wide(3)
    expected.body.load_state_dict(model.body.state_dict())
    with torch.random.fork_rng():
        torch.manual_seed(3)
        for _ in range(3):
            torch.randperm(10)
        expected.head = nn.Linear(12, 3)
    groups = [
        {"params": expected.body.parameters(), "lr": 0.2},
        {"params": expected.head.parameters(), "lr": 0.5},
    ]
    optimizer = torch.optim.SGD(groups)
    for epoch in range(8):
        for group, rate in zip(optimizer.param_groups, (0.2, 0.5), strict=True):
            group["lr"] = rate * (1 + math.cos(math.pi * epoch / 8)) / 2
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(expected(train[0]), train[1] - 4)
        loss.backward()
        optimizer.step()
    predicted = expected(test[0]).argmax(dim=1) + 4
    assert found.details == pytest.approx({"train_loss": loss.item(), "labelled": 30}, rel=1e-4)
    assert found.accuracy == float((predicted == test[1]).double().mean())
    assert torch.equal(found.predictions, predicted) and found.top5_accuracy == 1


def test_what_is_frozen_in_part_stays_so(monkeypatch):
    trained = []
    descend = "vcreg_fx.evaluation._gradient_probe._descend"
    monkeypatch.setattr(descend, lambda _, groups, *__: trained.append(groups[0]["params"]) or 0.0)
    layers = nn.Linear(16, 4), nn.ReLU(), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 3)
    model, data = nn.Sequential(nn.Flatten(), *layers), labelled_images(30)
    layers[0].requires_grad_(False)
    evaluation.semi_supervised_probe(model, data, data, 0.1)
    assert [p.requires_grad for p in trained[0]] == [False, False, True, True]


def test_few_labels_of_each_class():
    train, test = labelled_images(330), labelled_images(30, seed=1)
    few = {
        share: evaluation.semi_supervised_probe(Wide(), train, test, share, classifier=False)
        for share in (0.01, 0.1)
    }
    assert {share: result.details["labelled"] for share, result in few.items()} == {
        0.01: 3, 0.1: 33,
    }  # fmt: skip
    again = evaluation.semi_supervised_probe(Wide(3), train, test, 0.1, seed=1)
    assert again.accuracy > 0.6, "chance is a third"


def test_a_network_with_batch_norms_and_one_image_left_over():
    settings = evaluation.ProbeSettings("sgd", 0.1, 0.0, batch_size=8, epochs=1, encoder_rate=0.1)
    images, labels = torch.randn(9, 3, 32, 32), torch.arange(9) % 2
    data = (images, labels)
    found = evaluation.semi_supervised_probe(resnet18(), data, data, 1.0, settings)
    assert math.isfinite(found.details["train_loss"])


def test_what_cannot_be_probed_with_few_labels():
    data = labelled_images(30)
    probe = evaluation.semi_supervised_probe
    with pytest.raises(ValueError, match="share=0.0 must be"):
        probe(Wide(3), data, data, 0.0)
    with pytest.raises(ValueError, match="share=0.5 needs settings"):
        probe(Wide(3), data, data, 0.5)
    with pytest.raises(ValueError, match="needs settings"):
        probe(Wide(3), data, data, 0.5, evaluation.SGD_PROBE)
    with pytest.raises(ValueError, match="one class only"):
        probe(Wide(3), (data[0], data[1] * 0), data, 0.1)
    with pytest.raises(ValueError, match="frozen"):
        evaluation.gradient_probe(*labelled_features(), settings=evaluation.SEMI_SUPERVISED[0.1])
    several = nn.Conv2d(1, 3, 4)
    with pytest.raises(ValueError, match="one linear classifier"):
        probe(nn.Sequential(several, nn.Flatten()), data, data, 0.1)
    with pytest.raises(ValueError, match="not made by a classification layer"):
        probe(nn.Sequential(nn.Flatten(), nn.BatchNorm1d(16)), data, data, 0.1)


def labelled_features():
    torch.manual_seed(0)
    return torch.randn(8, 4), torch.arange(8) % 2, torch.randn(8, 4), torch.arange(8) % 2


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a second device")
def test_the_device_is_given_back():
    model, images = resnet18(), torch.randn(3, 3, 32, 32)
    expected = evaluation.extract_features(model, images, "residual | head")
    found = evaluation.extract_features(model, images, "residual | head", device="cuda")
    for name, value in found.tensors.items():
        torch.testing.assert_close(value, expected.tensors[name], atol=1e-2, rtol=1e-2)
    assert {p.device.type for p in model.parameters()} == {"cpu"}
    assert model.training
