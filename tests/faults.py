"""Inject faults and see what is lost: kills at random moments, full disks, damaged files, clocks.

``pytest -m slow -k faults`` runs all kinds; ``python -m tests.faults serial 100`` one of them. Each
kind prints how many faults it injected, and raises where a promise is broken. Most processes are
forks of this one, which has imported everything, so that hundreds of them take a minute.
"""

from __future__ import annotations

import contextlib
import errno
import io
import json
import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

import vcreg_fx
from tests.ablation_task import build
from vcreg_fx.ablation import AblationError, AblationOptions, _claim, report
from vcreg_fx.experiments.training import TrainSettings, fit
from vcreg_fx.exporting import read_metadata
from vcreg_fx.exporting._folder import import_folder

ROOT = Path(__file__).resolve().parent.parent
INPUTS = (torch.zeros(2, 4),)
RULES, SEEDS = ("blocks", "head"), tuple(range(4))
NEVER = 10**6  # retries: who is killed from outside is not to be given up


# A sweep whose trials take a moment -----------------------------------------------------------


def train(model, trial):
    """Note that the trial began, then train so long that it can be killed there."""
    if log := os.environ.get("FAULTS_LOG"):
        (Path(log) / f"{trial.id}~{time.time_ns()}~{os.getpid()}").touch()
    longest = float(os.environ.get("FAULTS_SLEEP", "0.03"))
    time.sleep(random.Random(time.time_ns()).uniform(0, longest))
    x, y = torch.randn(32, 4), torch.arange(32) % 3
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(2):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()


def evaluate(model, trial):
    torch.manual_seed(1234)
    return {"mean": float(model(torch.randn(64, 4)).detach().mean())}


def sweep(store, executor=None, seeds=SEEDS, **options):
    options = {"retries": NEVER, "lost_after": 5.0, "progress": False, **options}
    options = AblationOptions(example_inputs=INPUTS, **options)
    return vcreg_fx.ablate(
        build, train, evaluate, rules=RULES, seeds=seeds, store=store, executor=executor,
        options=options,
    )  # fmt: skip


def threads(store):
    with ThreadPoolExecutor(3) as pool:
        sweep(store, pool)


def pool(store):
    with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("fork")) as workers:
        sweep(store, workers)


# Each way to run: the processes that it takes, and how many trials these run at once.
WAYS: dict[str, tuple[list[Callable[[Path], Any]], int]] = {
    "serial": ([sweep], 1),
    "threads": ([threads], 1),
    "pool": ([pool], 2),
    "shared": ([sweep, sweep], 2),
    "shards": ([partial(sweep, shard=(1, 2)), partial(sweep, shard=(2, 2))], 2),
    "processes": ([partial(sweep, executor=2)], 2),
    "timeout": ([partial(sweep, timeout=600.0, seeds=(0,))], 1),
}


class Ground:
    """A store with what has to be true of it, whatever happened."""

    def __init__(self, folder: Path, expected: dict[str, dict[str, float]]) -> None:
        self.store, self.log = folder / "store", folder / "log"
        self.log.mkdir(parents=True)
        os.environ["FAULTS_LOG"] = str(self.log)
        self.expected = expected
        self._finished: dict[str, int] = {}

    def check(self) -> None:
        """See that what was finished stays as it was, and is right."""
        paths = self.store.glob("trials/[!.]*/trial.json")
        now = {path.parent.name: path.stat().st_mtime_ns for path in paths}
        assert self._finished.items() <= now.items(), "a finished trial was lost or made again"
        self._finished = now
        if now:
            found = report(self.store)
            assert not found.damaged, found.damaged
            for record in found.records:
                assert record.metrics == self.expected[record.id], record
        for path in self.log.iterdir():
            name, began, _ = path.name.split("~")
            assert int(began) <= now.get(name, time.time_ns()), f"{name} ran when it was finished"

    def finish(self, lost: int, **options) -> None:
        """Run what is left; no more than `lost` trials may have been run again."""
        result = sweep(self.store, **options)
        self.check()
        assert len(result.records) == len(self._finished), result.missing
        assert all(record.status == "done" for record in result.records)
        assert list((self.store / "claims").iterdir()) == []
        runs = Counter(path.name.partition("~")[0] for path in self.log.iterdir())
        assert set(runs) == set(self._finished)
        assert runs.total() <= len(runs) + lost, f"{runs.total()} runs, {lost} of them lost"

    @property
    def is_complete(self) -> bool:
        return self._finished.keys() == self.expected.keys()


@contextlib.contextmanager
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="faults-") as made:
        yield Path(made)


def expected(**options) -> dict[str, dict[str, float]]:
    os.environ.pop("FAULTS_LOG", None)
    with folder() as made:
        return {record.id: record.metrics for record in sweep(made / "store", **options).records}


def fork(call: Callable[[], Any], output: Path) -> int:
    """Run a call in a fork, the leader of a group of processes; 0 is its code if it returns."""
    if pid := os.fork():
        return pid
    code = 1
    try:
        os.setsid()
        stream = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        os.dup2(stream, 1)
        os.dup2(stream, 2)
        call()
        code = 0
    except KeyboardInterrupt:
        code = 130
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        os._exit(code)


def wait_for(pid: int, seconds: float) -> int | None:
    """Return the code of a process, below 0 for a signal; None if it runs on."""
    end = time.monotonic() + seconds
    while True:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() > end:
            return None
        time.sleep(0.001)


def end_group(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)


def children(pid: int) -> list[int]:
    with contextlib.suppress(OSError):
        return [int(text) for text in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return []


# Kills ----------------------------------------------------------------------------------------


def kills(way: str, count: int, seed: int = 0, signals=(signal.SIGKILL,)) -> int:
    """Kill a process of a way to run at a random moment, again and again."""
    calls, width = WAYS[way]
    spawning = way in {"processes", "timeout"}  # their workers import everything anew
    longest = 15.0 if spawning else 0.5
    draw = random.Random(f"{way} {seed}")
    known = expected(seeds=(0,)) if way == "timeout" else expected()
    done = 0
    while done < count:
        with folder() as made:
            ground, lost = Ground(made, known), 0
            while done < count and not ground.is_complete:
                pids = [fork(partial(call, ground.store), made / "out") for call in calls]
                time.sleep(draw.uniform(0, longest))
                victim = draw.choice(pids)
                workers = children(victim)
                if workers and draw.random() < 0.6:
                    victim = draw.choice(workers)
                with contextlib.suppress(ProcessLookupError):
                    os.kill(victim, draw.choice(signals))
                    done += 1
                    lost += width
                if victim not in pids:  # a worker: its sweep goes on by itself
                    codes = [wait_for(pid, 300) for pid in pids]
                    assert codes == [0] * len(pids), (codes, (made / "out").read_text())
                for pid in pids:
                    if signals == (signal.SIGKILL,) or len(pids) > 1:
                        end_group(pid)
                    if victim in pids:
                        assert wait_for(pid, 60) is not None
                lost += width * (len(pids) - 1)  # the others of the way were ended, too
                ground.check()
            ground.finish(lost, seeds=(0,) if way == "timeout" else SEEDS)
    return done


def signalled(count: int) -> int:
    """SIGTERM and SIGINT instead of SIGKILL."""
    return kills("serial", count, signals=(signal.SIGTERM, signal.SIGINT))


def command(count: int) -> int:
    """Kill the command line, with two workers, which import everything anew."""
    draw = random.Random(0)
    known = expected()
    with folder() as made:
        ground, done = Ground(made, known), 0
        while done < count:
            arguments = [
                *("ablate", "--task", "tests.faults", "--store", str(ground.store)),
                *("--rule", "blocks", "--rule", "head", "--seeds", "4", "--workers", "2"),
            ]
            process = subprocess.Popen(
                [sys.executable, "-m", "vcreg_fx", *arguments], cwd=ROOT,
                stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
            )  # fmt: skip
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(draw.uniform(0, 25))
            process.kill()
            process.wait()
            time.sleep(draw.uniform(0, 0.1))  # its workers notice that it is gone
            done += 1
            ground.check()
            if ground.is_complete and done < count:
                shutil.rmtree(ground.store)
                shutil.rmtree(ground.log)
                ground = Ground(made, known)
        ground.finish(2 * done)
    return done


def dask(count: int) -> int:
    """Kill the two workers of a Dask cluster in turn, while trials run on them.

    Dask runs a trial anew until it has lost four workers, and then gives it up; half of the faults
    are injected where it gives up at once.
    """
    import dask
    import distributed  # noqa: F401 - it brings the setting

    half = count // 2
    with dask.config.set({"distributed.scheduler.allowed-failures": 0}):
        given_up = workers_of_dask(half)
    return given_up + workers_of_dask(count - half)


def workers_of_dask(count: int) -> int:
    """Kill workers of a new cluster in turn, at most so many times."""
    import distributed

    known = expected(seeds=range(8))
    with folder() as made:
        ground = Ground(made, known)
        settings = {"FAULTS_LOG": str(ground.log), "FAULTS_SLEEP": "3"}
        cluster = distributed.LocalCluster(
            n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None, env=settings
        )
        killed: list[int] = []
        over = threading.Event()

        def name_and_pid(dask_worker):
            return dask_worker.name, os.getpid()

        def kill_in_turn() -> None:
            while len(killed) < count and not over.wait(0.2):
                began = len(list(ground.log.iterdir()))
                with contextlib.suppress(OSError):  # one ends while it is asked
                    known = dict(client.run(name_and_pid).values())
                    if (pid := known.get(len(killed) % 2)) is not None and len(known) == 2:
                        os.kill(pid, signal.SIGKILL)
                        killed.append(pid)
                        while len(list(ground.log.iterdir())) <= began and not over.wait(0.01):
                            pass  # until a trial has begun again

        with cluster, distributed.Client(cluster) as client:
            client.wait_for_workers(2, timeout=240)
            killer = threading.Thread(target=kill_in_turn)
            killer.start()
            result = sweep(ground.store, client.get_executor(), seeds=range(8))
            assert len(result.records) == len(known)
            over.set()
            killer.join()
        ground.check()
        assert {*killed[::2]}.isdisjoint(killed[1::2]) and len(killed) > 1
        ground.finish(2 * len(killed), seeds=range(8))
    return len(killed)


# Full disks -----------------------------------------------------------------------------------


class Full:
    """A disk that is full from the n-th operation on that would write to a folder."""

    def __init__(self, where: Path, after: int) -> None:
        self.where, self.left, self.hits = str(where), after, 0
        self._real = {(io, "open"): io.open, **{(os, n): getattr(os, n) for n in self.NAMES}}

    NAMES = ("mkdir", "rename", "replace", "link", "fsync", "utime")

    def __enter__(self):
        for (module, name), real in self._real.items():
            setattr(module, name, self._failing(name, real))
        return self

    def __exit__(self, *_):
        for (module, name), real in self._real.items():
            setattr(module, name, real)

    def _failing(self, name, real):
        def call(path, *args, **kwargs):
            mode = args[0] if args else kwargs.get("mode", "r")
            writes = name != "open" or any(letter in mode for letter in "wxa")
            if writes and (name == "fsync" or str(path).startswith(self.where)):
                self.left -= 1
                if self.left < 0:
                    self.hits += 1
                    known = [] if isinstance(path, int) else [str(path)]  # as the system does
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), *known)
            return real(path, *args, **kwargs)

        return call


def stopped(ground: Ground, **options) -> bool:
    """Run a sweep and return whether the disk stopped it, which has to be said."""
    try:
        sweep(ground.store, **options)
    except (AblationError, OSError) as error:
        text = str(error)
    else:
        return False
    assert str(ground.store) in text and "No space left" in text, text
    return True


def full(count: int) -> int:
    """Let the disk be full from each operation on, then free; nothing finished is run again."""
    known, done, after = expected(seeds=(0, 1)), 0, 0
    while done < count:
        with folder() as made:
            ground = Ground(made, known)
            with Full(made / "store", after) as disk:
                failed = stopped(ground, seeds=(0, 1))
            assert disk.hits or not failed
            done += disk.hits > 0
            after = after + 1 if disk.hits else 0
            ground.check() if ground.store.is_dir() else None
            runs = len(list(ground.log.iterdir()))
            assert runs <= len(known)
            ground.finish(0, seeds=(0, 1))
    return done


def small_disk(count: int) -> int:
    """Run out of a small file system in memory again and again; 0 where none can be mounted."""
    known, draw = expected(), random.Random(0)
    with folder() as made:
        disk = made / "disk"
        disk.mkdir()
        mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "none", str(disk)]
        if shutil.which("mount") is None or subprocess.run(mount, check=False).returncode:
            return 0
        done = 0
        try:
            while done < count:
                ground = Ground(made / f"{done}", known)
                ground.store = disk / "store"
                while done < count and not ground.is_complete:
                    ballast = disk / "ballast"
                    with contextlib.suppress(OSError), ballast.open("wb", buffering=0) as file:
                        while True:
                            file.write(bytes(4096))
                    size = ballast.stat().st_size
                    os.truncate(ballast, max(size - 4096 * draw.randrange(12), 0))
                    done += stopped(ground)
                    ballast.unlink()
                    ground.check() if ground.store.is_dir() else None
                ground.finish(0)
                shutil.rmtree(ground.store)
        finally:
            subprocess.run(["umount", str(disk)], check=True)
    return done


# Damaged files --------------------------------------------------------------------------------


def spoiled(text: bytes, draw: random.Random) -> tuple[str, bytes | None]:
    """Return what happens to a file, and what it holds then; None if it is gone."""
    somewhere = draw.randrange(len(text))
    return draw.choice(
        [
            ("cut off", text[:somewhere]),
            ("empty", b""),
            ("zeros at the end", text[:somewhere] + bytes(len(text) - somewhere)),
            ("zeros", bytes(len(text))),
            ("not UTF-8", text[:somewhere] + b"\xff\xfe" + text[somewhere:]),
            ("a list", b"[]"),
            ("a number", b"7"),
            ("newer", json.dumps({"store": 9, "versions": {"store": "9"}}).encode()),
            ("gone", None),
        ]
    )


def damaged(count: int) -> int:
    """Spoil records and plans of a store; what cannot be read is named and made again."""
    known, draw, done = expected(), random.Random(0), 0
    with folder() as made:
        ground = Ground(made, known)
        while done < count:
            sweep(ground.store)
            files = [*ground.store.glob("trials/[!.]*/trial.json"), *ground.store.glob("plans/*")]
            path = draw.choice([path for path in files if not path.name.startswith(".")])
            how, content = spoiled(path.read_bytes(), draw)
            path.unlink() if content is None else path.write_bytes(content)
            done += 1
            shown = report(ground.store)
            with warnings.catch_warnings(record=True) as said:
                warnings.simplefilter("always")
                result = sweep(ground.store)
            plan_is_gone = content is None and "plans" in path.parts
            if not plan_is_gone:
                assert any(str(path) in text for text in shown.damaged), (path, how)
                assert any(str(path) in str(warning.message) for warning in said), (path, how)
            assert {record.id: record.metrics for record in result.records} == known
    return done


def checkpoints(count: int) -> int:
    """Spoil checkpoints in any byte; training ends with the same weights all the same."""
    draw, done = random.Random(0), 0
    with folder() as made:
        path = made / "one.pt"
        whole = trained(path)
        while done < count:
            text = bytearray(path.read_bytes())
            if draw.random() < 0.5:
                text[draw.randrange(len(text))] ^= 1 << draw.randrange(8)
                content: bytes | None = bytes(text)
            else:
                _, content = spoiled(bytes(text), draw)
            path.unlink() if content is None else path.write_bytes(content)
            done += 1
            assert torch.equal(trained(path), whole)
    return done


def trained(path: Path, epochs: int = 4) -> torch.Tensor:
    """Train in a fork: one that begins where this process used autograd could not."""

    def run() -> None:
        torch.manual_seed(3)
        np.random.seed(3)
        model = vcreg_fx.insert(build(), "head", example_inputs=INPUTS, beta=0.1)
        data = torch.utils.data.TensorDataset(torch.randn(64, 4), torch.arange(64) % 3)
        settings = TrainSettings(epochs=epochs, batch_size=16, learning_rate=0.05)
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            fit(model, data, settings, seed=1, checkpoint=path, progress=False)
        assert all(str(path) in str(warning.message) for warning in said), said
        torch.save(nn.utils.parameters_to_vector(model.parameters()), path.parent / "weights")

    path.parent.mkdir(exist_ok=True)
    pid = fork(run, path.parent / "out")
    assert wait_for(pid, 300) == 0, (path.parent / "out").read_text()
    (path.parent / "out").unlink()
    found: torch.Tensor = torch.load(path.parent / "weights")
    (path.parent / "weights").unlink()
    return found.detach()


def training(count: int) -> int:
    """Kill training at random moments; it ends with the same weights, and leaves nothing behind."""
    draw, done = random.Random(0), 0
    with folder() as made:
        whole = trained(made / "whole" / "one.pt", 12)
        path = made / "part" / "one.pt"
        while done < count:
            pid = fork(partial(trained, path, 12), made / "out")
            time.sleep(draw.uniform(0, 0.3))
            if wait_for(pid, 0) is None:
                for victim in (*children(pid), pid):  # the one that trains, and who waits for it
                    os.kill(victim, signal.SIGKILL)
                wait_for(pid, 60)
                done += 1
            elif path.parent.exists():
                assert torch.equal(trained(path, 12), whole)
                assert {file.name for file in path.parent.iterdir()} == {"one.pt", "one.pt.before"}
                shutil.rmtree(path.parent)
        assert torch.equal(trained(path, 12), whole)
    return done


def exports(count: int) -> int:
    """Kill exports at random moments: code, weights and metadata are those of one export."""
    draw, done = random.Random(0), 0
    with folder() as made:
        path = made / "exported"

        def write(number: int) -> None:
            model = vcreg_fx.insert(build(), "blocks", example_inputs=INPUTS, alpha=float(number))
            with torch.no_grad():
                for parameter in model.parameters():
                    parameter.fill_(number)
            vcreg_fx.export(model, path, example_inputs=INPUTS, check=False)

        write(0)  # imports what it needs
        began = time.monotonic()
        write(0)
        longest = 2 * (time.monotonic() - began)
        while done < count:
            pid = fork(partial(write, done + 1), made / "out")
            time.sleep(draw.uniform(0, longest))
            code = wait_for(pid, 0)
            if code is None:
                os.kill(pid, signal.SIGKILL)
                wait_for(pid, 60)
                done += 1
            else:
                assert code == 0, (made / "out").read_text()
            if path.exists():
                alphas = {site["alpha"] for site in read_metadata(path)["sites"]}
                model = import_folder(path).load()
                weights = {float(p.detach().flatten()[0]) for p in model.parameters()}
                assert alphas == weights == {site.alpha for site in vcreg_fx.sites(model)}
        write(done + 1)  # what the kills left is in nobody's way
        assert {site["alpha"] for site in read_metadata(path)["sites"]} == {done + 1}
    return done


# Clocks, and file systems that show changes late -----------------------------------------------


def on_machine(name: str) -> None:
    """Let this process seem to run on a machine of its own, so that only its claims tell of it."""
    _claim._machine = lambda: name


def clocks(count: int) -> int:
    """Set the times of claims back and forth while two machines share a store."""
    known, draw, done = expected(), random.Random(0), 0
    while done < count:
        with folder() as made:
            ground = Ground(made, known)

            def run(name: str, store: Path) -> None:
                on_machine(name)
                sweep(store, lost_after=30.0)

            calls = [partial(run, name, ground.store) for name in ("one", "two")]
            pids = [fork(call, made / "out") for call in calls]
            codes: dict[int, int | None] = dict.fromkeys(pids)
            while None in codes.values():
                for path in list(ground.store.glob("claims/*")):
                    moment = time.time() + draw.choice([-1e8, -3600, 3600, 1e8])
                    with contextlib.suppress(FileNotFoundError):
                        os.utime(path, (moment, moment))
                        done += 1
                for pid in [pid for pid, code in codes.items() if code is None]:
                    codes[pid] = wait_for(pid, 0.005)
            assert set(codes.values()) == {0}, (made / "out").read_text()
            ground.finish(0)
    return done


class Late:
    """A client of a file server: what it has seen of files and folders, it believes for a while.

    Opening a file asks the server, and so does everything in a folder that the client has changed.
    """

    def __init__(self, seconds: float) -> None:
        self.seconds, self.late = seconds, 0
        self.seen: dict[tuple[str, str], tuple[float, Any]] = {}

    def start(self) -> None:
        for name in ("stat", "listdir", "scandir"):
            setattr(os, name, self._reading(name, getattr(os, name)))
        for name in ("mkdir", "rename", "replace", "unlink", "utime", "rmdir"):
            setattr(os, name, self._changing(getattr(os, name)))
        real = io.open

        def opened(path, mode="r", *args, **kwargs):
            if any(letter in mode for letter in "wxa"):
                self.forget(path)
            return real(path, mode, *args, **kwargs)

        io.open = opened

    def forget(self, path) -> None:
        parent = os.path.dirname(str(path))
        self.seen = {
            key: known for key, known in self.seen.items() if not key[1].startswith(parent)
        }

    def _changing(self, real):
        def call(path, *args, **kwargs):
            self.forget(path)
            for other in args[:1]:
                self.forget(other)
            return real(path, *args, **kwargs)

        return call

    def _reading(self, name, real):
        def call(path=".", *args, **kwargs):
            if not isinstance(path, (str, Path)) or "faults-" not in str(path):
                return real(path, *args, **kwargs)
            key, now = (name, str(path)), time.monotonic()
            since, known = self.seen.get(key, (-1e9, None))
            if now - since > self.seconds:
                try:
                    known = list(real(path)) if name == "scandir" else real(path, *args, **kwargs)
                except OSError as error:
                    known = error
                self.seen[key] = now, known
            else:
                self.late += 1
            if isinstance(known, OSError):
                raise known
            return contextlib.nullcontext(iter(known)) if name == "scandir" else known

        return call


def network(count: int) -> int:
    """Two machines share a store on a file system that shows changes late; each trial runs once."""
    known, done = expected(), 0
    while done < count:
        with folder() as made:
            ground = Ground(made, known)

            def run(name: str, seconds: float, made: Path) -> None:
                on_machine(name)
                client = Late(seconds)
                client.start()
                sweep(made / "store", lost_after=30.0)
                (made / name).write_text(str(client.late))

            calls = [partial(run, *how, made) for how in (("one", 0.3), ("two", 1.5))]
            pids = [fork(call, made / "out") for call in calls]
            codes = [wait_for(pid, 300) for pid in pids]
            assert codes == [0, 0], (codes, (made / "out").read_text())
            late = [int((made / name).read_text()) for name in ("one", "two")]
            assert min(late) > 0, "nothing was late"
            done += sum(late)
            ground.finish(0)
    return done


KINDS: dict[str, Callable[[int], int]] = {
    **{way: lambda count, way=way: kills(way, count) for way in WAYS},
    "signals": signalled,
    "command": command,
    "dask": dask,
    "full": full,
    "small_disk": small_disk,
    "damaged": damaged,
    "checkpoints": checkpoints,
    "training": training,
    "exports": exports,
    "clocks": clocks,
    "network": network,
}

if __name__ == "__main__":
    torch.set_num_threads(1)
    warnings.simplefilter("ignore", DeprecationWarning)  # of forks, where threads might run
    kind, count = sys.argv[1], int(sys.argv[2])
    print(json.dumps({kind: KINDS[kind](count)}))
