"""How a training loop scales its loss, and what several calls of a site add up to."""

from __future__ import annotations

import copy
import math
import pickle

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import vcreg_fx
from tests.models import relative_error, resnet18, task_loss
from vcreg_fx import functional
from vcreg_fx.site._loss_scale import LossScale


def gradients(model: torch.nn.Module, x: torch.Tensor, factor: float = 1.0) -> list[torch.Tensor]:
    model.zero_grad()
    (task_loss(model(x)) * factor).backward()
    return [p.grad.clone() for p in model.parameters()]


@pytest.mark.parametrize("scale", [65536.0, torch.tensor(1024.0)])
@pytest.mark.parametrize("backend", ["fast", "naive"])
def test_a_scaled_loss_gives_scaled_gradients(scale: object, backend: str) -> None:
    model, x = resnet18().double(), torch.randn(4, 3, 32, 32, dtype=torch.float64)
    vcreg_fx.insert(model, "blocks", alpha=5.0, backend=backend)
    expected = gradients(model, x)
    vcreg_fx.set_loss_scale(model, scale)
    found = [g / float(scale) for g in gradients(model, x, float(scale))]
    assert relative_error(found, expected) <= 1e-12


def test_accumulation() -> None:
    model = resnet18().double().eval()  # batch norms by running statistics: micro-batches add up
    vcreg_fx.insert(model, "head", alpha=5.0)
    model.fc.train()
    parts = torch.randn(2, 4, 3, 32, 32, dtype=torch.float64)
    expected = [sum(pair) / 2 for pair in zip(*(gradients(model, x) for x in parts), strict=True)]
    vcreg_fx.set_loss_scale(model, accumulation_steps=2)
    model.zero_grad()
    for x in parts:
        (task_loss(model(x)) / 2).backward()
    assert relative_error([p.grad for p in model.parameters()], expected) <= 1e-12


def test_a_grad_scaler_is_read_at_every_step() -> None:
    model, x = resnet18(), torch.randn(4, 3, 32, 32)
    vcreg_fx.insert(model, "blocks", alpha=5.0)
    expected = gradients(model, x)
    scaler = torch.amp.GradScaler("cpu", init_scale=256.0, growth_interval=1)
    vcreg_fx.set_loss_scale(model, scaler)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    scales = []
    for _ in range(3):
        model.zero_grad()
        scaler.scale(task_loss(model(x))).backward()
        scaler.unscale_(optimizer)
        assert relative_error([p.grad for p in model.parameters()], expected) <= 1e-4
        scales.append(scaler.get_scale())
        scaler.step(optimizer)
        scaler.update()
    assert scales == [256.0, 512.0, 1024.0]


def test_float16_without_a_loss_scale_is_an_error() -> None:
    x = torch.randn(4, 3, 32, 32)
    half = vcreg_fx.insert(resnet18().half(), "blocks", example_inputs=(x.half(),))
    with pytest.raises(RuntimeError, match="set_loss_scale"):
        half(x.half())
    model = vcreg_fx.insert(resnet18(), "blocks")
    with torch.autocast("cpu", torch.float16), pytest.raises(RuntimeError, match="set_loss_scale"):
        model(x)
    vcreg_fx.set_loss_scale(model, 1.0)
    with torch.autocast("cpu", torch.float16):
        model(x)
    with torch.autocast("cpu", torch.bfloat16):
        vcreg_fx.insert(resnet18(), "blocks")(x).float().sum().backward()


def test_loss_mode_needs_no_scale() -> None:
    model, x = resnet18().double(), torch.randn(4, 3, 32, 32, dtype=torch.float64)
    reference = vcreg_fx.insert(copy.deepcopy(model), "blocks", alpha=5.0)
    expected = gradients(reference, x)
    vcreg_fx.insert(model, "blocks", alpha=5.0, mode="loss")
    ((task_loss(model(x)) + vcreg_fx.penalty(model)) * 1024.0).backward()
    found = [p.grad / 1024.0 for p in model.parameters()]
    assert relative_error(found, expected) <= 1e-12


def test_the_penalty_is_the_sum_and_reading_clears_it() -> None:
    model, x = resnet18(), torch.randn(4, 3, 32, 32)
    vcreg_fx.insert(model, "blocks", mode="loss")
    model(x)
    total = vcreg_fx.penalty(model)
    assert total.item() == pytest.approx(sum(site.penalty for site in vcreg_fx.sites(model)))
    assert total.requires_grad and vcreg_fx.penalty(model).item() == 0
    model.eval()(x)
    assert vcreg_fx.penalty(model).item() == 0


def test_penalties_that_nobody_reads_are_reported() -> None:
    model, x = resnet18(), torch.randn(2, 3, 32, 32)
    vcreg_fx.insert(model, "head", mode="loss")
    with pytest.warns(UserWarning, match="older ones are dropped"):
        for _ in range(66):
            model(x)


def test_scales_that_are_none() -> None:
    with pytest.raises(ValueError, match="accumulation_steps=0"):
        LossScale(1.0, 0)
    with pytest.raises(TypeError, match="GradScaler"):
        LossScale("big")
    with pytest.raises(ValueError, match="one number"):
        LossScale(torch.ones(2))


def test_a_pickled_scale_is_a_number() -> None:
    scale = LossScale(torch.amp.GradScaler("cpu", init_scale=8.0), 2)
    assert float(scale.read()) == 4.0
    assert float(pickle.loads(pickle.dumps(scale)).read()) == 4.0
    assert copy.deepcopy(scale).scale is scale.scale


# Several calls of a site in one backward pass ---------------------------------------------------


class Twice(nn.Module):
    """Calls one block as often as it is told, and another once; both are sites."""

    def __init__(self, times: int = 1, reentrant: bool | None = None) -> None:
        super().__init__()
        self.block = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 4))
        self.last = nn.Linear(4, 3)
        self.times, self.reentrant = times, reentrant
        self.double()

    def forward(self, x: Tensor) -> Tensor:
        for _ in range(self.times):
            if self.reentrant is None:
                x = self.block(x)
            else:
                x = checkpoint(self.block, x, use_reentrant=self.reentrant)
        return self.last(x)


STRONG = {"alpha": 3.0, "beta": 2.0}
PLACES = "modules('block.2') | modules('last')"


def mean_of_calls(model: Twice, losses: list[list[Tensor]], **config: object) -> list[Tensor]:
    """Gradients, by hooks and autograd alone, of task loss + Σ over sites of the calls' mean.

    One list of views for each backward pass.
    """
    model.zero_grad()
    seen: dict[nn.Module, list[Tensor]] = {}
    handles = [
        module.register_forward_hook(lambda m, _, out: seen.setdefault(m, []).append(out))
        for module in (model.block[2], model.last)
    ]
    for views in losses:
        seen.clear()
        loss = sum(task_loss(model(view)) for view in views)
        for calls in seen.values():
            terms = [functional.vcreg_loss(h, layout="NC", **config) for h in calls]
            loss = loss + sum(terms) / len(terms)
        loss.backward()
    for handle in handles:
        handle.remove()
    return [p.grad.clone() for p in model.parameters()]


def inserted_twice(times: int = 1, reentrant: bool | None = None, **config: object) -> Twice:
    torch.manual_seed(0)
    model = Twice(times, reentrant)
    how = {"layout": "NC", "example_inputs": (torch.zeros(6, 4).double(),), "calls": "mean"}
    return vcreg_fx.insert(model, PLACES, **{**STRONG, **how, **config})


def views_of(count: int, seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return list(torch.randn(count, 6, 4, generator=generator, dtype=torch.float64))


@settings(max_examples=25, deadline=None)
@given(
    views=st.integers(1, 3),
    times=st.integers(1, 3),
    steps=st.integers(1, 2),
    mode=st.sampled_from(("gradient", "loss")),
    backend=st.sampled_from(("fast", "naive")),
    delta=st.sampled_from((None, 0.05)),
    checkpointed=st.booleans(),
    seed=st.integers(0, 99),
)
def test_the_mean_of_calls(
    views: int, times: int, steps: int, mode: str, backend: str, delta: float | None,
    checkpointed: bool, seed: int,
) -> None:  # fmt: skip
    """Views, a block called again and again, accumulation, checkpointing; in both modes."""
    reentrant = False if checkpointed else None
    model = inserted_twice(times, reentrant, mode=mode, backend=backend, delta=delta)
    losses = [views_of(views, seed + step) for step in range(steps)]
    model.zero_grad()
    for given_views in losses:
        loss = sum(task_loss(model(view)) for view in given_views)
        if mode == "loss":
            loss = loss + vcreg_fx.penalty(model)
        loss.backward()
    found = [p.grad.clone() for p in model.parameters()]
    plain = Twice(times)
    plain.load_state_dict(model.state_dict())
    expected = mean_of_calls(plain, losses, **STRONG, delta=delta)
    assert relative_error(found, expected) <= 1e-10


def test_the_default_is_the_sum_of_calls() -> None:
    model, x = inserted_twice(calls="sum"), views_of(1)[0]
    expected = gradients(model, x)
    model.zero_grad()
    (task_loss(model(x)) + task_loss(model(x))).backward()
    found = [p.grad for p in model.parameters()]
    assert relative_error(found, [2 * g for g in expected]) <= 1e-12
    assert vcreg_fx.VCRegConfig().calls == "sum"


def test_calls_that_take_no_part_are_not_counted() -> None:
    model, (x, y, z) = inserted_twice(), views_of(3)
    kept = model(y)  # its output is alive, and no loss depends on it
    model(z)
    one, other = task_loss(model(x)), task_loss(model(z))
    found = []
    for loss in (one, other, one + other):
        model.zero_grad()
        loss.backward(retain_graph=True)
        found.append([p.grad.clone() for p in model.parameters()])
    plain = vcreg_fx.remove(copy.deepcopy(model))
    for views, each in zip(([x], [z], [x, z]), found, strict=True):
        expected = mean_of_calls(plain, [views], **STRONG)
        assert relative_error(each, expected) <= 1e-10
    only = torch.autograd.grad(one + other, model.last.weight)
    assert relative_error([*only], [found[2][4]]) <= 1e-10
    assert kept.requires_grad


@pytest.mark.parametrize("how", ["copied", "pickled", "scaled"])
def test_the_mean_of_calls_in_a_model_that_is(how: str) -> None:
    model, views = inserted_twice(), views_of(2)
    model = copy.deepcopy(model) if how == "copied" else pickle.loads(pickle.dumps(model))
    scale = 1024.0 if how == "scaled" else 1.0
    vcreg_fx.set_loss_scale(model, scale)
    (sum(task_loss(model(view)) for view in views) * scale).backward()
    found = [p.grad / scale for p in model.parameters()]
    expected = mean_of_calls(vcreg_fx.remove(model), [views], **STRONG)
    assert relative_error(found, expected) <= 1e-10


@pytest.mark.parametrize("config", [{"regularizer": "decov"}, {"interval": 3}, {"sample": 4}])
def test_the_mean_of_calls_of_other_gradients(config: dict[str, object]) -> None:
    """What a site adds in two calls is half of what it adds where they are summed."""
    found = []
    for calls in ("sum", "mean", "none"):
        how = {"calls": "sum", "alpha": 0.0, "beta": 0.0} if calls == "none" else {"calls": calls}
        model = inserted_twice(**config, **how)
        for step in range(3):
            sum(task_loss(model(view)) for view in views_of(2, step)).backward()
        found.append([p.grad for p in model.parameters()])
    summed, averaged, plain = found
    expected = [(s + p) / 2 for s, p in zip(summed, plain, strict=True)]
    assert relative_error(averaged, expected) <= 1e-10
    assert relative_error(averaged, summed) > 1e-3


def test_measure_counts_the_calls_of_its_pass() -> None:
    x = views_of(1)[0]
    summed, averaged = inserted_twice(2, calls="sum"), inserted_twice(2)
    pairs = zip(*(vcreg_fx.measure(each, x, task_loss) for each in (summed, averaged)), strict=True)
    shares = [other.ratio / one.ratio for one, other in pairs]
    assert shares == pytest.approx([0.5, 0.5, 1.0])


def test_calls_in_a_functional_transform() -> None:
    model, (x, y) = inserted_twice(), views_of(2)

    def loss(parameters: dict[str, Tensor]) -> Tensor:
        call = torch.func.functional_call
        return sum(task_loss(call(model, parameters, (view,))) for view in (x, y))

    found = torch.func.grad(loss)({name: p.detach() for name, p in model.named_parameters()})
    expected = mean_of_calls(vcreg_fx.remove(copy.deepcopy(model)), [[x, y]], **STRONG)
    assert relative_error([*found.values()], expected) <= 1e-10


@pytest.mark.slow
def test_compiled_code_counts_no_calls() -> None:
    """What surrounds the sites is compiled, or all of it is refused."""
    model, views = inserted_twice(), views_of(2)
    with pytest.raises(RuntimeError, match="compiled code does not know how many calls"):
        torch.compile(model, backend="eager", fullgraph=True)(views[0])
    expected = mean_of_calls(vcreg_fx.remove(copy.deepcopy(model)), [views], **STRONG)
    run = torch.compile(model, backend="eager")
    sum(task_loss(run(view)) for view in views).backward()
    assert relative_error([p.grad for p in model.parameters()], expected) <= 1e-10


@pytest.mark.slow
def test_penalties_of_compiled_calls_are_averaged() -> None:
    model, views = inserted_twice(2, mode="loss"), views_of(2)
    expected = mean_of_calls(vcreg_fx.remove(copy.deepcopy(model)), [views], **STRONG)
    run = torch.compile(model, backend="aot_eager", fullgraph=True)
    (sum(task_loss(run(view)) for view in views) + vcreg_fx.penalty(model)).backward()
    assert relative_error([p.grad for p in model.parameters()], expected) <= 1e-10


def test_calls_that_cannot_be_counted_are_refused() -> None:
    x = views_of(1)[0].requires_grad_()
    with pytest.raises(RuntimeError, match="block.2:output has calls=.*use_reentrant=False"):
        task_loss(inserted_twice(2, reentrant=True)(x)).backward()
    with pytest.raises(ValueError, match="ratio measures .* use one of them"):
        vcreg_fx.VCRegConfig(calls="mean", ratio=0.1)
    with pytest.raises(ValueError, match="calls='max' must be one of"):
        vcreg_fx.VCRegConfig(calls="max")


@pytest.mark.parametrize("scale", [0, 0.0, -1.0, math.inf, math.nan])
def test_a_scale_that_is_none_is_refused(scale):
    model = vcreg_fx.insert(nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 3)), "head",
                            example_inputs=(torch.zeros(2, 4),))  # fmt: skip
    with pytest.raises(ValueError, match="must be positive and finite"):
        vcreg_fx.set_loss_scale(model, scale)
