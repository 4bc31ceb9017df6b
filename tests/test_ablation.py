"""The ablation engine: what is run, what is kept, and what survives."""

from __future__ import annotations

import inspect
import json
import math
import os
import re
import signal
import subprocess
import sys
import time
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

import vcreg_fx
from tests.ablation_task import build, evaluate, train
from vcreg_fx import rules
from vcreg_fx._shared.statistics import paired_difference, summarize
from vcreg_fx.ablation import AblationError, AblationOptions, report
from vcreg_fx.ablation._records import Record
from vcreg_fx.ablation._result import AblationResult
from vcreg_fx.ablation._trials import ARGUMENTS, make_trials
from vcreg_fx.cli._app import app

ROOT = Path(__file__).resolve().parent.parent
INPUTS = (torch.zeros(2, 4),)
OPTIONS = AblationOptions(example_inputs=INPUTS)


def ablate(store, rules=("blocks", "head"), seeds=(0, 1), options=OPTIONS, executor=None, **axes):
    arguments = {"rules": rules, "seeds": seeds, "options": options, "executor": executor}
    return vcreg_fx.ablate(build, train, evaluate, axes=axes, store=store, **arguments)


def numbers(result):
    return {record.id: record.metrics for record in result.records}


def log_of(folder):
    """Return how often each trial was trained."""
    names = [path.name.rsplit("-", 2)[0] for path in folder.iterdir() if path.is_file()]
    return {name: names.count(name) for name in names}


# What is run --------------------------------------------------------------------------------


def grid(given, seeds=(0,), baseline=True, **axes):
    trials = make_trials(given, seeds, baseline, axes, lambda: (build(), INPUTS, None))
    return [(t.label, t.seed, dict(t.config), dict(t.params)) for t in trials]


def test_every_rule_with_every_value_and_seed():
    found = grid(["VCReg2", rules.head], [0, 3], alpha=[0.1, 0.2], lr=[1, 2], depth=5)
    assert len(found) == 2 * 2 * (1 + 2 * 2)
    assert found[0] == ("baseline", 0, {}, {"lr": 1, "depth": 5})
    assert found[1] == ("VCReg2", 0, {"alpha": 0.1}, {"lr": 1, "depth": 5})
    assert found[-1] == ("head", 3, {"alpha": 0.2}, {"lr": 2, "depth": 5})
    assert [label for label, *_ in grid("blocks", baseline=False)] == ["blocks"]


def test_generators_become_rules_of_the_model():
    labels = [label for label, *_ in grid([rules.each("blocks"), rules.prefixes("blocks")])]
    one, two = "at('1:output')", "at('2:output')"
    assert labels == ["baseline", one, two, "at('1:output', '2:output')"]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"given": []}, None),
        ({"given": [], "baseline": False}, "nothing to run"),
        ({"given": "baseline"}, "is no rule"),
        ({"given": "blocks", "seeds": []}, "seeds="),
        ({"given": "blocks", "seeds": [0.5]}, "whole numbers"),
        ({"given": "blocks", "alpha": []}, "axis alpha has no values"),
        ({"given": "blocks", "alpha": [-1]}, "alpha=-1 must be"),
        ({"given": "blocks", "lr": [object()]}, "not JSON serializable"),
        ({"given": "blocks", "seconds": [1]}, "cannot be named 'seconds'"),
        ({"given": "blocks", "store": [1]}, "cannot be named 'store'"),
        ({"given": "blocks", "aplha": [1]}, "There is no axis 'aplha'.* is 'alpha'"),
    ],
)
def test_what_cannot_be_run_is_refused(given, message):
    if message is None:
        assert [label for label, *_ in grid(**given)] == ["baseline"]
        return
    with pytest.raises(AblationError, match=message):
        grid(**given)


def test_nothing_is_made_for_an_ablation_that_is_refused(tmp_path):
    for arguments in ({"rules": "blcks"}, {"alpha": [-1]}, {"executor": 0}, {"executor": "two"}):
        with pytest.raises((AblationError, vcreg_fx.RuleSyntaxError)):
            ablate(tmp_path / "store", **arguments)
    with ProcessPoolExecutor(1) as pool, pytest.raises(AblationError, match="top level"):
        vcreg_fx.ablate(lambda: None, train, evaluate, store=tmp_path / "store", executor=pool)
    assert not (tmp_path / "store").exists()
    with pytest.raises(AblationError, match="shard 3/2"):
        AblationOptions(shard=(3, 2))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"exector": 4}, "no argument 'exector'. Did you mean executor?"),
        ({"alpha": [0.1, 0.2]}, "no argument 'alpha'. The axes .* axes={'alpha': \\[0.1, 0.2\\]}"),
    ],
)
def test_arguments_that_do_not_exist_are_no_axes(tmp_path, arguments, message):
    with pytest.raises(TypeError, match=message):
        vcreg_fx.ablate(build, train, evaluate, store=tmp_path / "store", **arguments)
    with pytest.raises(AblationError, match="axes=False must be a dictionary"):
        vcreg_fx.ablate(build, train, evaluate, "blocks", [0], False, store=tmp_path / "store")
    assert not (tmp_path / "store").exists()


def test_the_arguments_of_ablate_are_known_to_its_axes():
    kinds = inspect.signature(vcreg_fx.ablate).parameters
    assert [*kinds][:-1] == [*ARGUMENTS]


# What a trial is ----------------------------------------------------------------------------


def test_a_trial_is_recorded_whole(tmp_path):
    result = ablate(tmp_path / "store", alpha=[0.5], lr=[0.2], seeds=[4])
    assert [record.label for record in result.records] == ["baseline", "blocks", "head"]
    record = result.records[1]
    assert (record.rule, record.seed) == ("blocks", 4)
    assert (record.config, record.params) == ({"alpha": 0.5}, {"lr": 0.2})
    assert record.sites == ["1:output", "2:output"]
    assert record.status == "done"
    assert record.seconds > 0
    assert record.versions["torch"] == torch.__version__
    assert set(record.metrics) == {"spread", "mean", "seed_is"}
    assert record.metrics["seed_is"] == 4
    path = tmp_path / "store" / "trials" / record.id / "trial.json"
    assert Record(**json.loads(path.read_text())) == record
    assert result.records[0].sites == []
    assert len({tuple(r.metrics.values()) for r in result.records}) == 3, "VCReg acted"


def test_a_trial_is_what_a_plain_loop_does(tmp_path):
    """The numbers are those of insert, train and evaluate under the seed, and nothing more."""
    found = ablate(tmp_path / "store", rules="blocks", seeds=[3], alpha=[0.4], beta=[0.7])
    torch.manual_seed(3)
    model = vcreg_fx.insert(build(), "blocks", alpha=0.4, beta=0.7, example_inputs=INPUTS)
    torch.manual_seed(3)
    np.random.seed(3)
    trial = make_trials("blocks", [3], False, {}, build)[0]
    train(model, trial)
    expected = {name: float(value) for name, value in evaluate(model, trial).items()}
    assert found.records[1].metrics == expected


def test_random_states_are_left_alone(tmp_path):
    torch.manual_seed(7)
    np.random.seed(7)
    states = torch.get_rng_state(), np.random.get_state()[1].copy(), torch.get_num_threads()
    ablate(tmp_path / "store")
    assert torch.equal(torch.get_rng_state(), states[0])
    assert (np.random.get_state()[1] == states[1]).all()
    assert torch.get_num_threads() == states[2]


def test_the_same_seed_gives_the_same_numbers(tmp_path):
    first, second = ablate(tmp_path / "a"), ablate(tmp_path / "b")
    assert numbers(first) == numbers(second)
    by_seed = {r.seed: r.metrics["mean"] for r in first.records if r.label == "blocks"}
    assert by_seed[0] != by_seed[1]


def test_a_failed_trial_does_not_stop_the_others(tmp_path):
    result = ablate(tmp_path / "store", fail=["blocks"], log=[str(tmp_path)])
    assert [r.status for r in result.records] == ["done", "failed", "done"] * 2
    assert "no training with blocks" in result.failed[0].traceback
    assert result.failed[0].reason == "RuntimeError: no training with blocks"
    assert result.failed[0].sites == ["1:output", "2:output"]
    folder = tmp_path / "store" / "trials" / result.failed[0].id
    assert "in train" in (folder / "traceback.txt").read_text()
    assert "2 of 6 trials failed" in str(result)
    assert "trials/<name>/traceback.txt" in str(result) and "--retry-failed" in str(result)
    again = ablate(tmp_path / "store", fail=["blocks"], log=[str(tmp_path)])
    assert again.records == result.records, "failures are not run again by themselves"
    retry = AblationOptions(example_inputs=INPUTS, retry_failed=True)
    ablate(tmp_path / "store", fail=["blocks"], log=[str(tmp_path)], options=retry)
    counts = log_of(tmp_path)
    assert {name.split("-")[0]: count for name, count in counts.items()} == {
        "baseline": 1,
        "blocks": 2,
        "head": 1,
    }


@pytest.mark.parametrize("found", [None, {}, {"a": "high"}, {3: 1.0}, {"a": torch.zeros(2)}])
def test_numbers_that_are_none_fail_the_trial(tmp_path, found):
    result = vcreg_fx.ablate(
        build, train, lambda model, trial: found, rules=[], seeds=[0], store=tmp_path / "store"
    )
    assert result.records[0].status == "failed"
    assert "evaluate" in result.records[0].reason


# What is kept -------------------------------------------------------------------------------


def test_finished_trials_are_never_run_again(tmp_path):
    log = tmp_path / "log"
    log.mkdir()
    first = ablate(tmp_path / "store", log=[str(log)])
    more = ablate(tmp_path / "store", log=[str(log)], rules=["blocks", "head", "residual"])
    assert set(log_of(log).values()) == {1}
    assert len(log_of(log)) == 8
    assert numbers(first).items() <= numbers(more).items()
    assert len(report(tmp_path / "store").records) == 8


def test_a_store_belongs_to_its_functions(tmp_path):
    ablate(tmp_path / "store", seeds=[0])
    with pytest.raises(AblationError, match="use another store"):
        vcreg_fx.ablate(
            build, train, lambda *_: {"a": 1}, rules=[], seeds=[0], store=tmp_path / "store"
        )
    with pytest.raises(AblationError, match="There is no ablation at"):
        report(tmp_path / "nothing")


@pytest.mark.slow
def test_a_store_knows_a_script_that_is_imported_later(tmp_path):
    """Run as a script, its functions lie in __main__; the command line imports it."""
    script = tmp_path / "study.py"
    script.write_text(
        "from tests.ablation_task import build as make\n"
        "def build(): return make()\n"
        "def train(model, trial): pass\n"
        "def evaluate(model, trial): return {'a': 1}\n"
        "if __name__ == '__main__':\n"
        "    import vcreg_fx\n"
        "    vcreg_fx.ablate(build, train, evaluate, rules=[], seeds=[0], store='store')\n"
    )
    path = os.pathsep.join([str(ROOT), str(tmp_path)])
    for arguments in (
        [str(script)],
        [
            "-c",
            "import vcreg_fx, study as s; print(vcreg_fx.ablate(s.build, s.train, s.evaluate, "
            "rules=[], seeds=[0, 1], store='store'))",
        ],
    ):
        done = subprocess.run(
            [sys.executable, *arguments],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": path},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
    assert "| baseline | 1.000 ± 0.000 | 2 |" in done.stdout


def test_half_a_trial_is_no_trial(tmp_path):
    """What a killed process leaves behind is neither read nor in the way."""
    result = ablate(tmp_path / "store", seeds=[0])
    folder = tmp_path / "store" / "trials"
    victim = result.records[1].id
    os.rename(folder / victim, folder / f".{victim}.0123")
    assert [r.label for r in report(tmp_path / "store").records] == ["baseline", "head"]
    assert report(tmp_path / "store").missing == [victim]
    assert numbers(ablate(tmp_path / "store", seeds=[0])) == numbers(result)


def test_shards_share_the_trials(tmp_path):
    log = tmp_path / "log"
    log.mkdir()
    for i in (1, 2):
        options = AblationOptions(example_inputs=INPUTS, shard=(i, 2))
        result = ablate(tmp_path / "store", log=[str(log)], options=options)
        assert len(result.records) == 3 * i
        assert len(result.missing) == 6 - 3 * i
    assert set(log_of(log).values()) == {1}
    assert "trials are not finished" not in str(result)


# Where trials run ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def local(tmp_path_factory):
    """The same ablation, run in this process."""
    return numbers(ablate(tmp_path_factory.mktemp("local") / "store"))


@pytest.mark.slow
def test_processes_give_the_same_numbers(tmp_path, local):
    assert numbers(ablate(tmp_path / "store", executor=2)) == local


def test_threads_give_the_same_numbers(tmp_path, local):
    """Seeds belong to a process, so trials in one process wait for each other."""
    with ThreadPoolExecutor(4) as pool:
        assert numbers(ablate(tmp_path / "store", executor=pool)) == local


def test_a_lost_workers_trial_is_run_again(tmp_path):
    """A worker is killed once; the executor is the user's, and broken by that."""
    log = tmp_path / "log"
    log.mkdir()
    settings = {"die_once": [str(tmp_path / "died")], "log": [str(log)]}
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
        result = ablate(tmp_path / "store", executor=pool, seeds=[0], **settings)
    assert (tmp_path / "died").exists()
    assert [record.status for record in result.records] == ["done"] * 3
    counts = {name.split("-")[0]: count for name, count in log_of(log).items()}
    assert counts["head"] == 2


@pytest.mark.slow
def test_a_trial_that_always_kills_its_worker_is_given_up(tmp_path):
    options = AblationOptions(example_inputs=INPUTS, retries=1)
    result = ablate(
        tmp_path / "store", executor=1, seeds=[0], die_always=["blocks"], options=options
    )
    assert [record.status for record in result.records] == ["done", "failed", "done"]
    assert "died 2 times" in result.failed[0].reason


def test_workers_that_cannot_begin_are_an_error(tmp_path):
    with (
        ProcessPoolExecutor(
            1, mp_context=get_context("spawn"), initializer=os._exit, initargs=(3,)
        ) as pool,
        pytest.raises(AblationError, match="die before they begin"),
    ):
        ablate(
            tmp_path / "store",
            executor=pool,
            seeds=[0],
            options=AblationOptions(example_inputs=INPUTS, retries=0),
        )


class Elsewhere(ThreadPoolExecutor):
    """Runs everything where the store cannot be seen."""

    def submit(self, function, task):
        import dataclasses

        moved = dataclasses.replace(task, store=Path("/nonexistent/store"))
        return super().submit(function, moved)


def test_workers_that_do_not_see_the_store_are_an_error(tmp_path):
    with Elsewhere(1) as pool, pytest.raises(AblationError, match="on a shared file system"):
        ablate(tmp_path / "store", executor=pool)


class Broken(ThreadPoolExecutor):
    def submit(self, function, task):
        future = Future()
        future.set_exception(OSError("the disk is full"))
        return future


def test_other_errors_of_workers_are_not_swallowed(tmp_path):
    with Broken(1) as pool, pytest.raises(AblationError, match="OSError: the disk is full"):
        ablate(tmp_path / "store", executor=pool)


def start(store, log, *options, sleep=0.3):
    """Start `vcreg-fx ablate` on the small task in another process."""
    command = [
        *(sys.executable, "-m", "vcreg_fx", "ablate", "--task", "tests.ablation_task"),
        *("--store", str(store), "--set", f"log={log}", "--set", f"sleep={sleep}"),
        *("--rule", "blocks", "--rule", "head", "--workers", "1", *options),
    ]
    return subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


@pytest.mark.slow
def test_two_processes_on_one_store_repeat_no_trial(tmp_path):
    log = tmp_path / "log"
    log.mkdir()
    both = [start(tmp_path / "store", log, "--seeds", "4") for _ in range(2)]
    outputs = [process.communicate(timeout=300) for process in both]
    assert [process.returncode for process in both] == [0, 0], outputs
    tables = [output[: output.index("Written:")] for output, _ in outputs]
    assert tables[0] == tables[1], "both return when everything is finished"
    assert len(log_of(log)) == 12
    assert set(log_of(log).values()) == {1}
    workers = {path.name.rsplit("-", 2)[1] for path in log.iterdir()}
    assert len(workers) == 2, "both took part"
    assert list((tmp_path / "store" / "claims").iterdir()) == []


def test_a_killed_run_goes_on_and_ends_with_the_same_table(tmp_path):
    log, store = tmp_path / "log", tmp_path / "store"
    log.mkdir()
    process = start(store, log, "--seeds", "3")
    wait_for(lambda: len(list(store.glob("trials/[!.]*/trial.json"))) >= 2, process)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    done = {path.parent.name for path in store.glob("trials/[!.]*/trial.json")}
    assert 2 <= len(done) < 9, "it was killed half-way"
    resumed = start(store, log, "--seeds", "3")
    _, errors = resumed.communicate(timeout=300)
    assert resumed.returncode == 0, errors
    assert {log_of(log)[name] for name in done} == {1}, "finished trials are not repeated"
    # The path of the log is a setting of the trials, so the undisturbed run has the same.
    options = AblationOptions(title="Small")
    settings = {"seeds": [0, 1, 2], "sleep": [0.3], "log": [str(log)], "options": options}
    found = (store / "report.md").read_text("utf-8")
    assert table(found)[:9] == table(str(ablate(tmp_path / "undisturbed", **settings)))


def wait_for(condition, process, seconds=60):
    end = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end
        time.sleep(0.05)


def table(output):
    return [line for line in output.splitlines() if line.startswith("|")]


# Dask ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def cluster():
    distributed = pytest.importorskip("distributed")
    cluster = distributed.LocalCluster(
        n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None
    )
    with cluster, distributed.Client(cluster) as client:
        client.wait_for_workers(2, timeout=240)
        yield client


def test_dask_gives_the_same_numbers(tmp_path, cluster, local):
    found = ablate(tmp_path / "store", executor=cluster.get_executor())
    assert numbers(found) == local


def test_a_lost_dask_workers_trial_is_run_again(tmp_path, cluster):
    result = ablate(
        tmp_path / "store",
        executor=cluster.get_executor(),
        seeds=[0],
        die_once=[str(tmp_path / "died")],
    )
    assert (tmp_path / "died").exists()
    assert [record.status for record in result.records] == ["done"] * 3


def test_dask_from_the_command_line(tmp_path, cluster, monkeypatch):
    monkeypatch.chdir(ROOT)
    result = CliRunner().invoke(
        app,
        [
            *("ablate", "--task", "tests.ablation_task", "--rule", "blocks", "--seeds", "1"),
            *("--store", str(tmp_path / "store"), "--dask", cluster.scheduler.address),
        ],
    )
    assert result.exit_code == 0, result.output
    assert "Small (blocks)" in result.stdout


# Tables and pictures ------------------------------------------------------------------------


def made(values, tmp_path, **look):
    """A result of given numbers: label → metric → one value a seed."""
    records = []
    for label, metrics in values.items():
        name, _, settings = label.partition(" ")
        config = json.loads(settings) if settings else {}
        count = len(next(iter(metrics.values())))
        for seed in range(count):
            found = {metric: column[seed] for metric, column in metrics.items()}
            rule = None if name == "baseline" else name
            records.append(
                Record(f"{label}-{seed}", name, rule, seed, config, {}, "done", metrics=found)
            )
    return AblationResult(records, [], tmp_path, **look)


def test_table_7(tmp_path):
    result = made(
        {
            "baseline": {"food": [0.632, 0.640], "loss": [1.5, 1.7]},
            "VCReg1": {"food": [0.668, 0.680], "loss": [1.0, 1.25]},
            "VCReg2": {"food": [0.600, 0.690], "loss": [2.0, 2.0]},
        },
        tmp_path,
        title="ConvNeXt-Atto",
        percent=frozenset({"food"}),
        higher_is_better=frozenset({"food"}),
        lower_is_better=frozenset({"loss"}),
    )
    lines = table(str(result))
    assert lines[:5] == [
        "| Architecture | food | loss | seeds |",
        "| --- | ---: | ---: | ---: |",
        "| ConvNeXt-Atto | 63.6 ± 0.6 % | 1.600 ± 0.141 | 2 |",
        "| ConvNeXt-Atto (VCReg1) | **67.4 ± 0.8 %** | **1.125 ± 0.177** | 2 |",
        "| ConvNeXt-Atto (VCReg2) | 64.5 ± 6.4 % | 2.000 ± 0.000 | 2 |",
    ]
    # Differences 3.6 and 4.0: 3.8 ± t(0.975, 1) × 0.2, with t = 12.706.
    assert "| ConvNeXt-Atto (VCReg1) | **+3.8 [+1.3, +6.3]** |" in lines[7]


def test_a_diverged_setting_does_not_win(tmp_path):
    numbers = {
        "baseline": {"accuracy": [0.5, 0.6, 0.7], "loss": [3.0, 2.0, 1.0]},
        "head": {"accuracy": [0.9, math.nan, 0.8], "loss": [0.1, math.inf, 0.2]},
        "blocks": {"accuracy": [0.6, 0.7, 0.8], "loss": [2.0, 1.0, 0.5]},
    }
    declared = {
        "higher_is_better": frozenset({"accuracy"}), "lower_is_better": frozenset({"loss"})
    }  # fmt: skip
    lines = table(text := str(made(numbers, tmp_path, **declared)))
    assert lines[3] == (
        "| head | 0.8500 ± 0.0707 (n = 2, 1 not finite) | 0.150 ± 0.071 (n = 2, 1 not finite) | 3 |"
    )
    assert lines[4] == "| blocks | **0.7000 ± 0.1000** | **1.167 ± 0.764** | 3 |"
    assert "numbers that are not finite is never the best" in text


def test_nothing_is_best_where_no_direction_is_declared(tmp_path):
    numbers = {"baseline": {"loss": [3.0, 2.0]}, "head": {"loss": [4.0, 1.0]}}
    text = str(made(numbers, tmp_path))
    assert "**" not in text and "Nothing is bold for loss, of which it is not known" in text
    with pytest.raises(AblationError, match="loss is in higher_is_better and in lower_is_better"):
        AblationOptions(higher_is_better=["loss"], lower_is_better=["loss"])


def test_an_interval_without_width_is_marked_and_not_bold(tmp_path):
    numbers = {"baseline": {"m": [0.5, 0.6]}, "head": {"m": [0.75, 0.85]}}
    text = str(made(numbers, tmp_path))
    assert "| head | +0.2500 [+0.2500, +0.2500] (no spread) |" in text


def test_names_are_no_markup(tmp_path):
    numbers = {"<script>": {"a|b\x1b[2J": [1.0, 2.0]}, "baseline": {"a|b\x1b[2J": [1.0, 2.0]}}
    lines = table(str(made(numbers, tmp_path, title="<b>", percent=frozenset({"a|b"}))))
    assert lines[0] == "| Architecture | a\\|b\\x1b[2J | seeds |"
    assert lines[2].startswith("| &lt;b&gt; (&lt;script&gt;) |")
    assert str(make_trials("blocks", [0], False, {"a": ["\x1b]0;\n"]}, None)[0]) == (
        "blocks, a=\\x1b]0;\\n, seed 0"
    )


def test_tables_grow_with_their_rows(tmp_path):
    """Time of the processor, four times the rows: 4 times as much if linear, 16 if quadratic."""

    def seconds(count):
        records = [
            Record(f"{label}-{i}", label, None, 0, {}, {"lr": i}, "done", {"a": i / 7, "b": 1.0})
            for i in range(count)
            for label in ("baseline", "head")
        ]
        found = []
        for _ in range(3):
            began = time.process_time()
            str(AblationResult(records, [], tmp_path, higher_is_better=frozenset({"a", "b"})))
            found.append(time.process_time() - began)
        return min(found)

    assert seconds(600) < 9 * seconds(150)


def test_a_default_that_a_rule_used_is_shown(tmp_path):
    numbers = {'head {"alpha": 0.1}': {"m": [2.0]}, 'head {"alpha": 0.2}': {"m": [1.0]}}
    text = str(made({"blocks": {"m": [3.0]}, **numbers}, tmp_path))
    assert "| blocks | 0.64 | 3.000 | 1 |" in text


def test_differences_against_a_slow_version():
    a, b = [0.5, 0.7, 0.9, 0.4], [0.4, 0.75, 0.6, 0.2]
    found = paired_difference(a, b)
    differences = [x - y for x, y in zip(a, b, strict=True)]
    mean = sum(differences) / 4
    std = math.sqrt(sum((d - mean) ** 2 for d in differences) / 3)
    half = 3.182446 * std / 2  # the 97.5 % quantile of t with 3 degrees of freedom
    assert (found.mean, found.count) == (pytest.approx(mean), 4)
    assert (found.low, found.high) == (pytest.approx(mean - half), pytest.approx(mean + half))
    assert summarize([2.0]).mean == 2
    assert math.isnan(summarize([2.0]).std)
    assert math.isnan(paired_difference([1.0], [2.0]).low)
    assert math.isnan(summarize([]).mean)


def test_differences_pair_equal_seeds_only(tmp_path):
    result = made({"baseline": {"m": [1.0, 5.0]}, "head": {"m": [2.0, 6.0, 100.0]}}, tmp_path)
    row, baseline = result.rows[1], result.rows[0]
    assert row.difference("m", baseline).count == 2
    assert row.difference("m", baseline).mean == 1


def test_rows_of_other_seeds_are_pointed_out(tmp_path):
    numbers = {"baseline": {"m": [1.0, 5.0]}, "head": {"m": [2.0, 6.0]}}
    assert "Rows differ" not in str(made(numbers, tmp_path / "a"))
    numbers["head"]["m"].pop()
    assert "Rows differ in their seeds" in str(made(numbers, tmp_path / "b"))


def test_axes_are_columns(tmp_path):
    result = made(
        {
            "baseline": {"m": [1.0]},
            'head {"alpha": 0.1}': {"m": [2.0]},
            'head {"alpha": 0.2}': {"m": [math.nan]},
        },
        tmp_path,
        higher_is_better=frozenset({"m"}),
    )
    assert table(str(result))[:5] == [
        "| Placement | alpha | m | seeds |",
        "| --- | --- | ---: | ---: |",
        "| baseline |  | 1.000 | 1 |",
        "| head | 0.1 | **2.000** | 1 |",
        "| head | 0.2 | – (n = 0, 1 not finite) | 1 |",
    ]


def test_pandas(tmp_path):
    pandas = pytest.importorskip("pandas")
    frame = ablate(tmp_path / "store", alpha=[0.1, 0.2], lr=[0.5]).to_pandas()
    assert isinstance(frame, pandas.DataFrame)
    assert len(frame) == 2 * (1 + 2 * 2)
    assert set(frame.label) == {"baseline", "blocks", "head"}
    assert frame[frame.label == "baseline"].alpha.isna().all()
    assert frame.groupby(["label", "alpha"])["mean"].count().to_list() == [2] * 4
    assert {"seed", "lr", "spread", "status", "sites", "seconds", "id"} <= set(frame.columns)


def test_pictures(tmp_path):
    values = {
        f'blocks {{"alpha": {a}, "beta": {b}}}': {"m": [a + b, a - b], "n": [1, 2]}
        for a in (0.1, 0.2)
        for b in (1, 2, 3)
    }
    result = made({"baseline": {"m": [0.3, 0.2], "n": [1, 2]}, **values}, tmp_path)
    result.plot(tmp_path / "placements.png")
    result.plot(tmp_path / "placements.svg", ["m"])
    result.plot_heatmap(tmp_path / "map.png", "m")
    assert (tmp_path / "placements.png").read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "map.png").read_bytes().startswith(b"\x89PNG")
    assert b"<svg" in (tmp_path / "placements.svg").read_bytes()
    many = made({f'blocks {{"alpha": {a}}}': {"m": [1.0]} for a in range(301)}, tmp_path)
    for call, message in [
        (lambda: result.plot(tmp_path / "a.png", ["x"]), "There is no metric x"),
        (lambda: result.plot_heatmap(tmp_path / "a.png", "x"), "There is no metric x"),
        (lambda: result.plot_heatmap(tmp_path / "a.png", "m", "lr"), "both lr and beta"),
        (lambda: made({}, tmp_path).plot(tmp_path / "a.png"), "nothing to draw"),
        (lambda: many.plot(tmp_path / "a.png"), "room for 300 rows, and there are 301"),
    ]:
        with pytest.raises(AblationError, match=message):
            call()


# The command --------------------------------------------------------------------------------


def command(*arguments):
    return CliRunner().invoke(app, ["ablate", *arguments])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--set", "alpha"], "is no axis"),
        (["--task", "tests.ablation_task", "--set", "store=3"], "cannot be named 'store'"),
        (["--set", "store=3"], "the digits have no setting store"),
        (["--shard", "2"], "is no shard"),
        (["--shard", "3/2"], "shards go from 1/2 to 2/2"),
        (["--set", "alpha=-1"], "must be a finite number"),
        (["--timeout", "0"], "for '--timeout'"),
        (["--task", "tests.strategies"], "has no function build and no train and no evaluate"),
        (["--task", "tests.ablation_task", "--steps", "5"], "--steps is of the digits"),
        (["--workers", "2", "--dask", "tcp://127.0.0.1:1"], "--workers is of this machine"),
        (["report", "nothing"], "There is no ablation at"),
    ],
)
def test_errors_of_the_command(tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(ROOT)
    result = command(*arguments)
    assert result.exit_code in {1, 2}
    assert "Traceback" not in result.output
    assert message in " ".join(result.stderr.replace("│", " ").split())
    assert list(tmp_path.iterdir()) == []


def test_report_of_a_store(tmp_path):
    ablate(tmp_path / "store", alpha=[0.1, 0.2], beta=[0.1, 0.2], seeds=[0])
    result = command("report", str(tmp_path / "store"))
    assert result.exit_code == 0, result.output
    assert re.search(r"blocks +0\.1 +0\.2 ", result.stdout)
    assert "| blocks | 0.1 | 0.2 |" in (tmp_path / "store" / "report.md").read_text("utf-8")
    for name in ("report.md", "report.html", "placements.png", "alpha_beta.png"):
        assert (tmp_path / "store" / name).stat().st_size > 100


def test_a_failed_trial_makes_the_command_fail(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    options = ("--task", "tests.ablation_task", "--store", str(tmp_path / "store"))
    result = command(*options, "--rule", "head", "--set", "fail=head", "--workers", "1")
    assert result.exit_code == 1
    assert "2 of 4 trials failed" in result.stdout


@pytest.mark.slow
def test_the_embedded_ablation_survives_a_kill(tmp_path):
    def run(store):
        command = [sys.executable, "-m", "vcreg_fx", "ablate", "--steps", "5", "--store", store]
        return subprocess.Popen(
            command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )

    store = tmp_path / "store"
    process = run(store)
    wait_for(lambda: len(list(store.glob("trials/[!.]*/trial.json"))) >= 4, process, 300)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    before = {p: p.stat().st_mtime_ns for p in store.glob("trials/[!.]*/trial.json")}
    assert 4 <= len(before) < 10
    resumed, undisturbed = run(store), run(tmp_path / "other")
    for process in (resumed, undisturbed):
        process.communicate(timeout=500)
    tables = [table((s / "report.md").read_text("utf-8")) for s in (store, tmp_path / "other")]
    assert tables[0] == tables[1]
    assert len(tables[0]) >= 2 + 5 + 2 + 4
    assert {p: p.stat().st_mtime_ns for p in before} == before, "finished trials are not repeated"
