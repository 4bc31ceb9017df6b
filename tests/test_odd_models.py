"""Models that are unusual on purpose: placed and exact, or refused with the reason."""

from __future__ import annotations

import copy
import functools
import gc
import weakref
from dataclasses import dataclass
from typing import NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import vcreg_fx
from tests.models import naive_step, relative_error, step
from vcreg_fx import rules


class Block(nn.Module):
    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.linear = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.linear(x)


class Net(nn.Module):
    """Blocks in a row, with a head."""

    def __init__(self, *blocks: nn.Module) -> None:
        super().__init__()
        self.stem = nn.Linear(8, 8)
        self.blocks = nn.ModuleList(blocks)
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for block in self.blocks:
            x = block(x)
        return self.head(x)


X = torch.randn(6, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def is_exact(model: nn.Module, x: Tensor = X, rule: str = "blocks", **config: object) -> list[str]:
    """Insert into a copy, compare with penalties on what hooks saw, return the sites' names."""
    model = model.double()
    planned = vcreg_fx.plan(copy.deepcopy(model), rule, example_inputs=(x,))
    places = [(site.path, site.position, str(site.layout)) for site in planned.sites]
    plain = copy.deepcopy(model)
    expected = [None if g is None else g.clone() for g in naive_step(plain, x, places)]
    inserted = vcreg_fx.insert(copy.deepcopy(model), rule, example_inputs=(x,), **config)
    for training in (True, False):
        outputs = []
        for each in (inserted, model):
            torch.manual_seed(3)
            with torch.no_grad():
                outputs.append(each.train(training)(x))
        assert torch.equal(*outputs)
    _, found = step(inserted.train(), x)
    pairs = [(f, e) for f, e in zip(found, expected, strict=True) if e is not None]
    assert relative_error([f for f, _ in pairs], [e for _, e in pairs]) <= 1e-12
    return [site.name for site in planned.sites]


def test_weights_and_modules_shared_by_two_names() -> None:
    shared = Block()
    model = Net(shared, Block(), shared)
    model.alias = model.blocks[1]
    names = is_exact(model)
    assert names == ["blocks.0:output", "blocks.1:output"]
    planned = vcreg_fx.plan(model, "blocks", example_inputs=(X,))
    assert [site.calls for site in planned.sites] == [2, 1]
    assert "it is the module blocks.0" in planned.explain("blocks.2")
    tied = Net(Block(), Block())
    tied.blocks[1].linear.weight = tied.blocks[0].linear.weight
    is_exact(tied)


def test_a_module_called_with_different_shapes() -> None:
    class Twice(Net):
        def forward(self, x: Tensor) -> Tensor:
            x = self.stem(x)
            x = self.blocks[0](x)
            return self.head(self.blocks[0](x[:3]))

    assert is_exact(Twice(Block())) == ["blocks.0:output"]


def test_branches_on_training_and_on_shapes() -> None:
    class Branching(Block):
        def forward(self, x: Tensor) -> Tensor:
            y = self.linear(x)
            if self.training:
                y = nn.functional.dropout(y, 0.3)
            if x.shape[0] > 4:
                y = y * 2
            return x + y

    is_exact(Net(Branching(), Branching()))


class Pair(NamedTuple):
    first: Tensor
    second: Tensor


@dataclass
class Output:
    hidden: Tensor
    other: object = None


@pytest.mark.parametrize("kind", ["tuple", "list", "dict", "dataclass", "named tuple", "twice"])
def test_structured_outputs(kind: str) -> None:
    class Structured(Block):
        def forward(self, x: Tensor) -> object:
            h = x + self.linear(x)
            made = {
                "tuple": (h, None),
                "list": [None, h],
                "dict": {"h": h, "n": 1},
                "dataclass": Output(h),
                "named tuple": Pair(h, x),
                "twice": (h, h),
            }
            return made[kind]

    class Model(Net):
        def forward(self, x: Tensor) -> Tensor:
            x = self.stem(x)
            for block in self.blocks:
                y = block(x)
                read = {
                    "tuple": lambda y: y[0],
                    "list": lambda y: y[1],
                    "dict": lambda y: y["h"],
                    "dataclass": lambda y: y.hidden,
                    "named tuple": lambda y: y.first,
                    "twice": lambda y: y[1],
                }
                x = read[kind](y)
            return self.head(x)

    model = Model(Structured(), Structured()).double()
    reference, inserted = copy.deepcopy(model), copy.deepcopy(model)
    seen: list[Tensor] = []
    for block in reference.blocks:
        block.register_forward_hook(
            lambda _, args, out: seen.append(next(t for _, t in rules.leaves(out)))
        )
    output = reference(X)
    scale = torch.linspace(-1, 1, output.numel(), dtype=X.dtype).view_as(output)
    ((output * scale).sum() + sum(vcreg_fx.vcreg_loss(h) for h in seen)).backward()
    vcreg_fx.insert(inserted, "blocks", example_inputs=(X,))
    _, found = step(inserted, X)
    assert relative_error(found, [p.grad for p in reference.parameters()]) <= 1e-12
    assert type(inserted.blocks[0](X)) is type(model.blocks[0](X))


def test_any_arguments_and_decorated_forwards() -> None:
    def noted(function: object) -> object:
        @functools.wraps(function)
        def wrapper(*args: object, **kwargs: object) -> object:
            return function(*args, **kwargs)

        return wrapper

    class Loose(Block):
        def forward(self, *args: Tensor, **kwargs: object) -> Tensor:
            return args[0] + self.linear(args[0])

    class Decorated(Block):
        @noted
        def forward(self, x: Tensor, scale: float = 2.0) -> Tensor:
            return x + scale * self.linear(x)

    is_exact(Net(Loose(), Loose()))
    is_exact(Net(Decorated(), Decorated()))


def test_in_place_adds_before_in_place_activations() -> None:
    class InPlace(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(4, 4, 1)
            self.act = nn.ReLU(inplace=True)

        def forward(self, x: Tensor) -> Tensor:
            y = self.conv(x)
            y += x
            return self.act(y)

    model = nn.Sequential(nn.Conv2d(3, 4, 1), InPlace(), InPlace(), nn.Flatten()).double()
    x = torch.randn(5, 3, 4, 4, dtype=torch.float64)
    planned = vcreg_fx.plan(model, "blocks | residual", example_inputs=(x,))
    assert [site.clone is not None for site in planned.sites] == [True, False, True, False]
    plain, _ = step(copy.deepcopy(model), x)
    output, found = step(planned.apply(), x)
    assert torch.equal(output, plain)
    loss = copy.deepcopy(vcreg_fx.remove(model))
    vcreg_fx.insert(loss, "blocks | residual", example_inputs=(x,), mode="loss", backend="naive")
    _, expected = step(loss, x)
    assert relative_error(found, expected) <= 1e-12


@pytest.mark.parametrize("reentrant", [True, False])
def test_a_residual_around_a_checkpoint(reentrant: bool) -> None:
    class Checkpointed(Block):
        def forward(self, x: Tensor) -> Tensor:
            return x + checkpoint(self.linear, x, use_reentrant=reentrant)

    is_exact(Net(Checkpointed(), Checkpointed()))


@pytest.mark.parametrize("mode", ["gradient", "loss"])
def test_blocks_inside_a_checkpoint(mode: str) -> None:
    class Whole(Net):
        reentrant = False

        def forward(self, x: Tensor) -> Tensor:
            x = self.stem(x)
            x = checkpoint(
                lambda h: self.blocks[1](self.blocks[0](h)), x, use_reentrant=self.reentrant
            )
            return self.head(x)

    is_exact(Whole(Block(), Block()), mode=mode)
    model = Whole(Block(), Block()).double()
    vcreg_fx.insert(model, "blocks", example_inputs=(X,), mode=mode)
    _, expected = step(model, X)
    expected = [g.clone() for g in expected]
    model.reentrant = True
    if mode == "gradient":
        _, found = step(model, X)
        assert relative_error(found, expected) <= 1e-12
    else:
        with pytest.raises(RuntimeError, match="use_reentrant=False"):
            model(X).sum().backward()


def test_nested_sequentials() -> None:
    model = nn.Sequential(
        nn.Linear(8, 8), nn.Sequential(nn.Sequential(Block(), Block()), nn.Sequential(Block()))
    )
    assert is_exact(model) == ["1.0.0:output", "1.0.1:output", "1.1.0:output"]


@pytest.mark.parametrize("fake", [True, False])
def test_a_custom_operator_in_a_block(fake: bool) -> None:
    name = f"vcreg_fx_tests::double_{'with' if fake else 'without'}_fake"

    @torch.library.custom_op(name, mutates_args=())
    def double(x: Tensor) -> Tensor:
        return x * 2

    double.register_autograd(lambda ctx, grad: grad * 2)
    if fake:
        double.register_fake(torch.empty_like)

    class Custom(Block):
        def forward(self, x: Tensor) -> Tensor:
            return x + self.linear(double(x))

    is_exact(Net(Custom(), Custom()))


def test_reading_a_value_is_recorded_for_real() -> None:
    class Reading(Block):
        def forward(self, x: Tensor) -> Tensor:
            scale = 2.0 if x.abs().max().item() > 0 else 1.0
            return x + scale * self.linear(x)

    is_exact(Net(Reading(), Reading()))
    with torch.device("meta"):
        model = Net(Reading(), Reading())
    with pytest.raises(vcreg_fx.ExampleInputsError, match="did not run on any input"):
        vcreg_fx.plan(model)


@pytest.mark.parametrize("dtype", [torch.complex64, torch.long])
def test_tensors_without_a_variance(dtype: torch.dtype) -> None:
    class Other(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.to(dtype)

    model = nn.Sequential(nn.Linear(8, 8), Other())
    with pytest.raises(vcreg_fx.NoSiteError, match="returns no activation"):
        vcreg_fx.plan(model, "modules('1')", example_inputs=(X.float(),))


def test_a_model_on_the_meta_device() -> None:
    with torch.device("meta"):
        model = Net(Block(), Block())
    vcreg_fx.insert(model, "blocks | head")
    model.to_empty(device="cpu").double()
    for parameter in model.parameters():
        nn.init.normal_(parameter)
    _, found = step(model, X)
    expected = naive_step(
        vcreg_fx.remove(copy.deepcopy(model)),
        X,
        [("blocks.0", "output", "NC"), ("blocks.1", "output", "NC")],
    )
    assert len(found) == len(expected)


def test_names_of_the_users_stay_theirs() -> None:
    class Named(Block):
        def __init__(self) -> None:
            super().__init__()
            self.code = nn.Linear(8, 8)
            self.graph = nn.Parameter(torch.ones(8))

        def original_forward(self, x: Tensor) -> Tensor:
            return self.code(x) * self.graph

        def forward(self, x: Tensor) -> Tensor:
            return x + self.original_forward(x)

    is_exact(Net(Named(), Named()))


def test_a_users_hooks_stay_and_see_no_fake_tensor() -> None:
    model, seen = Net(Block(), Block()), []
    model.blocks[0].register_forward_hook(lambda _, args, output: seen.append(output))
    vcreg_fx.insert(model, "blocks", example_inputs=(X.float(),))
    assert seen == []
    model(X.float())
    assert len(seen) == 1 and type(seen[0]) is Tensor


def test_a_shape_that_contradicts_the_plan_is_an_error() -> None:
    model = vcreg_fx.insert(Net(Block(), Block()), "blocks")
    with pytest.raises(vcreg_fx.LayoutError, match="planned as NC.*example_inputs="):
        model(torch.randn(2, 5, 8))


def test_contradicting_evidence_is_no_guess() -> None:
    class Gated(Block):
        def __init__(self) -> None:
            super().__init__()
            self.gate = nn.Parameter(torch.ones(1, 5, 1))

        def forward(self, x: Tensor) -> Tensor:
            return x + self.linear(x) * self.gate

    with pytest.raises(vcreg_fx.LayoutError, match="more than one axis"):
        vcreg_fx.plan(Net(Gated(), Gated()), example_inputs=(torch.randn(2, 5, 8),))


def test_a_later_change_of_class_has_to_be_undone_first() -> None:
    model = vcreg_fx.insert(Net(Block(), Block()), "head", example_inputs=(X.float(),))
    nn.utils.parametrizations.weight_norm(model.head)
    model(X.float()).sum().backward()
    with pytest.raises(vcreg_fx.InsertionError, match="remove_parametrizations"):
        vcreg_fx.remove(model)
    nn.utils.parametrize.remove_parametrizations(model.head, "weight")
    assert len(vcreg_fx.sites(model)) == 1
    vcreg_fx.remove(model)
    assert type(model.head) is nn.Linear


def test_an_instance_made_by_the_rewritten_class_works() -> None:
    model = vcreg_fx.insert(Net(Block(), Block()), "blocks", example_inputs=(X.float(),))
    other = type(model.blocks[0])(8)
    assert other(X.float()).shape == X.shape


def test_insertion_under_no_grad_and_inference_mode() -> None:
    for context in (torch.no_grad(), torch.inference_mode()):
        model = Net(Block(), Block()).double()
        with context:
            vcreg_fx.insert(model, "blocks", example_inputs=(X.clone(),))
        _, found = step(model, X)
        assert all(f is not None for f in found)


def test_nothing_is_left_behind() -> None:
    import random

    from torch.overrides import _get_current_function_mode_stack

    state, python_state = torch.get_rng_state(), random.getstate()
    fast = torch.backends.mha.get_fastpath_enabled()
    lookup = nn.Module.__getattribute__
    references = []
    for _ in range(10):
        model = Net(Block(), Block())
        torch.set_rng_state(state)
        vcreg_fx.insert(model, "residual | head", example_inputs=(X.float(),))
        vcreg_fx.remove(model)
        assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
        references.append(weakref.ref(model))
        del model
    gc.collect()
    assert [reference() for reference in references] == [None] * 10
    assert torch.equal(torch.get_rng_state(), state) and random.getstate() == python_state
    assert torch.backends.mha.get_fastpath_enabled() == fast
    assert nn.Module.__getattribute__ is lookup
    assert _get_current_function_mode_stack() == []


class Picky(nn.Module):
    """A model that runs only on what nobody can guess."""

    def __init__(self, *, pair: bool = False) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(6, 6), nn.ReLU())
        self.pair = TwoOutputs() if pair else nn.Identity()
        self.head = nn.Linear(6, 2)

    def forward(self, x: torch.Tensor, key: str) -> torch.Tensor:
        if key != "sesame":
            raise KeyError(key)
        h = self.pair(self.body(x))
        h = h[0] if isinstance(h, tuple) else h
        return self.head(h.mul_(2))


class TwoOutputs(nn.Module):
    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return x * 1, x


def test_named_modules_with_a_layout_need_no_recording() -> None:
    model, x = Picky().double(), torch.randn(8, 5, 6, dtype=torch.float64)
    with pytest.raises(vcreg_fx.PlacementError):
        vcreg_fx.plan(model, "modules('body')")
    with pytest.raises(vcreg_fx.PlacementError):
        vcreg_fx.plan(model, "blocks", layout="NLC")
    planned = vcreg_fx.plan(model, "modules('body')", layout="NLC")
    assert [site.name for site in planned.sites] == ["body.1:output"]
    assert "not recorded" in str(planned)
    with pytest.raises(vcreg_fx.InsertionError, match="example_inputs"):
        planned.apply(demean="activations")
    planned.apply()
    model(x, "sesame").square().mean().backward()
    found = [p.grad.clone() for p in model.parameters()]
    vcreg_fx.remove(model)
    model.zero_grad()
    h = model.body(x)
    loss = model.head(h * 2).square().mean() + vcreg_fx.vcreg_loss(h, layout="NLC")
    loss.backward()
    for one, other in zip(found, model.parameters(), strict=True):
        torch.testing.assert_close(one, other.grad)


def test_an_unrecorded_module_that_returns_a_tuple_is_reported() -> None:
    model = vcreg_fx.insert(Picky(pair=True), "modules('pair')", layout="NLC")
    with pytest.raises(vcreg_fx.LayoutError, match="is a tuple now"):
        model(torch.randn(2, 5, 6), "sesame")


def test_a_site_that_leads_nowhere_is_pointed_out() -> None:
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(4, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x + self.linear(x)

    class Unused(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = Block(), Block()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            h = self.first(x)
            self.second(h)
            return h

    planned = vcreg_fx.plan(Unused(), example_inputs=(torch.zeros(8, 4),))
    assert [site.leads_on for site in planned.sites] == [True, False]
    assert "second:output: the model's output does not depend on it" in str(planned)
