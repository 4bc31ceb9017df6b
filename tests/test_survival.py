"""What a training program does to a model: afterwards VCReg is as exact as before.

Each function is a row of the table in docs/survival.md, its docstring the row's text; it runs for
each model of `tests.survival`.
"""

from __future__ import annotations

import copy
import io
import pickle
import re
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import timm.utils
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.utils import parametrizations, parametrize
from torch.utils.checkpoint import checkpoint

import vcreg_fx
from tests.survival import (
    CASES,
    CONFIG,
    Case,
    Grads,
    call,
    close,
    copy_of,
    halves,
    penalties,
    run,
    same,
    task,
)

ROOT = Path(__file__).resolve().parent.parent
ROWS: dict[str, list[Callable[[Case], None]]] = {}


def row(
    section: str, *, slow: tuple[str, ...] = ()
) -> Callable[[Callable[[Case], None]], Callable[[Case], None]]:
    """Make a test a row; its cells that take long are left to ``pytest -m slow``."""
    cells = [
        pytest.param(case, id=case.name, marks=pytest.mark.slow if case.name in slow else ())
        for case in CASES
    ]

    def note(function: Callable[[Case], None]) -> Callable[[Case], None]:
        ROWS.setdefault(section, []).append(function)
        return pytest.mark.parametrize("case", cells)(function)

    return note


# Copies and checkpoints -----------------------------------------------------------------------


@row("Copies and checkpoints")
def test_deepcopy(case: Case) -> None:
    """`copy.deepcopy`"""
    model = case.inserted()
    same(run(copy.deepcopy(model), case.x()), case.expected)
    same(run(model, case.x()), case.expected)


@row("Copies and checkpoints")
def test_pickle(case: Case) -> None:
    """`pickle`; `torch.save(model)` and `torch.load`"""
    model, buffer = case.inserted(), io.BytesIO()
    same(run(pickle.loads(pickle.dumps(model)), case.x()), case.expected)
    torch.save(model, buffer)
    buffer.seek(0)
    same(run(torch.load(buffer, weights_only=False), case.x()), case.expected)


LOAD = """
import sys, torch
from tests.survival import run
torch.set_num_threads(1)
models = torch.load(sys.argv[1], weights_only=False)
torch.save({name: run(model, x) for name, (model, x) in models.items()}, sys.argv[2])
"""


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Tensor, Grads]]:
    """One step of every model, in a fresh process that loaded them."""
    models, results = (tmp_path_factory.mktemp("fresh") / name for name in ("models", "results"))
    torch.save({case.name: (case.inserted(), case.x()) for case in CASES}, models)
    command = [sys.executable, "-c", LOAD, str(models), str(results)]
    subprocess.run(command, cwd=ROOT, check=True, timeout=300)
    return torch.load(results)


@row("Copies and checkpoints")
def test_fresh_process(case: Case, loaded: dict[str, tuple[Tensor, Grads]]) -> None:
    """`torch.save(model)`, loaded in a fresh process"""
    same(loaded[case.name], case.expected, 1e-10)


def _run_all(models: dict[str, tuple[nn.Module, Tensor]], path: str) -> None:
    torch.set_num_threads(1)
    torch.save({name: run(model, x) for name, (model, x) in models.items()}, path)


@pytest.fixture(scope="module")
def spawned(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Tensor, Grads]]:
    """One step of every model, in a process that was started with them."""
    path = str(tmp_path_factory.mktemp("spawned") / "results")
    models = {case.name: (case.inserted(), case.x()) for case in CASES}
    context = torch.multiprocessing.get_context("spawn")
    process = context.Process(target=_run_all, args=(models, path))
    process.start()
    process.join(timeout=300)
    assert process.exitcode == 0
    return torch.load(path)


@row("Copies and checkpoints", slow=tuple(case.name for case in CASES))
def test_spawn(case: Case, spawned: dict[str, tuple[Tensor, Grads]]) -> None:
    """passed to a process by `torch.multiprocessing`, start method spawn"""
    same(spawned[case.name], case.expected, 1e-10)


@row("Copies and checkpoints")
def test_state_dict(case: Case) -> None:
    """strict `load_state_dict`, from and into the model without VCReg"""
    model, plain = case.inserted(), case.plain()
    torch.manual_seed(5)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.05)
    plain.load_state_dict(model.state_dict(), strict=True)
    expected = case.naive(plain)
    same(run(model, case.x()), expected)
    other = case.inserted()
    other.load_state_dict(case.plain().state_dict(), strict=True)
    same(run(other, case.x()), case.expected)


@row("Copies and checkpoints")
def test_optimizer_state(case: Case) -> None:
    """the optimizer's state, by position, with and without VCReg"""
    model, plain = case.inserted(), case.plain()
    optimizers = [
        torch.optim.SGD(each.parameters(), lr=1e-3, momentum=0.9) for each in (model, plain)
    ]
    run(model, case.x())
    case.naive(plain)
    for optimizer in optimizers:
        optimizer.step()
    optimizers[1].load_state_dict(copy.deepcopy(optimizers[0].state_dict()))
    plain.load_state_dict(model.state_dict())
    run(model, case.x(), seed=2)
    case.naive(plain, seed=2)
    for optimizer in optimizers:
        optimizer.step()
    for one, other in zip(model.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12)


@row("Copies and checkpoints")
def test_resume(case: Case) -> None:
    """resuming: `insert(model, **get_config(model))`, coefficients and all"""
    model = case.inserted()
    for number, site in enumerate(vcreg_fx.sites(model)):
        site.alpha = 0.1 * (number + 1)
    again = case.plain()
    config = pickle.loads(pickle.dumps(vcreg_fx.get_config(model)))
    vcreg_fx.insert(again, **config, example_inputs=(case.x(),))
    for one, other in zip(run(model, case.x())[1], run(again, case.x())[1], strict=True):
        assert (one is None and other is None) or torch.equal(one, other)


@row("Copies and checkpoints")
def test_ema(case: Case) -> None:
    """moving averages: timm's `ModelEmaV3`, torch's `AveragedModel`, and by position"""
    model, plain = case.inserted(), case.plain()
    averages = [timm.utils.ModelEmaV3(each, decay=0.5) for each in (model, plain)]
    swa = [torch.optim.swa_utils.AveragedModel(each) for each in (model, plain)]
    by_position = [copy.deepcopy(each.state_dict()) for each in (model, plain)]
    torch.manual_seed(3)
    changes = [0.01 * torch.randn_like(p) for p in plain.parameters()]
    for index, each in enumerate((model, plain)):
        with torch.no_grad():
            for parameter, change in zip(each.parameters(), changes, strict=True):
                parameter.add_(change)
        averages[index].update(each)
        swa[index].update_parameters(each)
        for old, new in zip(by_position[index].values(), each.state_dict().values(), strict=True):
            old.copy_((old + new) / 2)
    for pair in ([a.module for a in averages], [a.module for a in swa]):
        outputs = [call(each.eval(), case.x()) for each in pair]
        assert torch.equal(*outputs)
    assert all(map(torch.equal, by_position[0].values(), by_position[1].values()))


# Dtypes, devices, layouts of memory -----------------------------------------------------------


@row("Dtypes, memory, surgery by others")
def test_dtype(case: Case) -> None:
    """`.float()`, `.double()`, `.to(dtype)`"""
    model = case.inserted(torch.float32).double()
    plain = case.plain(torch.float32).double()
    same(run(model, case.x()), case.naive(plain))
    x = case.x(torch.float32)
    same(run(model.to(torch.float32), x), case.naive(plain.to(torch.float32), x), 2e-5)


@row("Dtypes, memory, surgery by others")
def test_bfloat16(case: Case) -> None:
    """`.bfloat16()`"""
    model, plain = case.inserted().bfloat16(), case.plain().bfloat16()
    x = case.x(torch.bfloat16)
    same(run(model, x), case.naive(plain, x), 3e-2)


@row("Dtypes, memory, surgery by others")
def test_half(case: Case) -> None:
    """`.half()`, once `set_loss_scale` was called; before, an error that says so"""
    model, plain, x = case.inserted().half(), case.plain().half(), case.x(torch.float16)
    with pytest.raises(RuntimeError, match="vcreg_fx.set_loss_scale"):
        run(model, x)
    vcreg_fx.set_loss_scale(model, 1.0)
    for each in (model, plain):
        each.load_state_dict(case.plain().half().state_dict())
    same(run(model, x), case.naive(plain, x), 1e-2)


@row("Dtypes, memory, surgery by others")
def test_channels_last(case: Case) -> None:
    """`.to(memory_format=torch.channels_last)`"""
    if len(case.shape) == 5:
        pytest.skip("videos have no such format")
    model, x = case.inserted(), case.x()
    model, x = (each.to(memory_format=torch.channels_last) for each in (model, x))
    plain = case.plain().to(memory_format=torch.channels_last)
    same(run(model, x), case.naive(plain, x))


@row("Dtypes, memory, surgery by others")
def test_meta_to_empty(case: Case) -> None:
    """built on the meta device, `to_empty`, then loaded"""
    with torch.device("meta"):
        model = case.make().double()
    vcreg_fx.insert(model, case.rule, example_inputs=(case.x().to("meta"),), **CONFIG)
    model = model.to_empty(device="cpu").train()
    source = case.plain()
    model.load_state_dict(source.state_dict())
    for name, buffer in source.named_buffers():  # those that are not in the state dict
        model.get_buffer(name).copy_(buffer)
    same(run(model, case.x()), case.expected)


@row("Dtypes, memory, surgery by others")
def test_sync_batchnorm(case: Case) -> None:
    """`convert_sync_batchnorm`, before and after `insert`: every site is kept"""
    wanted = [site.name for site in vcreg_fx.sites(case.inserted())]
    convert = nn.SyncBatchNorm.convert_sync_batchnorm
    after = convert(case.inserted())
    before = vcreg_fx.insert(convert(case.plain()), case.rule, example_inputs=(case.x(),))
    reference = call(case.plain().eval(), case.x())
    for model in (after, before):
        assert [site.name for site in vcreg_fx.sites(model)] == wanted
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert torch.equal(call(model.eval(), case.x()), reference)


def _head_of(model: nn.Module) -> str:
    return [name for name, m in model.named_modules() if isinstance(m, nn.Linear)][-1]


def _replace_head(model: nn.Module) -> None:
    path = _head_of(model)
    old = model.get_submodule(path)
    torch.manual_seed(9)
    model.set_submodule(path, nn.Linear(old.in_features, 5).to(old.weight.dtype))


@row("Dtypes, memory, surgery by others")
def test_replaced_head(case: Case) -> None:
    """a head replaced before `insert`: kept; after: reported by name at the next training step"""
    plain, model = case.plain(), case.plain()
    for each in (plain, model):
        _replace_head(each)
    vcreg_fx.insert(model, case.rule, example_inputs=(case.x(),), **CONFIG)
    same(run(model, case.x()), case.naive(plain))
    model = case.inserted()
    _replace_head(model)
    with pytest.warns(UserWarning, match=rf"no longer acts at {re.escape(_head_of(model))}:input"):
        run(model, case.x())


@row("Dtypes, memory, surgery by others")
def test_hooks(case: Case) -> None:
    """forward hooks that were there before, or come later"""
    model, calls = case.plain(), []
    path = case.owner
    module = model.get_submodule(path)
    module.register_forward_hook(lambda *_: calls.append("before"))
    module.register_forward_pre_hook(lambda *_: calls.append("pre"))
    module.register_full_backward_hook(lambda *_: calls.append("backward"))
    vcreg_fx.insert(model, case.rule, example_inputs=(case.x(),), **CONFIG)
    module.register_forward_hook(lambda *_: calls.append("after"))
    same(run(model, case.x()), case.expected)
    assert calls == ["pre", "before", "after", "backward"]


@row("Dtypes, memory, surgery by others")
def test_parametrizations(case: Case) -> None:
    """parametrizations (`weight_norm`, your own), before or after; `remove` names them"""
    path = _head_of(case.plain())
    plain = case.plain()
    parametrizations.weight_norm(plain.get_submodule(path))
    expected = case.naive(plain)
    model = case.plain()
    parametrizations.weight_norm(model.get_submodule(path))
    vcreg_fx.insert(model, case.rule, example_inputs=(case.x(),), **CONFIG)
    same(run(model, case.x()), expected)
    vcreg_fx.remove(model)
    assert not vcreg_fx.sites(model)

    model = case.inserted()
    parametrizations.weight_norm(model.get_submodule(path))
    same(run(model, case.x()), expected)
    with pytest.raises(vcreg_fx.InsertionError, match="remove_parametrizations"):
        vcreg_fx.remove(model)
    parametrize.remove_parametrizations(model.get_submodule(path), "weight")
    vcreg_fx.remove(model)
    assert not vcreg_fx.sites(model)


@row("Dtypes, memory, surgery by others")
def test_lora(case: Case) -> None:
    """peft's LoRA, before or after, and `remove` under it"""
    peft = pytest.importorskip("peft")
    path = _head_of(case.plain())
    config = peft.LoraConfig(target_modules=[path], r=2, init_lora_weights=False)

    def with_lora(model: nn.Module) -> nn.Module:
        torch.manual_seed(4)
        adapted = peft.inject_adapter_in_model(config, model)
        for parameter in adapted.parameters():
            parameter.requires_grad_(True)
        return adapted.double().train()

    blocks = Case(case.name, case.make, case.shape, rule="blocks")
    expected = blocks.naive(with_lora(blocks.plain()))
    before = with_lora(blocks.plain())
    vcreg_fx.insert(before, "blocks", example_inputs=(case.x(),), **CONFIG)
    same(run(before, case.x()), expected)
    after = with_lora(blocks.inserted())
    same(run(after, case.x()), expected)
    vcreg_fx.remove(after)
    assert not vcreg_fx.sites(after)


# Compilation -----------------------------------------------------------------------------------


def _compiled(case: Case, backend: str, *, dynamic: bool | None = None) -> None:
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    model = case.inserted()
    compiled = torch.compile(model, backend=backend, fullgraph=True, dynamic=dynamic)
    sizes = (4, 4, 6, 3) if dynamic else (4, 4)
    for samples in sizes:
        x = case.x(samples=samples)
        plain = case.plain()
        plain.load_state_dict(model.state_dict())
        torch.manual_seed(1)
        for module in [*model.modules(), *plain.modules()]:
            if isinstance(module, nn.Dropout) or "Drop" in type(module).__name__:
                module.eval()  # other random numbers than in eager mode
        close(run(compiled, x, owner=model), case.naive(plain, x), 1e-9)
    counters = torch._dynamo.utils.counters
    assert not counters["graph_break"]
    if (graphs := counters["stats"]["unique_graphs"]) > 1:  # is it the model's own doing?
        counters.clear()
        compiled = torch.compile(case.plain(), backend=backend, fullgraph=True, dynamic=dynamic)
        for samples in sizes:
            call(compiled, case.x(samples=samples)).sum().backward()
        assert graphs == counters["stats"]["unique_graphs"], "VCReg made it compile again"


@row("Compilation", slow=("ResNet-18", "ConvNeXt", "Swin", "VideoMAE"))
def test_compile_eager(case: Case) -> None:
    """`torch.compile`, backends eager and aot_eager, `fullgraph=True`: one graph, compiled once"""
    _compiled(case, "eager")
    _compiled(case, "aot_eager")


@row("Compilation", slow=tuple(case.name for case in CASES))
def test_compile_dynamic(case: Case) -> None:
    """`torch.compile(dynamic=True)`: one graph for every batch size"""
    _compiled(case, "aot_eager", dynamic=True)


@row("Compilation", slow=tuple(case.name for case in CASES))
def test_compile_inductor(case: Case) -> None:
    """`torch.compile`, backend inductor, `fullgraph=True`"""
    _compiled(case, "inductor")


# Precision and the scale of the loss -----------------------------------------------------------


def _autocast(dtype: torch.dtype) -> Callable[[nn.Module, Tensor], Tensor]:
    def forward(model: nn.Module, x: Tensor) -> Tensor:
        with torch.autocast("cpu", dtype=dtype):
            return call(model, x).float()

    return forward


@row("Precision, and the scale of the loss")
def test_autocast_bfloat16(case: Case) -> None:
    """autocast in bfloat16"""
    model, plain, x = case.inserted(torch.float32), case.plain(torch.float32), case.x(torch.float32)
    forward = _autocast(torch.bfloat16)
    same(run(model, x, forward=forward), case.naive(plain, x, forward=forward), 3e-2)


@row("Precision, and the scale of the loss")
def test_autocast_float16_with_a_scaler(case: Case) -> None:
    """autocast in float16 with a `GradScaler` of 65536, whose scale then changes"""
    weak = {"alpha": 2e-3, "beta": 3e-3, "delta": 0.5}  # so that float16 holds the scaled gradient
    model, plain = case.inserted(torch.float32, **weak), case.plain(torch.float32)
    forward, x = _autocast(torch.float16), case.x(torch.float32)
    with pytest.raises(RuntimeError, match="vcreg_fx.set_loss_scale"):
        run(model, x, forward=forward)
    scaler = torch.amp.GradScaler("cpu", init_scale=65536.0, growth_interval=1)
    vcreg_fx.set_loss_scale(model, scaler)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    for scale in (65536.0, 131072.0):
        for each in (model, plain):
            each.load_state_dict(case.plain(torch.float32).state_dict())
        optimizer.zero_grad()
        torch.manual_seed(1)
        output = forward(model, x)
        scaler.scale(1e-3 * task(output)).backward()
        assert scaler.get_scale() == scale
        scaler.unscale_(optimizer)
        found = [p.grad for p in model.parameters()]
        assert all(g is None or g.isfinite().all() for g in found), "float16 overflowed"
        plain.zero_grad()
        torch.manual_seed(1)
        with penalties(case, plain, weak) as terms:
            wanted = forward(plain, x)
        (1e-3 * task(wanted) + sum(terms)).backward()
        expected = [p.grad for p in plain.parameters()]
        close((output.detach(), found), (wanted.detach(), expected), 5e-2)
        scaler.step(optimizer)
        scaler.update()


@row("Precision, and the scale of the loss")
def test_scaled_loss(case: Case) -> None:
    """a `GradScaler` of 65536 in full precision, through `set_loss_scale`"""
    model = case.inserted()
    scaler = torch.amp.GradScaler("cpu", init_scale=65536.0)
    vcreg_fx.set_loss_scale(model, scaler)
    torch.manual_seed(1)
    output = call(model, case.x())
    scaler.scale(task(output)).backward()
    scaler.unscale_(torch.optim.SGD(model.parameters(), lr=0.0))
    same((output.detach(), [p.grad for p in model.parameters()]), case.expected)


@row("Precision, and the scale of the loss")
def test_accumulation(case: Case) -> None:
    """gradient accumulation, through `set_loss_scale(model, accumulation_steps=k)`"""
    first, second = halves(case.x())
    model, plain = case.inserted(), case.plain()
    vcreg_fx.set_loss_scale(model, accumulation_steps=2)
    for each in (model, plain):
        each.zero_grad()
        torch.manual_seed(1)
        for x in (first, second):
            with penalties(case, plain) as terms:
                loss = task(call(each, x))
            ((loss + sum(terms)) / 2).backward()
    found, expected = ([p.grad for p in each.parameters()] for each in (model, plain))
    close((found[0], found), (expected[0], expected))


@row("Precision, and the scale of the loss")
def test_loss_mode(case: Case) -> None:
    """`mode="loss"`: the same gradients, and no `set_loss_scale`"""
    model = case.inserted(mode="loss")
    same(run(model, case.x()), case.expected)
    model.zero_grad()
    model.load_state_dict(case.plain().state_dict())
    torch.manual_seed(1)
    loss = task(call(model, case.x())) + vcreg_fx.penalty(model)
    (loss * 1024).backward()
    grads = [None if p.grad is None else p.grad / 1024 for p in model.parameters()]
    close((case.expected[0], grads), case.expected)


@row("Precision, and the scale of the loss")
def test_two_forwards(case: Case) -> None:
    """two forward passes before one backward pass (views of self-supervision)"""
    for mode in ("gradient", "loss"):
        model, plain = case.inserted(mode=mode), case.plain()
        losses = []
        for each in (model, plain):
            each.zero_grad()
            torch.manual_seed(1)
            with penalties(case, plain) as terms:
                loss = sum(task(call(each, x)) for x in (case.x(), case.x().flip(0) * 0.5))
            if each is model and mode == "loss":
                loss = loss + vcreg_fx.penalty(model)
            losses.append(loss + sum(terms))
        for loss in losses:
            loss.backward()
        found, expected = ([p.grad for p in each.parameters()] for each in (model, plain))
        close((found[0], found), (expected[0], expected))


@row("Precision, and the scale of the loss")
def test_two_backwards(case: Case) -> None:
    """two backward passes on one graph, as of `loss + penalty`"""
    model = case.inserted()
    torch.manual_seed(1)
    loss = task(call(model, case.x()))
    loss.backward(retain_graph=True)
    loss.backward()
    grads = [None if p.grad is None else p.grad / 2 for p in model.parameters()]
    close((case.expected[0], grads), case.expected)


# Checkpointing ---------------------------------------------------------------------------------


def _checkpointed(*, reentrant: bool) -> Callable[[nn.Module, Tensor], Tensor]:
    def forward(model: nn.Module, x: Tensor) -> Tensor:
        x = x.detach().requires_grad_()
        return checkpoint(call, model, x, use_reentrant=reentrant)

    return forward


@row("Activation checkpointing")
def test_checkpoint(case: Case) -> None:
    """`checkpoint(…, use_reentrant=False)`, in both modes"""
    for mode in ("gradient", "loss"):
        model = case.inserted(mode=mode)
        close(run(model, case.x(), forward=_checkpointed(reentrant=False)), case.expected)


@row("Activation checkpointing")
def test_reentrant_checkpoint(case: Case) -> None:
    """`checkpoint(…, use_reentrant=True)`; with `mode="loss"`, which cannot see it, an error"""
    forward = _checkpointed(reentrant=True)
    close(run(case.inserted(), case.x(), forward=forward), case.expected)
    with pytest.raises(RuntimeError, match="use_reentrant=False"):
        run(case.inserted(mode="loss"), case.x(), forward=forward)


def _set_checkpointing(model: nn.Module) -> None:
    for name in ("set_grad_checkpointing", "gradient_checkpointing_enable"):
        if hasattr(model, name):
            getattr(model, name)()
            return
    pytest.skip("has no such switch")


@row("Activation checkpointing")
def test_own_checkpointing(case: Case) -> None:
    """timm's and transformers' own switches for checkpointing, before or after `insert`"""
    for mode in ("gradient", "loss"):
        model = case.inserted(mode=mode)
        _set_checkpointing(model)
        close(run(model, case.x()), case.expected)
        model = case.plain()
        _set_checkpointing(model)
        vcreg_fx.insert(model, case.rule, example_inputs=(case.x(),), mode=mode, **CONFIG)
        close(run(model, case.x()), case.expected)


# Gradients -------------------------------------------------------------------------------------


@row("Where gradients flow")
def test_without_gradients(case: Case) -> None:
    """`no_grad`, `inference_mode`, eval mode: the original output, and nothing is done"""
    model, plain = case.inserted(), case.plain()
    for context in (torch.no_grad, torch.inference_mode):
        with context():
            torch.manual_seed(1)
            found = call(model, case.x())
            torch.manual_seed(1)
            assert torch.equal(found, call(plain, case.x()))
    model.eval(), plain.eval()
    assert torch.equal(call(model, case.x()), call(plain, case.x()))
    assert vcreg_fx.metrics(model) == {}
    model.train(), plain.train()
    close(run(model, case.x()), case.naive(plain))


@row("Where gradients flow")
def test_frozen(case: Case) -> None:
    """a frozen backbone, and parts with `requires_grad_(False)`"""
    path = case.owner
    for freeze in (path, ""):
        model, plain = case.inserted(), case.plain()
        for each in (model, plain):
            each.get_submodule(freeze).requires_grad_(False)
            each.get_submodule(_head_of(each)).requires_grad_(True)
        same(run(model, case.x()), case.naive(plain))


@row("Where gradients flow")
def test_blocks_in_eval_mode(case: Case) -> None:
    """blocks in eval mode inside a model in training: VCReg rests at their sites"""
    model, plain = case.inserted(), case.plain()
    for each in (model, plain):
        each.get_submodule(case.owner).eval()
    same(run(model, case.x()), case.naive(plain))


@row("Where gradients flow")
def test_functional_call(case: Case) -> None:
    """`torch.func.functional_call` and `torch.func.grad`"""
    model = case.inserted()
    parameters = {k: v.detach().clone() for k, v in model.named_parameters()}
    x = case.x()

    def loss(values: dict[str, Tensor]) -> Tensor:
        buffers = {k: v.clone() for k, v in model.named_buffers()}  # grad allows no other writes
        output = torch.func.functional_call(model, (values, buffers), (x,))
        return task(output if isinstance(output, Tensor) else output.logits)

    torch.manual_seed(1)
    found = torch.func.grad(loss)(parameters)
    wanted = dict(zip(parameters, copy_of(case.expected[1]), strict=True))
    pairs = [(found[k], g) for k, g in wanted.items() if g is not None]
    close((case.expected[0], [f for f, _ in pairs]), (case.expected[0], [g for _, g in pairs]))


@row("Where gradients flow")
def test_second_order(case: Case) -> None:
    """`create_graph=True` with `mode="loss"`; with `mode="gradient"`, an error that says so"""
    with pytest.raises(RuntimeError, match='mode="loss"'):
        task(call(case.inserted(), case.x())).backward(create_graph=True)
    results = []
    for model in (case.inserted(mode="loss"), case.plain()):
        torch.manual_seed(1)
        with penalties(case, model) as terms, sdpa_kernel(SDPBackend.MATH):  # others have no second
            loss = task(call(model, case.x()))
        loss = loss + (vcreg_fx.penalty(model) if vcreg_fx.sites(model) else sum(terms))
        chosen = model.get_submodule(case.owner).parameters()
        chosen = [p for p in chosen if p.requires_grad]
        first = torch.autograd.grad(loss, chosen, create_graph=True)
        sum(g.square().sum() for g in first).backward()
        results.append([p.grad for p in chosen])
    found, expected = results
    close((found[0], found), (expected[0], expected), 1e-9)


@row("Where gradients flow")
def test_remove(case: Case) -> None:
    """`remove` at any point: the original class, forward pass and gradient"""
    model, plain = case.inserted(), case.plain()
    run(model, case.x())
    vcreg_fx.remove(model)
    assert [type(m) for m in model.modules()] == [type(m) for m in plain.modules()]
    model.load_state_dict(plain.state_dict())
    with penalties(case, plain, {**CONFIG, "alpha": 0.0, "beta": 0.0}):
        expected = run(plain, case.x())
    same(run(model, case.x()), expected, 0.0)


# The page --------------------------------------------------------------------------------------


def matrix() -> str:
    """The tables of docs/survival.md."""
    lines = []
    for section, functions in ROWS.items():
        lines += [f"### {section}", "", "| after | " + " | ".join(c.name for c in CASES) + " |"]
        lines += ["| --- |" + " --- |" * len(CASES)]
        for function in functions:
            text = " ".join((function.__doc__ or "").split())
            cells = ["–" if (function.__name__, c.name) in ABSENT else "exact" for c in CASES]
            lines.append(f"| {text} | " + " | ".join(cells) + " |")
        lines.append("")
    return "\n".join(lines).rstrip()


ABSENT = {  # skipped above: the model has no such thing
    ("test_channels_last", "VideoMAE"),
    ("test_own_checkpointing", "ResNet-18"),
    ("test_own_checkpointing", "Swin"),
}


def test_the_page_shows_the_matrix() -> None:
    page = (ROOT / "docs" / "survival.md").read_text(encoding="utf-8")
    assert matrix() in page, "run `python -m tests.test_survival` and put its output on the page"


if __name__ == "__main__":
    print(matrix())
