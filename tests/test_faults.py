"""What a sweep survives: lost processes, full disks, damaged files, clocks, and what trials do."""

from __future__ import annotations

import errno
import functools
import importlib
import json
import logging
import os
import shutil
import stat
import subprocess
import sys
import time
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import vcreg_fx
from tests.ablation_task import build, evaluate, train
from vcreg_fx._shared import files
from vcreg_fx.ablation import (
    AblationError,
    AblationOptions,
    UnpublishedError,
    _ablate,
    _claim,
    _drive,
    report,
)
from vcreg_fx.ablation._claim import Claims

ROOT = Path(__file__).resolve().parent.parent
INPUTS = (torch.zeros(2, 4),)


def ablate(store, rules=("blocks", "head"), seeds=(0,), executor=None, options=None, **axes):
    given = AblationOptions(example_inputs=INPUTS, **(options or {}))
    return vcreg_fx.ablate(
        build, train, evaluate, rules=rules, seeds=seeds, axes=axes, store=store,
        executor=executor, options=given,
    )  # fmt: skip


def numbers(result):
    return {record.id: record.metrics for record in result.records}


def statuses(result):
    return {record.label: record.status for record in result.records}


def counts(log):
    """Return how often each label was trained."""
    names = [path.name.partition("-")[0] for path in log.iterdir()]
    return {name: names.count(name) for name in names}


@pytest.fixture
def log(tmp_path):
    folder = tmp_path / "log"
    folder.mkdir()
    return folder


@pytest.fixture
def clock(monkeypatch):
    """A monotonic clock that the test turns."""
    now = SimpleNamespace(seconds=1000.0)
    monkeypatch.setattr(_claim, "time", SimpleNamespace(monotonic=lambda: now.seconds))
    return now


# Claims -------------------------------------------------------------------------------------


def dead_process():
    return {**_claim.this_process(), "started": "1"}  # its number is that of another one now


def claim_by(folder, owner, number=0):
    path = folder / f"trial.{number}"
    path.write_text(owner if isinstance(owner, str) else json.dumps(owner))
    return path


def test_a_claim_excludes_others_until_it_is_given_back(tmp_path):
    claims = Claims(tmp_path, 60)
    claim = claims.make("trial", alone=True)
    assert claims.make("trial", alone=True) is None
    assert Claims(tmp_path, 60).standings()["trial"].holder["pid"] == os.getpid()
    with claim:
        assert claim.is_held
    assert list(tmp_path.iterdir()) == []
    assert claims.standings() == {}
    assert claims.make("trial", alone=True) is not None


def test_a_claim_is_renewed_while_the_trial_runs(tmp_path):
    other = Claims(tmp_path, 0.4)
    with Claims(tmp_path, 0.4).make("trial", alone=True):
        until = time.monotonic() + 1
        while time.monotonic() < until:
            assert other.make("trial", alone=True) is None
            time.sleep(0.05)


def test_processes_that_ended_here_are_lost_at_once(tmp_path):
    ended = subprocess.Popen([sys.executable, "-S", "-c", ""])
    ended.wait()
    here = _claim.this_process()
    for owner, lost in [
        (here, False),
        ({**here, "pid": ended.pid, "started": "1"}, True),
        (dead_process(), True),
        ({**here, "machine": "another"}, False),
    ]:
        path = claim_by(tmp_path, owner)
        claim = Claims(tmp_path, 60).make("trial", alone=True)
        assert (claim is not None) is lost
        if lost:
            assert claim.path.name == "trial.1"
            with claim:
                pass
            assert list(tmp_path.iterdir()) == [], "the lost claim is cleared away, too"
        path.unlink(missing_ok=True)


@pytest.mark.parametrize("offset", [-1e6, 0, 1e6])
def test_a_claim_of_another_machine_is_lost_when_it_stands_still(tmp_path, clock, offset):
    """Whatever its clock says: from the future, or of the last month."""
    path = claim_by(tmp_path, {"machine": "another", "pid": 1, "started": "1", "alone": True})
    claims = Claims(tmp_path, 60)
    os.utime(path, (time.time() + offset,) * 2)
    assert claims.make("trial", alone=True) is None
    clock.seconds += 50
    os.utime(path, (time.time() + offset - 7,) * 2)  # renewed, by a clock that was set back
    assert claims.make("trial", alone=True) is None
    clock.seconds += 59
    assert claims.make("trial", alone=True) is None
    clock.seconds += 2
    assert claims.standings()["trial"].holder is None
    claim = Claims(tmp_path, 60).make("trial", alone=True)  # which has seen nothing itself
    assert (claim.path.name, claim.deaths) == ("trial.1", 1)


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "\x00", '{"pid": "x"}', '{"pid": -1}', '{"pid": 1e99}', "[" * 9999]
)
def test_a_damaged_claim_is_waited_for_and_blames_nobody(tmp_path, clock, text):
    claim_by(tmp_path, text)
    claims = Claims(tmp_path, 60)
    assert claims.make("trial", alone=True) is None
    assert "process" in _claim.in_words(claims.standings()["trial"].holder)
    clock.seconds += 61
    assert claims.make("trial", alone=True).deaths == 0


def test_one_of_many_wins_a_claim(tmp_path):
    claim_by(tmp_path, dead_process())
    claims = Claims(tmp_path, 60)
    with ThreadPoolExecutor(16) as pool:
        futures = [pool.submit(claims.make, "trial", alone=True) for _ in range(64)]
        won = [future.result() for future in futures if future.result() is not None]
    assert [claim.path.name for claim in won] == ["trial.1"]


def test_a_claim_is_whole_or_absent(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(Path, "write_text", full)
        with pytest.raises(OSError, match=r"No space left on device: '.*trial\.0'"):
            Claims(tmp_path, 60).make("trial", alone=True)
    assert list(tmp_path.iterdir()) == []
    with monkeypatch.context() as patched:  # no links on this file system
        patched.setattr(os, "link", full)
        claims = [Claims(tmp_path, 60).make("trial", alone=True) for _ in range(2)]
    assert [claim and claim.path.name for claim in claims] == ["trial.0", None]
    assert json.loads((tmp_path / "trial.0").read_text())["pid"] == os.getpid()
    Claims(tmp_path, 60).clear("trial")
    assert list(tmp_path.iterdir()) == []


def test_a_process_that_was_given_up_does_not_record_a_failure(tmp_path, log, monkeypatch):
    """It slept, another process took its trial over, and then it failed: that says nothing."""
    from vcreg_fx.ablation import _task

    def slept(task):
        path = next((tmp_path / "store" / "claims").iterdir())
        path.with_name(f"{path.name}.lost").touch()
        monkeypatch.undo()
        return _task.Record.of(task.trial, status="failed", traceback="RuntimeError: no file\n")

    monkeypatch.setattr(_task, "run", slept)
    assert statuses(ablate(tmp_path / "store", rules=[])) == {"baseline": "done"}


# What trials do -----------------------------------------------------------------------------


def test_an_exit_is_recorded_and_the_sweep_goes_on(tmp_path):
    result = ablate(tmp_path / "store", exit="blocks")
    assert statuses(result) == {"baseline": "done", "blocks": "failed", "head": "done"}
    assert result.failed[0].reason == "SystemExit: 3"


def test_an_interrupt_ends_the_sweep_and_gives_the_claim_back(tmp_path, log):
    with pytest.raises(KeyboardInterrupt):
        ablate(tmp_path / "store", interrupt="blocks", log=str(log))
    assert list((tmp_path / "store" / "claims").iterdir()) == []
    assert statuses(report(tmp_path / "store")) == {"baseline": "done"}
    with pytest.raises(KeyboardInterrupt):
        ablate(tmp_path / "store", interrupt="blocks", log=str(log))
    assert counts(log) == {"baseline": 1, "blocks": 2}


def test_deaths_of_a_trial_are_counted_in_the_store(tmp_path, log):
    """Two processes ended at it, as in os._exit; a third may try, and a fourth may not."""
    store, trials = tmp_path / "store", ablate(tmp_path / "other", log=str(log)).records
    name = next(record.id for record in trials if record.label == "blocks")
    for deaths, status in [(2, "done"), (3, "failed")]:
        (store / "claims").mkdir(parents=True)
        for number in range(deaths):
            owner = {**dead_process(), "alone": True}
            (store / "claims" / f"{name}.{number}").write_text(json.dumps(owner))
        result = ablate(store, log=str(log))
        assert statuses(result)["blocks"] == status
        assert list((store / "claims").iterdir()) == []
        store = tmp_path / "again"
    assert counts(log) == {"baseline": 3, "blocks": 2, "head": 3}
    assert result.failed[0].reason.startswith("WorkerLost: the process that ran this trial died 3")


@pytest.mark.slow
def test_a_trial_that_ends_its_own_process_is_given_up(tmp_path):
    code = (
        "from tests.test_faults import *\n"
        f"result = ablate({str(tmp_path / 'store')!r}, vanish='blocks', options=dict(retries=1))\n"
        "print(statuses(result))"
    )
    for last in (False, False, True):
        done = subprocess.run(
            [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
        )
        assert done.returncode == (0 if last else 3), done.stderr
    assert done.stdout.strip() == "{'baseline': 'done', 'blocks': 'failed', 'head': 'done'}"


@pytest.mark.slow
def test_the_neighbours_of_a_trial_that_kills_its_worker_are_not_blamed(tmp_path, log):
    """A process pool ends all of its workers when one dies."""
    options = {"retries": 1}
    result = ablate(
        tmp_path / "store", executor=3, seeds=[0, 1], die_always="head", sleep=0.3, log=str(log),
        options=options,
    )  # fmt: skip
    assert len(result.records) == 6
    assert [(record.label, record.seed) for record in result.failed] == [("head", 0), ("head", 1)]
    assert all("died 2 times" in record.reason for record in result.failed)


@pytest.mark.slow
@pytest.mark.parametrize("executor", [None, 1])
def test_a_trial_that_hangs_is_ended_and_recorded(tmp_path, executor):
    options = {"timeout": 5.0}
    result = ablate(tmp_path / "store", hang="blocks", executor=executor, options=options)
    assert statuses(result) == {"baseline": "done", "blocks": "failed", "head": "done"}
    assert result.failed[0].reason.startswith("TimeLimit: the trial ran for longer than timeout=5")
    here = ablate(tmp_path / "here", rules="head", hang="blocks")  # in this process
    assert numbers(here).items() <= numbers(result).items()


def test_a_result_that_the_executor_loses_is_found_in_the_store(tmp_path, monkeypatch):
    """Dask's loses a future where a worker dies with its result, and the trial is not run again."""

    class Forgetful(ThreadPoolExecutor):
        def submit(self, *args, **kwargs):
            super().submit(*args, **kwargs)
            return Future()

    monkeypatch.setattr(_drive, "_PATIENCE", 0.1)
    with Forgetful(1) as executor:
        result = ablate(tmp_path / "store", executor=executor)
    assert statuses(result) == {"baseline": "done", "blocks": "done", "head": "done"}


@pytest.mark.slow
@pytest.mark.parametrize("daemon", [False, True])
def test_a_trial_that_hangs_on_dask_is_ended_or_the_limit_refused(tmp_path, daemon):
    """Dask's workers are daemons unless told otherwise, and daemons make no processes."""
    dask, distributed = pytest.importorskip("dask"), pytest.importorskip("distributed")
    options = {"timeout": 10.0}
    with (
        dask.config.set({"distributed.worker.daemon": daemon}),
        distributed.LocalCluster(2, threads_per_worker=1, dashboard_address=None) as cluster,
        distributed.Client(cluster) as client,
    ):
        more = {"hang": "blocks", "executor": client.get_executor(), "options": options}
        if daemon:
            with pytest.raises(AblationError, match=r"distributed\.worker\.daemon.: False"):
                ablate(tmp_path / "store", **more)
            return
        result = ablate(tmp_path / "store", **more)
    assert statuses(result) == {"baseline": "done", "blocks": "failed", "head": "done"}
    assert result.failed[0].reason.startswith("TimeLimit: ")


@pytest.mark.slow
def test_a_process_of_its_own_that_dies_is_tried_again(tmp_path):
    options = {"timeout": 300.0, "retries": 1}
    died = str(tmp_path / "died")
    result = ablate(tmp_path / "store", die_once=died, vanish="blocks", options=options)
    assert statuses(result) == {"baseline": "done", "blocks": "failed", "head": "done"}
    assert "died 2 times" in result.failed[0].reason


def test_what_cannot_be_sent_to_a_process_of_its_own_is_refused(tmp_path):
    with pytest.raises(AblationError, match="cannot be sent to other processes"):
        vcreg_fx.ablate(
            lambda: None, train, evaluate, store=tmp_path, options=AblationOptions(timeout=1)
        )
    with pytest.raises(AblationError, match="timeout must be positive"):
        AblationOptions(timeout=0)


def test_whoever_waits_says_for_whom(tmp_path, caplog, clock):
    store = tmp_path / "store"
    (store / "claims").mkdir(parents=True)
    name = ablate(tmp_path / "other", rules=[]).records[0].id
    owner = {"machine": "far 1", "pid": 77, "started": "1"}
    (store / "claims" / f"{name}.0").write_text(json.dumps(owner))

    class Turned(logging.Handler):
        def emit(self, entry):
            clock.seconds += 61

    logger = logging.getLogger("vcreg_fx.ablation._ablate")
    logger.addHandler(handler := Turned())
    ablate(store, rules=[])
    logger.removeHandler(handler)
    assert caplog.messages == ["Waiting for baseline, seed 0, which process 77 on far runs."]


# Files --------------------------------------------------------------------------------------


def damage(path, how):
    text = path.read_bytes()
    data = json.loads(text)
    newer = {**data, "store": 3, "versions": {"store": "3"}, "more": 1}
    other = {**data, "id": "other", "trials": "none"}
    contents = {
        "empty": b"",
        "short": text[: len(text) // 2],
        "bytes": b"\xff\xfe" + text,
        "list": b"[]",
        "newer": json.dumps(newer).encode(),
        "other": json.dumps(other).encode(),
        "nested": b"[" * 99999,
    }
    if how == "gone":
        path.unlink()
    else:
        path.write_bytes(contents[how])


DAMAGE = ["empty", "short", "bytes", "list", "newer", "other", "nested"]


@pytest.mark.parametrize("how", [*DAMAGE, "gone"])
def test_a_damaged_record_is_named_set_aside_and_made_again(tmp_path, log, how):
    first = ablate(tmp_path / "store", log=str(log))
    name = first.records[1].id
    damage(path := tmp_path / "store" / "trials" / name / "trial.json", how)
    shown = report(tmp_path / "store")
    assert len(shown.records) == 2 and shown.missing == [name]
    assert str(path) in shown.damaged[0] and str(path) in str(shown)
    with pytest.warns(UserWarning, match=f"{name}/trial.json cannot be read: .*set aside as") as w:
        again = ablate(tmp_path / "store", log=str(log))
    assert len(w) == 1
    assert ("pip install -U" in str(w[0].message)) is (how == "newer")
    assert numbers(again) == numbers(first)
    assert counts(log) == {"baseline": 1, "blocks": 2, "head": 1}
    assert not report(tmp_path / "store").damaged


@pytest.mark.parametrize("how", DAMAGE)
def test_a_damaged_plan_is_named_and_set_aside(tmp_path, log, how):
    first = ablate(tmp_path / "store", log=str(log))
    (path,) = (tmp_path / "store" / "plans").iterdir()
    damage(path, how)
    assert str(path) in str(report(tmp_path / "store"))
    with pytest.warns(UserWarning, match=f"{path.name} cannot be read: .*set aside as"):
        again = ablate(tmp_path / "store", log=str(log))
    assert numbers(again) == numbers(first)
    assert set(counts(log).values()) == {1}


def test_errors_whose_text_cannot_be_encoded_are_recorded(tmp_path):
    def fails(model, trial):
        raise RuntimeError("\udcff \x1b[31m <b> | so")

    for _ in range(2):
        result = vcreg_fx.ablate(
            build, fails, evaluate, rules=[], seeds=[0], store=tmp_path / "store"
        )
        assert result.failed[0].reason == "RuntimeError: \\udcff \\x1b[31m <b> | so"
        str(result).encode()


def test_modes_follow_the_umask(tmp_path):
    before = os.umask(0o027)
    try:
        ablate(tmp_path / "store", rules=[])
        Claims(tmp_path, 60).make("trial", alone=True)
    finally:
        os.umask(before)
    for path in tmp_path.rglob("*"):
        mode = stat.S_IMODE(path.stat().st_mode)
        assert mode == (0o750 if path.is_dir() else 0o640), path


def full_after(monkeypatch, writes):
    """Let the disk be full after so many files."""
    real, left = files.sync, [writes]

    def sync(path):
        left[0] -= 1
        if left[0] < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(path)

    monkeypatch.setattr(files, "sync", sync)


def test_on_a_full_disk_the_first_failure_stops_the_sweep(tmp_path, log, monkeypatch):
    ablate(store := tmp_path / "store", rules=[], log=str(log))
    full_after(monkeypatch, 2)  # the plan
    with pytest.raises(UnpublishedError, match=r"No space left.*MB are free.*Free some") as caught:
        ablate(store, rules=["blocks", "head", "residual"], log=str(log))
    assert counts(log) == {"baseline": 1, "blocks": 1}
    assert caught.value.record.label == "blocks"
    assert list((store / "claims").iterdir()) == []
    assert [path.name for path in (store / "trials").iterdir()] == [report(store).records[0].id]
    monkeypatch.undo()
    result = ablate(store, rules=["blocks", "head", "residual"], log=str(log))
    assert statuses(result) == dict.fromkeys(["baseline", "blocks", "head", "residual"], "done")
    assert set(counts(log).values()) == {1}, "what was finished is not trained again"
    assert caught.value.record in result.records
    assert "1 of 4 trials were read from the store" in str(result)


def test_a_file_is_replaced_whole(tmp_path, monkeypatch):
    files.write_text(path := tmp_path / "new" / "file.txt", "one")
    full_after(monkeypatch, 0)
    with pytest.raises(OSError, match="No space left"):
        files.write_text(path, "two")
    assert path.read_text() == "one"
    assert list(path.parent.iterdir()) == [path]
    assert files.printable("a\x1b[0m\udcff\u202eé ") == "a\\x1b[0m\\udcff\\u202eé "


# What a store belongs to, and what trials are --------------------------------------------------


def scaled(model, trial, *, factor):
    return {"factor": float(factor)}


def test_partial_functions_are_told_apart(tmp_path):
    def run(**given):
        return vcreg_fx.ablate(
            build, train, functools.partial(scaled, **given), rules=[], seeds=[0],
            store=tmp_path / "store",
        )  # fmt: skip

    run(factor=1)
    assert run(factor=1).from_store == 1
    with pytest.raises(AblationError, match=r"partial\(tests.test_faults:scaled, factor=1\), not"):
        run(factor=2)


def test_modules_of_equal_base_name_are_told_apart(tmp_path, monkeypatch):
    for package in ("one", "two"):
        (tmp_path / package).mkdir()
        (tmp_path / package / "__init__.py").touch()
        source = f"def evaluate(model, trial): return {{'m': {len(package)}}}\n"
        (tmp_path / package / "study.py").write_text(source)
    monkeypatch.syspath_prepend(tmp_path)
    one, two = (importlib.import_module(f"{name}.study") for name in ("one", "two"))
    vcreg_fx.ablate(build, train, one.evaluate, rules=[], seeds=[0], store=tmp_path / "store")
    with pytest.raises(AblationError, match=r"was one.study:evaluate, not two.study:evaluate"):
        vcreg_fx.ablate(build, train, two.evaluate, rules=[], seeds=[0], store=tmp_path / "store")


def test_a_script_has_the_name_under_which_it_is_imported(tmp_path, monkeypatch):
    (tmp_path / "package").mkdir()
    (tmp_path / "package" / "__init__.py").touch()
    main = SimpleNamespace(__file__=str(tmp_path / "package" / "study.py"), __spec__=None)
    monkeypatch.setitem(sys.modules, "__main__", main)
    assert _ablate._main() == "package.study"
    main.__spec__ = SimpleNamespace(name="package.other")
    assert _ablate._main() == "package.other"


def test_metrics_named_like_columns_are_kept_beside_them(tmp_path):
    found = {"seed": 7.0, "label": 1.0, "alpha": 2.0, "seconds": 3.0, "seeds": 4.0}
    result = vcreg_fx.ablate(
        build, train, lambda *_: found, rules="head", baseline=False, seeds=[0, 1],
        axes={"alpha": [0.1, 0.2]}, store=tmp_path, options=AblationOptions(example_inputs=INPUTS),
    )  # fmt: skip
    frame = result.to_pandas()
    assert frame["seed"].to_list() == [0, 0, 1, 1] and set(frame["label"]) == {"head"}
    assert frame["alpha"].to_list() == [0.1, 0.2] * 2
    for name, value in found.items():
        assert set(frame[f"metric {name}" if name != "seeds" else name]) == {value}
    head = str(result).splitlines()[0]
    assert head == (
        "| Placement | alpha | seed | label | metric alpha | seconds | metric seeds | seeds |"
    )


def test_values_are_what_they_are(tmp_path):
    values = [1, 1.0, True, "1", [1], None]
    result = ablate(tmp_path, rules=[], kind=values)
    kinds = [record.params["kind"] for record in result.records]
    assert [*map(repr, kinds)] == [*map(repr, values)]
    assert len(result.rows) == len(values)
    with pytest.raises(AblationError, match='has the key 1, of which JSON would make "1"'):
        ablate(tmp_path, rules=[], kind=[{1: 2}, {"1": 2}])
    assert [*ablate(tmp_path, rules=[], kind=[[{"1": 2}]]).records[0].params["kind"]] == [{"1": 2}]


def test_a_store_of_the_first_format_is_read(tmp_path):
    """As it was written before files said their format: no running process is known in it."""
    shutil.copytree(ROOT / "tests" / "stores" / "format1", store := tmp_path / "store")
    found = report(store)
    assert (len(found.records), len(found.failed), len(found.missing)) == (9, 4, 1)
    assert (found.title, found.lower_is_better) == ("Small", {"spread"})
    options = {"title": "Small", "lower_is_better": ["spread"], "lost_after": 0.2}
    given = {"seeds": [0, 1], "alpha": [0.1, 0.5], "fail": "head", "options": options}
    result = ablate(store, **given)
    assert result.from_store == 9
    assert len(result.records) == 10 and all(record in result.records for record in found.records)
    assert list((store / "claims").iterdir()) == []
    with pytest.raises(AblationError, match=r"was ablation_task.evaluate, not .*another store"):
        vcreg_fx.ablate(build, train, scaled, rules=[], seeds=[0], store=store)


@pytest.mark.parametrize("text", ["", "{", "\xff"])
def test_a_damaged_state_of_an_integration_is_named(tmp_path, text):
    from vcreg_fx.integrations.transformers import restore

    (tmp_path / "vcreg_fx.json").write_text(text, "latin-1")
    with pytest.raises(vcreg_fx.InsertionError, match=f"{tmp_path}/vcreg_fx.json is damaged"):
        restore(build(), tmp_path)
