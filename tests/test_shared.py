"""The small room that the others share: what is kept, tables, progress."""

from __future__ import annotations

import io
import random
import time

import numpy as np
import pytest
import torch
from rich.console import Console
from torch import nn

from vcreg_fx._shared import progress
from vcreg_fx._shared.keeping import (
    frozen,
    keeping_modes,
    keeping_randomness,
    seeded,
    using_threads,
)
from vcreg_fx._shared.pictures import panels
from vcreg_fx._shared.progress import Progress
from vcreg_fx._shared.statistics import (
    difference_of,
    finite_values,
    paired_difference,
    summarize,
    wilson_interval,
)
from vcreg_fx._shared.tables import (
    align,
    difference_and_interval,
    markdown_table,
    mean_and_spread,
    written,
)


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


def test_aligned_tables_hold_no_control_characters():
    assert align([["a", "b"], ["\x1b[2J", "1"]]).splitlines()[2] == "\\x1b[2J  1"


def test_numbers_in_tables():
    def write(value, sign):
        return written(100 * value, 1, sign)

    assert (written(-0.0001, 2), written(-0.0001, 2, "+")) == ("0.00", "−0.00")
    assert written(float("nan"), 2) == "–"
    assert mean_and_spread(summarize([]), write, " %") == "–"
    assert mean_and_spread(summarize([0.5]), write, " %") == "50.0 %"
    assert mean_and_spread(summarize([0.4, 0.6]), write, " %") == "50.0 ± 14.1 %"
    assert difference_and_interval(paired_difference([0.25], [0.5]), write) == "−25.0"
    clear = paired_difference([0.51, 0.61, 0.71], [0.4, 0.5, 0.61])
    assert difference_and_interval(clear, write) == "**+10.7 [+9.2, +12.1]**"
    unclear = paired_difference([0.5, 0.4], [0.4, 0.5])
    assert difference_and_interval(unclear, write) == "+0.0 [−127.1, +127.1]"


def test_panels_that_are_left_over_are_hidden():
    figure, grid = panels(3, (4.0, 3.0), columns=2, sharey=True)
    assert [axes.get_visible() for axes in figure.axes] == [True, True, True, False]
    assert grid == figure.axes[:3]


def test_a_frozen_model_is_as_it_was_after_an_error():
    model = nn.Sequential(nn.Linear(1, 1), nn.Dropout().eval())
    seen = []

    def fail():
        seen.append((torch.is_grad_enabled(), model.training))
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError), frozen(model):
        fail()
    assert seen == [(False, False)]
    assert [module.training for module in model.modules()] == [True, True, False]
    assert torch.is_grad_enabled()


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


def test_progress_is_lines_where_there_is_no_terminal(monkeypatch):
    monkeypatch.setattr(progress, "_FIRST", 0.02)
    monkeypatch.setattr(progress, "_NEXT", 0.05)
    text = io.StringIO()
    console = Console(file=text, width=80)
    with Progress("[work]", 3, console=console) as bar, Progress("inner", console=console):
        bar.advance(note="loss [1]")
        time.sleep(0.3)
    lines = text.getvalue().splitlines()
    assert lines[0] == "[work]: 1 of 3 after 0 s, loss [1]"
    assert 2 <= len(lines) <= 7, "fewer and fewer"
    assert all(line.startswith("[work]") for line in lines), "one inside another is silent"
    bars = Console(file=io.StringIO(), force_terminal=True)
    with Progress("outer", console=bars), Progress("inner", console=bars):
        pass  # older versions of rich refuse two displays at once


def test_wilsons_interval():
    """E. B. Wilson (1927), in closed form."""
    n, p, z = 599, 0.9, 1.959963985
    middle = (p + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * (p * (1 - p) / n + z**2 / (4 * n**2)) ** 0.5
    ends = middle - half, middle + half
    assert wilson_interval(round(p * n) / n, n) == pytest.approx(ends, abs=1e-3)
    assert wilson_interval(1.0, 10)[1] == 1 and wilson_interval(0.0, 10)[0] == 0


def test_differences_are_of_the_seeds_that_both_have():
    by_seed = {0: {"m": 3.0}, 1: {"m": float("nan")}, 2: {}, 3: {"m": 5.0}}
    assert finite_values(by_seed, "m") == {0: 3.0, 3: 5.0}
    found = difference_of(by_seed, {3: {"m": 4.0}, 1: {"m": 9.0}}, "m")
    assert (found.mean, found.count) == (1.0, 1)
