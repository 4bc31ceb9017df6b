"""The store: a folder with one folder a trial, shared by any number of processes."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import uuid
import warnings
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

from .._shared.files import sync, write_text
from .._shared.progress import Progress
from ._claim import Claim, Claims
from ._records import FORMAT, STORE, Record, check_format
from ._trials import AblationError, Trial, to_json

RECORD, TRACEBACK = "trial.json", "traceback.txt"
_MANY = 500  # files, which take a while to read
_T = TypeVar("_T")


class DamagedError(AblationError):
    """A file of a store cannot be read. The message names it, and says why."""


class UnpublishedError(AblationError):
    """A trial is finished, and its record cannot be written.

    **Attributes:**

    - `record`: the `Record`. The next call of `ablate` in the same process writes it.
    """

    record: Record


class Store:
    """A folder of finished trials, of claims on running ones, and of plans.

    A trial's folder appears under its name in one step, whole; a process that is killed leaves
    nothing that looks finished.

    **Arguments:**

    - `path`: the folder.
    - `lost_after`: seconds after which a claim that does not change is given up.
    """

    def __init__(self, path: str | Path, lost_after: float = 60.0) -> None:
        self.path = Path(path).absolute()
        self.lost_after = lost_after
        self._trials, self._plans = self.path / "trials", self.path / "plans"
        self._claims = self.path / "claims"
        self.claims = Claims(self._claims, lost_after)
        self.damaged: dict[Path, DamagedError] = {}  # what `records` and `plans` had to leave out

    def create(self) -> None:
        """Make the folder, if it does not exist.

        **Raises:** `OSError` if it cannot be made or written to.
        """
        for folder in (self._trials, self._claims, self._plans):
            folder.mkdir(parents=True, exist_ok=True)

    def require(self) -> None:
        """Check that the store is there.

        **Raises:** `AblationError` if this process does not see it.
        """
        if not self._trials.is_dir():
            raise AblationError(
                f"There is no ablation at {self.path}. A store is made by vcreg_fx.ablate; workers "
                "on other machines must see it under the same path, on a shared file system."
            )

    def add_plan(self, trials: Iterable[Trial], notes: dict[str, Any]) -> None:
        """Remember which trials were asked for, and how to show them.

        **Raises:** `AblationError` if the store belongs to other functions.
        """
        plans = self.plans()
        for plan in plans:
            for name, function in plan["functions"].items():
                mine = notes["functions"][name]
                if function != (mine if STORE in plan else _as_before(mine)):
                    raise AblationError(
                        f"The store {self.path} holds trials whose {name} was {function}, not "
                        f"{mine}. Their numbers would be taken for those of yours: use another "
                        "store."
                    )
        text = to_json({**notes, "trials": [trial.id for trial in trials]})
        path = self._plans / f"{hashlib.sha256(text.encode()).hexdigest()[:12]}.json"
        if not path.exists():
            counted = {STORE: FORMAT, "number": len(plans), **json.loads(text)}
            write_text(path, to_json(counted))

    def plans(self) -> list[dict[str, Any]]:
        """Return what was asked for, the oldest first."""
        paths = sorted(self._plans.glob("*.json"), key=lambda path: path.stat().st_mtime)
        found = self._read_all(paths, lambda path: _read(path, _plan_of))
        return sorted(found, key=lambda plan: plan.get("number", 0))

    def is_done(self, trial: str) -> bool:
        """Whether a trial is finished, well or badly."""
        return (self._trials / trial / RECORD).exists()

    def claim(self, trial: str, *, alone: bool) -> Claim | None:
        """Return a claim on a trial for this process; None if it is taken or done."""
        claim = self.claims.make(trial, alone=alone)
        if claim is None:
            return None
        # It may have been finished since it was asked for. What a network file system's client has
        # seen of a folder may be old, until it changes something there itself.
        probe = self._trials / f".probe.{uuid.uuid4().hex}"
        try:
            probe.touch()
            probe.unlink()
        except OSError:
            claim.give_back(finished=False)
            raise
        if not self.is_done(trial):
            return claim
        claim.give_back(finished=True)
        return None

    def publish(self, record: Record) -> None:
        """Put a finished trial into the store, in one step; the first record of a trial stays.

        **Raises:** `UnpublishedError` if it cannot be written; then the store is as it was.
        """
        made = self._trials / f".{record.id}.{uuid.uuid4().hex}"
        try:
            made.mkdir()
            text = json.dumps(record.to_dict(), indent=2, ensure_ascii=False)
            write_text(made / RECORD, text + "\n")
            if record.traceback is not None:
                write_text(made / TRACEBACK, record.traceback)
            os.rename(made, self._trials / record.id)
            sync(self._trials)
        except OSError as error:
            shutil.rmtree(made, ignore_errors=True)
            if not self.is_done(record.id):
                raise self._unpublished(record, error) from error

    def _unpublished(self, record: Record, error: OSError) -> UnpublishedError:
        free = shutil.disk_usage(self.path).free / 1e6
        room = (
            f" {free:.1f} MB are free. Free some space there (what lies in {self._trials} under a "
            "name that begins with a dot was set aside, and may go)."
            if error.errno in {errno.ENOSPC, errno.EDQUOT}
            else ""
        )
        kept = (
            " It is kept in memory: if ablate is called again in this process, it is written "
            f"without training again; it is also the error's `record`, with {record.metrics}."
            if record.status == "done"
            else f" It failed ({record.reason}), perhaps because of that, and will be run again."
        )
        found = UnpublishedError(
            f"{record.name} is finished, and its record cannot be written to {self.path}: "
            f"{error.strerror}.{room}{kept}"
        )
        found.record = record
        return found

    def read(self, trial: str) -> Record:
        """Return the record of a finished trial.

        **Raises:** `DamagedError` if it cannot be read.
        """
        return _record(self._trials / trial / RECORD)

    def records(self, trials: Sequence[str] | None = None) -> list[Record]:
        """Return the finished ones of some trials; by default of all, in the order of the plans."""
        if trials is None:
            planned = dict.fromkeys(trial for plan in self.plans() for trial in plan["trials"])
            others = {path.name for path in self._trials.iterdir()} - {*planned}
            trials = [*planned, *sorted(name for name in others if name[0] != ".")]
        there = [trial for trial in trials if (self._trials / trial).is_dir()]
        return self._read_all([self._trials / trial / RECORD for trial in there], _record)

    def missing(self, records: Sequence[Record], trials: Sequence[str] | None = None) -> list[str]:
        """Return those of some trials, by default of the planned ones, that have no record."""
        if trials is None:
            trials = [trial for plan in self.plans() for trial in plan["trials"]]
        found = {record.id for record in records}
        return [trial for trial in dict.fromkeys(trials) if trial not in found]

    def mend(self, trials: Sequence[str]) -> list[Record]:
        """Set aside what of some trials and of the plans cannot be read, with a warning each.

        **Returns:** the records of the others that are finished.
        """
        self.plans()
        found = self.records(trials)
        for path, error in self.damaged.items():
            of_trial = path.name == RECORD
            aside = _set_aside(path.parent if of_trial else path, "damaged")
            then = "; its trial is run again" if of_trial else ""
            warnings.warn(f"{error} It was set aside as {aside}{then}.", stacklevel=3)
        self.damaged.clear()
        return found

    def forget(self, record: Record) -> None:
        """Set a failed trial aside, so that it is run again; its traceback is kept."""
        _set_aside(self._trials / record.id, "failed")

    def _read_all(self, paths: Sequence[Path], read: Callable[[Path], _T]) -> list[_T]:
        """Read files; those that cannot be read are left out and kept in `damaged`."""
        found = []
        shown = None if len(paths) > _MANY else False
        with Progress("reading", len(paths), shown=shown, passing=True) as bar:
            for path in paths:
                try:
                    found.append(read(path))
                except DamagedError as error:
                    self.damaged[path] = error
                bar.advance()
        return found


def _record(path: Path) -> Record:
    return _read(path, lambda found: Record.of_data(found, path.parent.name))


def _read(path: Path, make: Callable[[dict[str, Any]], _T]) -> _T:
    try:
        found = json.loads(path.read_text("utf-8"))
        if not isinstance(found, dict):
            raise ValueError(f"it holds {found!r:.60}")
        return make(found)
    except FileNotFoundError:
        reason = "it is not there, and its folder is"
    except UnicodeDecodeError as error:
        reason = f"it is not UTF-8 at byte {error.start}"
    except json.JSONDecodeError as error:
        size = path.stat().st_size
        reason = f"it breaks off or is no JSON ({error}; {size} bytes)" if size else "it is empty"
    except (ValueError, RecursionError) as error:
        reason = str(error)
    raise DamagedError(f"{path} cannot be read: {reason}.")


def _plan_of(found: dict[str, Any]) -> dict[str, Any]:
    check_format(found.get(STORE))
    functions, trials = found.get("functions"), found.get("trials")
    if (
        not isinstance(functions, dict)
        or functions.keys() != {"build", "train", "evaluate"}
        or not isinstance(trials, list)
        or not all(isinstance(trial, str) for trial in trials)
        or not isinstance(found.get("number", 0), int)
    ):
        raise ValueError("it holds no plan")
    return found


def _set_aside(path: Path, why: str) -> Path:
    """Rename a file or folder, if another process has not just done so, and return its new name."""
    aside = path.with_name(f".{why}.{path.name}.{uuid.uuid4().hex}")
    with suppress(FileNotFoundError):
        os.rename(path, aside)
    return aside


def _as_before(function: str) -> str:
    """Return how a store of format 1 names a function: its module without the packages around."""
    module, _, name = function.partition(":")
    return f"{module.rpartition('.')[2]}.{name}"
