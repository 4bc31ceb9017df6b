"""Competing regularizers: their papers' formulas, and the same machinery at the same sites."""

from __future__ import annotations

import copy
import functools
import math
import pickle

import pytest
import torch
from torch import nn

import vcreg_fx
from tests.models import relative_error, resnet18, step, task_loss
from vcreg_fx import functional
from vcreg_fx.gradient._ranks import GatherSamples


def spread_of(z):
    """A user's own regularizer."""
    return (z.std(dim=0) - 1).square().sum()


def no_scalar(z):
    return z.sum(dim=0)


def no_gradient(z):
    return torch.ones(())


# Formulas -----------------------------------------------------------------------------------


def test_decov_is_its_papers_formula():
    z = torch.randn(7, 4, dtype=torch.double)
    total = 0.0
    for i in range(4):
        for j in range(4):
            if i != j:
                c = sum(
                    float((z[k, i] - z[:, i].mean()) * (z[k, j] - z[:, j].mean())) for k in range(7)
                )
                total += (c / 7) ** 2
    assert float(functional.decov_loss(z)) == pytest.approx(total / 2)
    line = torch.tensor([[-1.0], [1.0]])
    # C = [[1, 2], [2, 4]]: half of 2² + 2².
    assert float(functional.decov_loss(torch.cat([line, 2 * line], 1))) == pytest.approx(4)


@pytest.mark.parametrize("form", ["direct", "det", "logdet"])
@pytest.mark.parametrize("block", [1, 8_388_608])
def test_wld_is_its_papers_formula(form, block, monkeypatch):
    monkeypatch.setattr(functional, "_BLOCK", block)
    z = torch.randn(6, 3, dtype=torch.double, requires_grad=True)
    s = torch.stack(
        [
            torch.stack(
                [sum(torch.exp(-2 * (z[k, i] - z[k, j]) ** 2) for k in range(6)) / 6]
            ).squeeze()
            for i in range(3)
            for j in range(3)
        ]
    ).view(3, 3)
    expected = {
        "direct": sum(s[i, j] for i in range(3) for j in range(3) if i != j),
        "det": -torch.det(s),
        "logdet": -torch.log(torch.det(s)),
    }[form] + 0.1 * sum(torch.linalg.vector_norm(row) ** 2 for row in z)
    found = functional.wld_loss(z, form, gamma=2.0, norm_weight=0.1)
    torch.testing.assert_close(found, expected)
    gradients = [torch.autograd.grad(value, z)[0] for value in (found, expected)]
    torch.testing.assert_close(*gradients)


def test_wld_of_known_cases():
    z = torch.randn(5, 1).repeat(1, 3)
    assert float(functional.wld_loss(z)) == pytest.approx(6), "equal features: all pairs count 1"
    far = torch.tensor([[0.0, 100.0, 200.0]])
    assert float(functional.wld_loss(far)) == 0
    assert float(functional.wld_loss(far, "det")) == pytest.approx(-1)
    with pytest.raises(ValueError, match="form='log'"):
        functional.wld_loss(far, "log")


def sigreg_by_hand(z, directions, points, extent):
    """SIGReg with complex numbers, direction by direction and point by point."""
    total = 0.0
    for a in (directions / directions.norm(dim=0)).T:
        values = []
        t = torch.linspace(-extent, extent, points, dtype=z.dtype)
        for each in t:
            phi = torch.exp(1j * each * (z @ a)).mean()
            target = torch.exp(-each.square() / 2)
            values.append((phi - target).abs().square() * target)
        total += len(z) * torch.trapezoid(torch.stack(values), t)
    return total / directions.shape[1]


@pytest.mark.parametrize("block", [1, 8_388_608])
@pytest.mark.parametrize(("points", "extent"), [(17, 5.0), (5, 3.0)])
def test_sigreg_is_its_papers_formula(block, points, extent, monkeypatch):
    monkeypatch.setattr(functional, "_BLOCK", block)
    z = torch.randn(7, 3, dtype=torch.double, requires_grad=True)
    directions = torch.randn(3, 4, dtype=torch.double)
    found = functional.sigreg_loss(z, points=points, extent=extent, directions=directions)
    expected = sigreg_by_hand(z, directions, points, extent)
    torch.testing.assert_close(found, expected)
    gradients = [torch.autograd.grad(value, z)[0] for value in (found, expected)]
    torch.testing.assert_close(*gradients)


def test_sigreg_is_lightlys():
    """lightly integrates over [0, 3], twice, by as many points as ours has there."""
    lightly = pytest.importorskip("lightly.loss.lejepa_loss")
    theirs = lightly.SIGReg(num_vectors=32)
    z = torch.randn(50, 6, requires_grad=True)
    torch.manual_seed(3)
    expected = theirs(z)
    torch.manual_seed(3)
    found = functional.sigreg_loss(z, slices=32, points=33, extent=3.0)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)
    gradients = [torch.autograd.grad(value, z)[0] for value in (found, expected)]
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-6)


def test_sigreg_of_known_cases():
    torch.manual_seed(0)
    n = 4_000
    gaussian, collapsed = torch.randn(n, 8), torch.zeros(n, 8)
    values = [float(functional.sigreg_loss(z)) for z in (gaussian, 2 * gaussian, collapsed)]
    assert values[0] < 1.5, "the statistic of a sample of the target does not grow with n"
    assert values[1] > 100 and values[2] > 100
    # at zero φ is 1: n ∫ (1 − e^(−t²/2))² e^(−t²/2) dt = n √(2π) (1 − 2/√2 + 1/√3)
    integral = math.sqrt(2 * math.pi) * (1 - math.sqrt(2) + 1 / math.sqrt(3))
    assert values[2] / n == pytest.approx(integral, rel=1e-3)
    for wrong in ({"slices": 0}, {"points": 16}, {"points": 1}, {"extent": 0.0}):
        with pytest.raises(ValueError, match="slices must be"):
            functional.sigreg_loss(gaussian, **wrong)


def test_radial_is_its_papers_formula():
    z = torch.randn(10, 3, dtype=torch.double, requires_grad=True)
    d, m = 3, 3
    radii = sorted((float(row.norm()), i) for i, row in enumerate(z.detach()))
    r = torch.stack([z[i].square().sum().sqrt() for _, i in radii])
    chi = torch.distributions.Chi2(torch.tensor(3.0, dtype=torch.double))
    log_density = chi.log_prob(r.square()) + torch.log(2 * r)  # of √ of a χ² variable
    spacings = [torch.log(11 / m * (r[i + m] - r[i]) + 1e-4) for i in range(10 - m)]
    expected = -log_density.mean() - sum(spacings) / (10 - m)
    found = functional.radial_loss(z)
    torch.testing.assert_close(found, expected)
    gradients = [torch.autograd.grad(value, z)[0] for value in (found, expected)]
    torch.testing.assert_close(*gradients)
    whole = functional.radial_vcreg_loss(z, 2.0, 3.0, 5.0)
    c = torch.cov(z.T)
    of_c = (c.square().sum() - c.diagonal().square().sum()) / d
    v = torch.relu(1 - (c.diagonal() + 1e-4).sqrt()).mean()
    torch.testing.assert_close(whole, 2 * v + 3 * of_c + 5 * expected)


def test_radial_of_known_cases():
    torch.manual_seed(0)
    gaussian = torch.randn(4_000, 16)
    close = float(functional.radial_loss(gaussian))
    assert abs(close) < 0.1
    for z in (2 * gaussian, gaussian / gaussian.norm(dim=1, keepdim=True) * 4, gaussian * 0):
        assert float(functional.radial_loss(z)) > close + 1
    one = torch.randn(1, 16, requires_grad=True)
    assert float(functional.radial_loss(one).detach()) == 0
    (gradient,) = torch.autograd.grad(functional.radial_loss(torch.zeros_like(one) * one), one)
    assert torch.equal(gradient, torch.zeros_like(one))


@pytest.mark.parametrize("name", ["sigreg", "radial"])
def test_they_make_samples_gaussian(name):
    """Minimized by themselves, from an X in two dimensions, as in Radial-VCReg's figure 1."""
    torch.manual_seed(0)
    line = torch.linspace(-2, 2, 200)
    z = torch.stack([line, line * (1 - 2 * (torch.arange(200) % 2))], dim=1).requires_grad_()
    loss = {"sigreg": functional.sigreg_loss, "radial": functional.radial_vcreg_loss}[name]
    distance = {"sigreg": functional.sigreg_loss, "radial": functional.radial_loss}[name]
    before = float(distance(z.detach()))
    optimizer = torch.optim.Adam([z], lr=0.05)
    for _ in range(60):
        optimizer.zero_grad()
        loss(z).backward()
        optimizer.step()
    assert float(distance(z.detach())) < 0.5 * before


def test_spectral_decoupling_is_its_papers_formula():
    logits = torch.tensor([[3.0, -4.0], [0.0, 1.0]])
    assert float(functional.spectral_decoupling_loss(logits, 0.5)) == pytest.approx(
        0.5 / 2 * (9 + 16 + 0 + 1) / 2
    )
    assert float(functional.spectral_decoupling_loss(torch.tensor([2.0, 0.0]))) == 1


# At the sites -------------------------------------------------------------------------------

REGULARIZERS = {
    "decov": functional.decov_loss,
    "wld": functional.wld_loss,
    "variance": functional.variance_loss,
    "radial": functional.radial_vcreg_loss,
    "tests.test_regularizers:spread_of": spread_of,
}


def reference(model, x, penalize, alpha):
    """Gradients of ``loss + Σ α R(z)`` by autograd, on what hooks see at the blocks."""
    seen = []
    blocks = [module for module in model.modules() if type(module).__name__ == "BasicBlock"]
    handles = [
        block.register_forward_hook(lambda _, __, output: seen.append(output)) for block in blocks
    ]
    model.zero_grad()
    loss = task_loss(model(x))
    for h in seen:
        loss = loss + alpha * penalize(functional.flatten_samples(h, "NCHW"))
    loss.backward()
    for handle in handles:
        handle.remove()
    return [p.grad for p in model.parameters()]


@pytest.mark.parametrize("mode", ["gradient", "loss"])
@pytest.mark.parametrize("name", REGULARIZERS)
def test_gradients_are_those_of_autograd(name, mode):
    x = torch.randn(3, 3, 32, 32)
    model = resnet18()
    expected = reference(copy.deepcopy(model), x, REGULARIZERS[name], 0.01)
    plain = step(copy.deepcopy(model), x)[1]
    vcreg_fx.insert(model, "blocks", regularizer=name, alpha=0.01, mode=mode)
    found = step(model, x)[1]
    assert relative_error(found, expected) < 2e-5
    assert relative_error(plain, expected) > 1e-4, "the regularizer must matter for this to tell"


def test_sigreg_at_the_sites_draws_its_slices_from_torch():
    x = torch.randn(3, 3, 32, 32)
    model = resnet18().eval()
    block = model.layer4[1]
    for module in (model, *model.layer4[1].children()):
        module.requires_grad_(True)
    plain = copy.deepcopy(model)
    vcreg_fx.insert(model, "blocks & stage(3) & last(blocks, 1)", regularizer="sigreg", alpha=0.1)
    block.train()
    for each in block.children():
        each.eval()
    torch.manual_seed(5)
    found = step(model, x, seed=5)[1]
    seen = []
    handle = plain.layer4[1].register_forward_hook(lambda _, __, out: seen.append(out))
    loss = task_loss(plain(x))
    torch.manual_seed(5)
    (loss + 0.1 * functional.sigreg_loss(functional.flatten_samples(seen[0], "NCHW"))).backward()
    handle.remove()
    assert relative_error(found, [p.grad for p in plain.parameters()]) < 2e-5
    assert relative_error(found, step(plain, x)[1]) > 1e-4


def test_loss_scale_and_numbers():
    x = torch.randn(3, 3, 32, 32)
    model, other = resnet18(), None
    other = copy.deepcopy(model)
    vcreg_fx.insert(model, "blocks", regularizer="decov", alpha=0.5)
    vcreg_fx.insert(other, "blocks", regularizer="decov", alpha=2.0)
    vcreg_fx.set_loss_scale(model, 8.0, accumulation_steps=2)
    assert relative_error(step(model, x)[1], step(other, x)[1]) < 1e-5
    site = vcreg_fx.sites(model)[0]
    h = {}
    model.layer1[0].register_forward_hook(lambda _, __, out: h.update(out=out.detach()))
    model(x)
    z = functional.flatten_samples(h["out"], "NCHW")
    assert site.penalty == pytest.approx(0.5 * float(functional.decov_loss(z)), rel=1e-4)
    torch.testing.assert_close(site.std, (z.var(dim=0) + 1e-4).sqrt(), rtol=1e-4, atol=1e-5)
    assert site.covariance_loss is None
    site.alpha = 0.25
    assert site.penalty == pytest.approx(0.25 * float(functional.decov_loss(z)), rel=1e-4)


def test_a_function_of_ones_own_in_any_form():
    x = torch.randn(3, 3, 32, 32)
    model = resnet18()
    expected = reference(copy.deepcopy(model), x, lambda z: z.abs().mean(), 1.5)
    vcreg_fx.insert(model, "blocks", regularizer=lambda z: z.abs().mean(), alpha=1.5)
    assert relative_error(step(model, x)[1], expected) < 2e-5
    half = functools.partial(functional.wld_loss, gamma=0.5)
    vcreg_fx.insert(vcreg_fx.remove(model), "blocks", regularizer=half)
    assert vcreg_fx.get_config(model)["regularizer"] is half


def test_configuration_and_copies_keep_the_regularizer(tmp_path):
    x = torch.randn(3, 3, 32, 32)
    model = vcreg_fx.insert(resnet18(), "blocks", regularizer=spread_of, alpha=0.1)
    config = vcreg_fx.get_config(model)
    assert config["regularizer"] == "tests.test_regularizers:spread_of"
    again = copy.deepcopy(model)
    vcreg_fx.insert(vcreg_fx.remove(again), **config)
    loaded = pickle.loads(pickle.dumps(model))
    expected = step(model, x)[1]
    for other in (again, copy.deepcopy(model), loaded):
        assert relative_error(step(other, x)[1], expected) < 1e-6
    variance = vcreg_fx.insert(resnet18(), "head", regularizer="variance")
    assert vcreg_fx.get_config(variance)["regularizer"] == "variance"
    assert vcreg_fx.sites(variance)[0].beta == 0


def test_eval_mode_is_left_alone():
    model, x = resnet18().eval(), torch.randn(2, 3, 32, 32)
    before = model(x)
    vcreg_fx.insert(model, "blocks", regularizer="wld")
    assert torch.equal(model(x), before)


@pytest.mark.parametrize(
    ("regularizer", "message"),
    [
        (
            "dcov",
            "There is no regularizer 'dcov'. There are vcreg, variance, decov, wld, sigreg, radial",
        ),
        ("tests.nothing:function", "There is no regularizer"),
        ("tests.test_regularizers:nothing", "There is no regularizer"),
        (3, "There is no regularizer 3"),
    ],
)
def test_unknown_regularizers(regularizer, message):
    model = resnet18()
    with pytest.raises(vcreg_fx.InsertionError, match=message):
        vcreg_fx.insert(model, "blocks", regularizer=regularizer)
    assert vcreg_fx.sites(model) == []


def test_conventions_are_vcregs():
    with pytest.raises(vcreg_fx.InsertionError, match="algorithm1"):
        vcreg_fx.insert(resnet18(), "blocks", regularizer="decov", convention="algorithm1")


@pytest.mark.parametrize("function", [no_scalar, no_gradient])
def test_functions_that_are_no_regularizers(function):
    model = vcreg_fx.insert(resnet18(), "head", regularizer=function, mode="loss")
    with pytest.raises(TypeError, match=f"{function.__name__} returned .* must return a scalar"):
        model(torch.randn(2, 3, 32, 32))


def test_regularizers_are_an_axis_of_ablations(tmp_path):
    from tests.ablation_task import build, evaluate, train
    from vcreg_fx.ablation import AblationError, AblationOptions

    options = AblationOptions(example_inputs=(torch.zeros(2, 4),))
    arguments = {"rules": "blocks", "seeds": [0], "options": options, "store": tmp_path / "store"}
    names = ["vcreg", "variance", "decov", "wld"]
    result = vcreg_fx.ablate(build, train, evaluate, axes={"regularizer": names}, **arguments)
    assert [r.status for r in result.records] == ["done"] * 5
    assert len({r.metrics["mean"] for r in result.records}) == 5
    with pytest.raises(AblationError, match="There is no regularizer 'none'"):
        vcreg_fx.ablate(build, train, evaluate, axes={"regularizer": ["none"]}, **arguments)


# Over ranks ---------------------------------------------------------------------------------


def _rank(rank, folder, queue):
    import torch.distributed as dist

    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2
    )
    layer, x = over_ranks()
    x = x[:5] if rank == 0 else x[5:]
    value = functional.decov_loss(GatherSamples.apply(layer(x), dist.group.WORLD))
    value.backward()
    for parameter in layer.parameters():
        dist.all_reduce(parameter.grad)  # the average over ranks, as in DistributedDataParallel
        parameter.grad /= 2
    queue.put((float(value.detach()), layer.weight.grad.tolist()))
    dist.barrier()
    dist.destroy_process_group()


def over_ranks():
    torch.manual_seed(0)
    return nn.Linear(4, 3), torch.randn(8, 4)


@pytest.mark.slow
def test_samples_of_unequal_ranks_make_one_batch(tmp_path):
    context = torch.multiprocessing.get_context("spawn")
    queue = context.Queue()
    processes = [context.Process(target=_rank, args=(r, str(tmp_path), queue)) for r in range(2)]
    for process in processes:
        process.start()
    results = [queue.get(timeout=240) for _ in processes]
    for process in processes:
        process.join(timeout=30)
        assert process.exitcode == 0
    layer, x = over_ranks()
    value = functional.decov_loss(layer(x))
    value.backward()
    for found, gradient in results:
        assert found == pytest.approx(float(value.detach()), rel=1e-5)
        torch.testing.assert_close(torch.tensor(gradient), layer.weight.grad)
    assert math.isfinite(found)
