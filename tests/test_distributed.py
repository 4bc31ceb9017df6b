"""Two ranks on one machine; `tests.ranks` holds the checks."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import vcreg_fx
from tests.ranks import CHECKS, run_ranks


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str | None]]:
    return run_ranks(tmp_path_factory.mktemp("ranks"))


@pytest.mark.parametrize("name", CHECKS)
def test_two_ranks(name: str, results: dict[str, list[str | None]]) -> None:
    errors = [f"rank {rank}: {error}" for rank, error in enumerate(results[name]) if error]
    assert not errors, "\n".join(errors)


def test_one_process_needs_no_group() -> None:
    model, x = nn.Sequential(nn.Linear(4, 6), nn.Linear(6, 3)), torch.randn(8, 4)
    other = copy.deepcopy(model)
    for each, sync in ((model, True), (other, False)):
        vcreg_fx.insert(each, "head", sync=sync, example_inputs=(x,))
        each(x).square().mean().backward()
    for one, two in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.equal(one.grad, two.grad)


def test_what_is_no_group_is_refused() -> None:
    with pytest.raises(ValueError, match=r"sync='world' must be True, False"):
        vcreg_fx.VCRegConfig(sync="world")
