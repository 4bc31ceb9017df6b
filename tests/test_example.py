"""The shipped training script: resuming is bit-equal, processes are joined by torchrun."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

SCRIPT = Path(__file__).resolve().parent.parent / "docs" / "examples" / "train.py"
SMALL = ["--model", "resnet10t", "--steps", "2", "--batch", "8", "--vcreg", "blocks | head"]


def train(folder: Path, *options: str, launch: tuple[str, ...] = ()) -> str:
    return run(folder, *launch, str(SCRIPT), *SMALL, *options)


def run(folder: Path, *command: str) -> str:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, *command],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize(
    "options",
    [
        pytest.param(("--compile", "aot_eager"), marks=pytest.mark.slow),
        ("--amp", "float16", "--accumulate", "1"),
    ],
)
def test_resuming_continues_bit_by_bit(tmp_path: Path, options: tuple[str, ...]) -> None:
    script = SCRIPT.read_text()
    stop = script.replace("range(start, args.epochs)", "range(start, 1)")
    assert stop != script
    stopped = tmp_path / "stopped.py"
    stopped.write_text(stop)
    common = [*SMALL, *options, "--epochs", "2", "--checkpoint"]
    runs = [
        [str(SCRIPT), *common, "whole.pt"],
        [str(stopped), *common, "parts.pt"],
        [str(SCRIPT), *common, "parts.pt", "--resume"],
    ]
    code = f"""
import runpy, sys
for sys.argv in {runs}:
    runpy.run_path(sys.argv[0], None, "__main__")
"""
    printed = run(tmp_path, "-c", code).splitlines()
    assert [line.partition(":")[0] for line in printed] == [
        "epoch 0", "epoch 1", "epoch 0", "epoch 1",
    ]  # fmt: skip
    assert "penalty 0.0000" not in "".join(printed)
    one, other = (torch.load(tmp_path / name) for name in ("whole.pt", "parts.pt"))
    assert one["epoch"] == other["epoch"] == 2
    for name in ("model", "average"):
        for key, value in one[name].items():
            assert torch.equal(value, other[name][key]), key
    for state, again in zip(
        one["optimizer"]["state"].values(), other["optimizer"]["state"].values(), strict=True
    ):
        assert all(torch.equal(state[key], again[key]) for key in state)


@pytest.mark.slow
def test_vcreg_changes_the_training(tmp_path: Path) -> None:
    train(tmp_path, "--epochs", "1", "--checkpoint", "with.pt")
    train(tmp_path, "--epochs", "1", "--vcreg", "", "--checkpoint", "without.pt")
    one, other = (torch.load(tmp_path / name)["model"] for name in ("with.pt", "without.pt"))
    assert one.keys() == other.keys()
    assert any(not torch.equal(one[key], other[key]) for key in one)


@pytest.mark.slow
def test_torchrun(tmp_path: Path) -> None:
    launch = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
    printed = train(tmp_path, "--epochs", "1", "--sync", launch=launch)
    assert printed.count("epoch 0: accuracy") == 1
    assert (tmp_path / "checkpoint.pt").exists()
