"""The store: a folder with one folder a trial, shared by any number of processes."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ._claim import Claim, is_abandoned, is_running, make_claim
from ._records import Record
from ._trials import AblationError, Trial, to_json

RECORD, TRACEBACK = "trial.json", "traceback.txt"


class Store:
    """A folder of finished trials, of claims on running ones, and of plans.

    A trial's folder appears under its name in one step, whole; a process that is killed leaves
    nothing that looks finished.

    **Arguments:**

    - `path`: the folder.
    - `lost_after`: seconds after which a claim that is no longer renewed is given up.
    """

    def __init__(self, path: str | Path, lost_after: float = 60.0) -> None:
        self.path = Path(path).absolute()
        self.lost_after = lost_after
        self._trials, self._claims = self.path / "trials", self.path / "claims"
        self._plans = self.path / "plans"

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
        for plan in self.plans():
            for name, function in plan["functions"].items():
                if notes["functions"][name] != function:
                    raise AblationError(
                        f"The store {self.path} holds trials whose {name} was {function}, not "
                        f"{notes['functions'][name]}. Their numbers would be taken for those of "
                        "yours: use another store."
                    )
        text = to_json({**notes, "trials": [trial.id for trial in trials]})
        path = self._plans / f"{hashlib.sha256(text.encode()).hexdigest()[:12]}.json"
        if not path.exists():
            temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
            temporary.write_text(text, "utf-8")
            os.replace(temporary, path)

    def plans(self) -> list[dict[str, Any]]:
        """Return what was asked for, the oldest first."""
        paths = sorted(self._plans.glob("*.json"), key=lambda path: path.stat().st_mtime)
        return [json.loads(path.read_text("utf-8")) for path in paths]

    def is_done(self, trial: str) -> bool:
        """Whether a trial is finished, well or badly."""
        return (self._trials / trial / RECORD).exists()

    def is_running(self, trial: str) -> bool:
        """Whether a living process works on a trial."""
        return is_running(self._claims, trial, self.lost_after)

    def is_abandoned(self, trial: str) -> bool:
        """Whether a process began a trial and was lost."""
        return is_abandoned(self._claims, trial, self.lost_after)

    def claim(self, trial: str) -> Claim | None:
        """Return a claim on a trial for this process; None if it is taken or done."""
        claim = make_claim(self._claims, trial, self.lost_after)
        if claim is not None and self.is_done(trial):
            with claim:  # finished between the question and the claim
                return None
        return claim

    def publish(self, record: Record) -> None:
        """Put a finished trial into the store, in one step; the first record of a trial stays."""
        made = self._trials / f".{record.id}.{uuid.uuid4().hex}"
        made.mkdir()
        text = json.dumps(record.to_dict(), indent=2, ensure_ascii=False)
        (made / RECORD).write_text(text + "\n", "utf-8")
        if record.traceback is not None:
            (made / TRACEBACK).write_text(record.traceback, "utf-8")
        try:
            os.rename(made, self._trials / record.id)
        except OSError:
            if not self.is_done(record.id):
                raise
            shutil.rmtree(made)

    def read(self, trial: str) -> Record:
        """Return the record of a finished trial."""
        return Record(**json.loads((self._trials / trial / RECORD).read_text("utf-8")))

    def records(self) -> list[Record]:
        """Return every finished trial, in the order of the plans."""
        planned = [trial for plan in self.plans() for trial in plan["trials"]]
        found = {path.parent.name for path in self._trials.glob(f"*/{RECORD}")}
        found = {name for name in found if not name.startswith(".")}
        order = [name for name in dict.fromkeys(planned) if name in found]
        return [self.read(name) for name in [*order, *sorted(found - set(order))]]

    def missing(self) -> list[str]:
        """Return the planned trials that are not finished."""
        planned = dict.fromkeys(trial for plan in self.plans() for trial in plan["trials"])
        return [trial for trial in planned if not self.is_done(trial)]

    def forget_failure(self, trial: str) -> None:
        """Set a failed trial aside, so that it is run again; its traceback is kept."""
        if not self.is_done(trial) or self.read(trial).status != "failed":
            return
        aside = self._trials / f".failed.{trial}.{uuid.uuid4().hex}"
        try:
            os.rename(self._trials / trial, aside)
        except FileNotFoundError:
            return  # another process has just done the same
