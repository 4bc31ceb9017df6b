"""Checks that run in two processes, joined by gloo: each rank runs all of them, in order.

`run_ranks` starts the processes and returns, for each check and rank, an error or None; `torchrun`
runs a script.
"""

from __future__ import annotations

import contextlib
import copy
import json
import os
import pickle
import subprocess
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

import vcreg_fx
from placement_rules import modules
from tests.models import relative_error

RANKS = 2
CHECKS: dict[str, Callable[[int], None]] = {}
RULE = "blocks | head"


def check(function: Callable[[int], None]) -> Callable[[int], None]:
    CHECKS[function.__name__] = function
    return function


def run_ranks(folder: Path) -> dict[str, list[str | None]]:
    with contextlib.suppress(mp.ProcessExitedException, mp.ProcessRaisedException):
        mp.spawn(_rank, (str(folder),), nprocs=RANKS)  # what a rank noted tells more
    results = [json.loads((folder / f"{rank}.json").read_text()) for rank in range(RANKS)]
    return {name: [result[name] for result in results] for name in CHECKS}


def torchrun(script: Path) -> str:
    """Run a script in two processes, as a user does, and return what they print."""
    root = Path(__file__).resolve().parent.parent
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node"]
    result = subprocess.run(
        [*command, str(RANKS), script],
        cwd=root, env={**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    return result.stdout


def _rank(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=RANKS,
        timeout=timedelta(seconds=240),
    )  # fmt: skip
    results: dict[str, str | None] = dict.fromkeys(CHECKS, "was not reached")
    for name, function in CHECKS.items():
        torch.manual_seed(0)
        results[name] = "did not end: the ranks lost each other here"
        Path(folder, f"{rank}.json").write_text(json.dumps(results))
        results[name] = None
        try:
            function(rank)
        except Exception:
            results[name] = traceback.format_exc()
        Path(folder, f"{rank}.json").write_text(json.dumps(results))
        dist.barrier()
    dist.destroy_process_group()


def model_and_batch(samples: int = 8) -> tuple[nn.Module, Tensor]:
    model = timm.create_model(
        "vit_tiny_patch16_224", img_size=32, num_classes=5, depth=2, embed_dim=48
    )
    return model.double(), torch.randn(samples, 3, 32, 32, dtype=torch.float64)


def task(output: Tensor) -> Tensor:
    return output.square().mean()


def gradients(model: nn.Module, x: Tensor, *, weight: float = 1.0) -> list[Tensor]:
    inner = model.module if isinstance(model, DistributedDataParallel) else model
    loss = weight * task(model(x))
    if any(site.config.mode == "loss" for site in vcreg_fx.sites(inner)):
        loss = loss + vcreg_fx.penalty(inner)
    loss.backward()
    return [p.grad for p in model.parameters()]


def naive(
    model: nn.Module, x: Tensor, *, rule: str = RULE, weight: float = 1.0, **config: Any
) -> list[Tensor]:
    """Gradients in one process over the whole batch, by autograd of the naive loss."""
    model = copy.deepcopy(model)
    vcreg_fx.insert(model, rule, mode="loss", backend="naive", sync=False, **config)
    return gradients(model, x, weight=weight)


def part(x: Tensor, rank: int) -> Tensor:
    return x.chunk(RANKS)[rank]


def agree(found: list[Tensor], expected: list[Tensor], tolerance: float = 1e-10) -> None:
    error = relative_error(found, expected)
    assert error <= tolerance, f"relative error {error}"


@check
def statistics_are_each_ranks_own_by_default(rank: int) -> None:
    model, x = model_and_batch()
    each = [naive(model, part(x, r)) for r in range(RANKS)]
    expected = [sum(grads) / RANKS for grads in zip(*each, strict=True)]
    agree(gradients(DistributedDataParallel(vcreg_fx.insert(model, RULE)), part(x, rank)), expected)


@check
def sites_in_the_middle_of_forwards(rank: int) -> None:
    """Each rank's own statistics, and the group's."""
    for sync in (False, True):
        model, x = model_and_batch()
        batches = [x] if sync else [part(x, r) for r in range(RANKS)]
        each = [naive(model, batch, rule="residual | head") for batch in batches]
        expected = [sum(grads) / len(batches) for grads in zip(*each, strict=True)]
        vcreg_fx.insert(model, "residual | head", sync=sync)
        assert len(vcreg_fx.sites(model)) == 5
        agree(gradients(DistributedDataParallel(model), part(x, rank)), expected)


def _in_ratio(**config: Any) -> Callable[[int], None]:
    def function(rank: int) -> None:
        model, x = model_and_batch()
        whole = vcreg_fx.insert(copy.deepcopy(model), RULE, ratio=0.5)
        expected = gradients(whole, x)
        vcreg_fx.insert(model, RULE, ratio=0.5, sync=True, **config)
        agree(gradients(DistributedDataParallel(model), part(x, rank)), expected)
        factors = [[site.factor for site in vcreg_fx.sites(m)] for m in (whole, model)]
        assert factors[0] == pytest.approx(factors[1]), factors

    return function


CHECKS["ratio_to_the_groups_gradient"] = _in_ratio()
CHECKS["ratio_to_the_groups_gradient_naive"] = _in_ratio(backend="naive")


def _synced(**config: Any) -> Callable[[int], None]:
    def function(rank: int) -> None:
        model, x = model_and_batch()
        common = {k: v for k, v in config.items() if k in {"demean", "delta", "regularizer"}}
        expected = naive(model, x, **common)
        vcreg_fx.insert(model, RULE, sync=True, **config)
        agree(gradients(DistributedDataParallel(model), part(x, rank)), expected)
        penalties = torch.tensor([site.penalty for site in vcreg_fx.sites(model)])
        others = penalties.clone()
        dist.broadcast(others, 0)
        assert torch.equal(penalties, others), "the ranks saw different statistics"

    return function


for _mode in ("gradient", "loss"):
    for _backend in ("fast", "naive"):
        CHECKS[f"synced_{_mode}_{_backend}"] = _synced(mode=_mode, backend=_backend)
CHECKS["synced_with_demeaned_activations"] = _synced(demean="activations")
CHECKS["synced_without_delta"] = _synced(delta=None)


@check
def synced_under_checkpointing(rank: int) -> None:
    """The forward that runs again must not meet the other rank a second time."""
    model, x = model_and_batch()
    expected = naive(model, x)
    vcreg_fx.insert(model, RULE, sync=True)
    model.set_grad_checkpointing()
    exchanges = []
    original = dist.all_reduce
    dist.all_reduce = lambda *args, **kwargs: exchanges.append(0) or original(*args, **kwargs)
    try:
        agree(gradients(DistributedDataParallel(model), part(x, rank)), expected)
    finally:
        dist.all_reduce = original
    assert len(exchanges) == len(vcreg_fx.sites(model))


class Alone(nn.Module):
    """A block with a residual add, on sequences."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.TransformerEncoderLayer(6, 2, 8, dropout=0.0, batch_first=True)

    def forward(self, src: Tensor, src_key_padding_mask: Tensor) -> Tensor:
        return self.layer(src, src_key_padding_mask=src_key_padding_mask)


def _synced_masks(**config: Any) -> Callable[[int], None]:
    def function(rank: int) -> None:
        model, x = Alone().double(), torch.randn(4, 5, 6, dtype=torch.float64)
        padding = torch.arange(5) >= torch.tensor([5, 3, 1, 1])[:, None]  # 8 samples and 2

        def loss(model: nn.Module, rows: slice) -> Tensor:
            value = model(x[rows], padding[rows])[:, 0].square().mean()
            return value + vcreg_fx.penalty(model) if config.get("mode") == "loss" else value

        def fresh(**config: Any) -> nn.Module:
            made, example = copy.deepcopy(model), (x[:2, :3], padding[:2, :3])
            return vcreg_fx.insert(made, modules("layer"), example_inputs=example, **config)

        whole = fresh(**config)
        loss(whole, slice(0, 4)).backward()
        synced = fresh(sync=True, **config)
        wrapped = DistributedDataParallel(synced)
        loss(wrapped, slice(2 * rank, 2 * rank + 2)).backward()
        agree([p.grad for p in synced.parameters()], [p.grad for p in whole.parameters()])
        assert {site.samples for site in vcreg_fx.sites(synced)} == {10}

    return function


for _mode in ("gradient", "loss"):
    for _backend in ("fast", "naive"):
        CHECKS[f"synced_masks_{_mode}_{_backend}"] = _synced_masks(mode=_mode, backend=_backend)


@check
def synced_intervals_act_in_the_same_steps(rank: int) -> None:
    model, x = model_and_batch()
    plain = gradients(copy.deepcopy(model), x)
    exact = naive(model, x)
    torch.manual_seed(rank)  # as scripts do that want other augmentations on each rank
    vcreg_fx.insert(model, RULE, sync=True, interval=4)
    wrapped = DistributedDataParallel(model)
    for _ in range(4):
        gradients(wrapped, part(x, rank))
    total = [p.grad for p in model.parameters()]
    agree(total, [4 * grad for grad in exact], 1e-8)
    assert relative_error(total, [4 * grad for grad in plain]) > 1e-3


for _mode in ("gradient", "loss"):
    CHECKS[f"synced_competitor_{_mode}"] = _synced(mode=_mode, regularizer="decov")


@check
def synced_algorithm1_equals_one_process(rank: int) -> None:
    model, x = model_and_batch()
    alone = vcreg_fx.insert(copy.deepcopy(model), RULE, convention="algorithm1")
    expected = gradients(alone, x)
    vcreg_fx.insert(model, RULE, convention="algorithm1", sync=True)
    agree(gradients(DistributedDataParallel(model), part(x, rank)), expected)


@check
def a_process_group_can_be_given(rank: int) -> None:
    model, x = model_and_batch()
    expected = naive(model, x)
    group = dist.new_group([0, 1])
    vcreg_fx.insert(model, RULE, sync=group)
    copied = copy.deepcopy(model)
    agree(gradients(DistributedDataParallel(copied), part(x, rank)), expected)
    config = vcreg_fx.get_config(model)
    assert config["sync"] == "process group of ranks 0, 1"
    with pytest.raises(ValueError, match='"sync": group'):
        vcreg_fx.insert(model_and_batch()[0], **config)
    loaded = pickle.loads(pickle.dumps(model))
    with pytest.raises(ValueError, match=r"process group of ranks 0, 1[\s\S]*vcreg_fx.remove"):
        loaded(x)
    loaded.eval()(x)
    vcreg_fx.insert(vcreg_fx.remove(loaded).train(), **{**config, "sync": group})
    agree(gradients(DistributedDataParallel(loaded), part(x, rank)), expected)


@check
def unequal_batches(rank: int) -> None:
    for sizes in ((3, 1), (1, 4), (6, 2)):
        model, x = model_and_batch(sum(sizes))
        expected = naive(model, x, weight=0.0)
        mine = x.split(sizes)[rank]
        for mode in ("gradient", "loss"):
            each = vcreg_fx.insert(copy.deepcopy(model), RULE, sync=True, mode=mode)
            with warnings.catch_warnings():
                warnings.filterwarnings("error", ".*got one sample")
                agree(gradients(DistributedDataParallel(each), mine, weight=0.0), expected)


@check
def one_sample_a_rank(rank: int) -> None:
    """Without sync such a rank has no variance; with it, two samples do."""
    layers = nn.Sequential(nn.Linear(4, 6), nn.Linear(6, 3)).double()
    x = torch.randn(2, 4, dtype=torch.float64)
    alone = vcreg_fx.insert(copy.deepcopy(layers), "head", example_inputs=(x,))
    expected = gradients(alone, x)
    vcreg_fx.insert(layers, "head", sync=True, example_inputs=(x,))
    agree(gradients(DistributedDataParallel(layers), part(x, rank)), expected)


class Sometimes(nn.Module):
    """A model one of whose parts is not used."""

    def __init__(self) -> None:
        super().__init__()
        self.used, self.unused = (model_and_batch()[0] for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        return self.used(x)


@check
def unused_parameters(rank: int) -> None:
    model, x = Sometimes(), model_and_batch()[1]
    expected = [g for g in naive(model, x) if g is not None]
    vcreg_fx.insert(model, RULE, sync=True)
    found = gradients(DistributedDataParallel(model, find_unused_parameters=True), part(x, rank))
    agree([g for g in found if g is not None], expected)


@check
def static_graph(rank: int) -> None:
    model, x = model_and_batch()
    expected = naive(model, x)
    wrapped = DistributedDataParallel(vcreg_fx.insert(model, RULE, sync=True), static_graph=True)
    for _ in range(3):
        wrapped.zero_grad()
        found = gradients(wrapped, part(x, rank))
    agree(found, expected)


@check
def accumulation_with_no_sync(rank: int) -> None:
    model, x = model_and_batch()
    first, second = x[:4], x[4:]
    pair = [naive(model, half) for half in (first, second)]
    expected = [(a + b) / 2 for a, b in zip(*pair, strict=True)]
    vcreg_fx.insert(model, RULE, sync=True)
    vcreg_fx.set_loss_scale(model, 1.0, accumulation_steps=2)
    wrapped = DistributedDataParallel(model)
    with wrapped.no_sync():
        gradients(wrapped, part(first, rank), weight=0.5)
    agree(gradients(wrapped, part(second, rank), weight=0.5), expected)


@check
def compiled(rank: int) -> None:
    """A step with sites in the middle of forwards and at the head."""
    model, x = model_and_batch()
    expected = naive(model, x, rule="residual | head")
    wrapped = DistributedDataParallel(vcreg_fx.insert(model, "residual | head", sync=True))
    agree(gradients(torch.compile(wrapped, backend="aot_eager"), part(x, rank)), expected)


def _shards(model: nn.Module) -> Iterator[nn.Module]:
    yield from model.blocks
    yield model


@check
def fully_sharded(rank: int) -> None:
    for sync in (False, True):
        model, x = model_and_batch()
        if sync:
            expected = naive(model, x)
        else:
            each = [naive(model, part(x, r)) for r in range(RANKS)]
            expected = [sum(grads) / RANKS for grads in zip(*each, strict=True)]
        vcreg_fx.insert(model, RULE, sync=sync)
        for module in _shards(model):
            fully_shard(module, mesh=dist.device_mesh.init_device_mesh("cpu", (RANKS,)))
        found = [grad.full_tensor() for grad in gradients(model, part(x, rank))]
        agree(found, expected)
        assert len(vcreg_fx.sites(model)) == 3


@check
def inserting_after_sharding_is_refused(rank: int) -> None:
    model, _ = model_and_batch()
    for module in _shards(model):
        fully_shard(module, mesh=dist.device_mesh.init_device_mesh("cpu", (RANKS,)))
    with pytest.raises(vcreg_fx.InsertionError, match="Insert first, then shard"):
        vcreg_fx.insert(model, RULE)
    assert not vcreg_fx.sites(model)


@check
def inserting_after_wrapping_is_refused(rank: int) -> None:
    model, _ = model_and_batch()
    with pytest.raises(vcreg_fx.InsertionError, match="then wrap it"):
        vcreg_fx.insert(DistributedDataParallel(model), RULE)


@check
def self_supervised_losses_gather(rank: int) -> None:
    """Each rank with half of the batch: the mean loss and gradient of the whole batch."""
    pytest.importorskip("lightly")
    from vcreg_fx.experiments.training._self_supervised import Embedded, Method, Objective

    whole = [torch.randn(16, 6, dtype=torch.float64) for _ in range(2)]
    whole[1] = whole[0] + whole[1] / 2

    def gradient(objective: Objective, rows: slice) -> tuple[Tensor, list[Tensor]]:
        z = [part[rows].clone().requires_grad_() for part in whole]
        pair = z[0], z[1]
        loss = objective(Embedded(pair, pair, pair, pair))
        return loss.detach(), list(torch.autograd.grad(loss, z))

    mine = slice(8 * rank, 8 * rank + 8)
    for method in (
        Method(), Method("cosine", 1.0, 1.0, 0.01), Method("mean square", 0.0, 25.0, 1.0),
        Method("simclr"), Method("barlow"), Method(embedding="std"),
        Method("cosine", 1.0, 1.0, 0.01, embedding="std"), Method(embedding="l2"),
    ):  # fmt: skip
        loss, found = gradient(Objective(method), mine)
        dist.all_reduce(loss)
        alone, expected = gradient(Objective(method, together=False), slice(None))
        assert relative_error([loss / RANKS], [alone]) < 1e-6, method
        averaged, theirs = [z / RANKS for z in found], [z[mine] for z in expected]
        assert relative_error(averaged, theirs) < 1e-6, method
