"""Every trainer in two processes, joined by gloo: one pair of them runs all, in turn."""

from __future__ import annotations

import contextlib
import os
import socket
import traceback
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from tests import test_accelerate, test_hugging_face_trainer, test_lightning
from tests.trainers import BATCH, Net, agree, by_hand, forget_accelerators, loader, weights

CHECKS: dict[str, Callable[[int, Path], None]] = {}


def check(function: Callable[[int, Path], None]) -> Callable[[int, Path], None]:
    CHECKS[function.__name__] = function
    return function


@check
def lightning(rank: int, folder: Path) -> None:
    module = test_lightning.module()
    before = weights(module)
    options = {"strategy": "ddp", "devices": 2, "accumulate_grad_batches": 2}
    run = test_lightning.trainer(
        test_lightning.callback(), use_distributed_sampler=False, **options
    )
    mine = torch.arange(12 * BATCH).view(-1, 2, BATCH)[:, rank].flatten().tolist()
    samples = torch.utils.data.Subset(loader(12).dataset, mine)
    run.fit(module, torch.utils.data.DataLoader(samples, batch_size=BATCH))
    agree(weights(module) - before, by_hand(6, 2, parts=2))


@check
def accelerate(rank: int, folder: Path) -> None:
    accelerator, model, optimizer = test_accelerate.made(2)
    assert accelerator.num_processes == 2
    test_accelerate.follow(model, accelerator)
    found = test_accelerate.train(accelerator, model, optimizer, loader(12))
    agree(found, by_hand(6, 2, parts=2))
    accelerator.save_state(folder / "state")
    assert (folder / "state" / "vcreg_fx.json").is_file() or rank


@check
def transformers(rank: int, folder: Path) -> None:
    model = Net()
    before = weights(model)
    made = test_hugging_face_trainer.trainer(
        model, folder, 12, test_hugging_face_trainer.callback(), k=2
    )
    assert made.args.world_size == 2
    made.train()
    agree(weights(model) - before, by_hand(6, 2, parts=2))


def _rank(rank: int, folder: Path) -> None:
    torch.set_num_threads(1)
    place = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    for name, function in CHECKS.items():
        port = (folder / name).read_text()
        os.environ.update({**place, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port})
        try:
            function(rank, folder)
            error = ""
        except Exception:
            error = traceback.format_exc()
        (folder / f"{name}.{rank}").write_text(error)
        if dist.is_initialized():
            dist.barrier()
            dist.destroy_process_group()
        forget_accelerators()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where each rank noted what went wrong."""
    folder = tmp_path_factory.mktemp("trainers")
    for name in CHECKS:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            (folder / name).write_text(str(free.getsockname()[1]))
    with contextlib.suppress(mp.ProcessExitedException, mp.ProcessRaisedException):
        mp.spawn(_rank, (folder,), nprocs=2)  # what a rank noted tells more
    return folder


@pytest.mark.parametrize("name", CHECKS)
def test_two_processes(name: str, folder: Path) -> None:
    for rank in range(2):
        note = folder / f"{name}.{rank}"
        assert note.exists(), f"rank {rank} did not end"
        assert note.read_text() == "", f"rank {rank}: {note.read_text()}"
