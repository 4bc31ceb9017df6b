"""The small room that the others share: what is kept, tables, progress."""

from __future__ import annotations

import io
import random

import numpy as np
import pytest
import torch
from rich.console import Console
from torch import nn

from vcreg_fx._shared.keeping import keeping_modes, keeping_randomness, seeded, using_threads
from vcreg_fx._shared.progress import Progress
from vcreg_fx._shared.statistics import difference_of, finite_values
from vcreg_fx._shared.tables import markdown_table


def drawn():
    return float(torch.rand(())), float(np.random.rand()), random.random()


def test_random_states_come_back_also_after_an_error():
    torch.manual_seed(1), np.random.seed(1), random.seed(1)
    expected = drawn()
    torch.manual_seed(1), np.random.seed(1), random.seed(1)
    with pytest.raises(ZeroDivisionError), keeping_randomness():
        drawn()[0] / 0
    assert drawn() == expected
    with seeded(1):
        again = float(torch.rand(()))
    assert again == expected[0]


def test_modes_and_threads_come_back():
    model = nn.Sequential(nn.Linear(1, 1), nn.Sequential(nn.ReLU()))
    model[1].eval()
    before = [module.training for module in model.modules()]
    threads = torch.get_num_threads()
    with keeping_modes(model), using_threads(threads + 1):
        model.eval()
        assert torch.get_num_threads() == threads + 1
        with using_threads(None):
            assert torch.get_num_threads() == threads + 1
    assert [module.training for module in model.modules()] == before
    assert torch.get_num_threads() == threads


def test_tables_in_markdown():
    table = markdown_table(["rule", "lr", "m"], [["a | b", "0.1", "2"]], text=2)
    assert table.splitlines() == [
        "| rule | lr | m |",
        "| --- | --- | ---: |",
        "| a \\| b | 0.1 | 2 |",
    ]


@pytest.mark.parametrize("shown", [True, None])
def test_progress_is_shown_on_terminals_or_on_request(shown):
    text = io.StringIO()
    with Progress("[work]", 3, done=1, shown=shown, console=Console(file=text)) as bar:
        bar.advance(note="loss [1]")
        bar.advance("rest")
    if shown is None:
        assert not text.getvalue().strip()
    else:
        assert all(part in text.getvalue() for part in ("rest", "3/3", "loss [1]"))


def test_differences_are_of_the_seeds_that_both_have():
    by_seed = {0: {"m": 3.0}, 1: {"m": float("nan")}, 2: {}, 3: {"m": 5.0}}
    assert finite_values(by_seed, "m") == {0: 3.0, 3: 5.0}
    found = difference_of(by_seed, {3: {"m": 4.0}, 1: {"m": 9.0}}, "m")
    assert (found.mean, found.count) == (1.0, 1)
