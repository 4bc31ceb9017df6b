"""More than 500 faults, injected at random moments into each way to run; see `tests.faults`.

How many of each kind, and what is promised, stands in docs/promises.md.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.faults import KINDS

ROOT = Path(__file__).resolve().parent.parent
COUNTS = {
    "serial": 120,
    "threads": 40,
    "pool": 40,
    "shared": 60,
    "shards": 40,
    "processes": 2,
    "timeout": 2,
    "signals": 40,
    "command": 2,
    "dask": 6,
    "full": 60,
    "small_disk": 20,
    "damaged": 60,
    "checkpoints": 20,
    "training": 40,
    "exports": 20,
    "clocks": 60,
    "network": 500,  # answers that come late, which are no faults
}


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="processes are forked")
@pytest.mark.parametrize("kind", KINDS)
def test_nothing_is_lost(kind):
    command = [sys.executable, "-m", "tests.faults", kind, str(COUNTS[kind])]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-8000:]
    found = json.loads(done.stdout.splitlines()[-1])[kind]
    if kind == "small_disk" and not found:
        pytest.skip("no small file system can be mounted here")
    assert found >= COUNTS[kind] or (kind == "dask" and found > 1)
    print(kind, found)


def test_there_are_500_faults_and_the_page_tells_how_many():
    assert COUNTS.keys() == KINDS.keys()
    assert sum(count for kind, count in COUNTS.items() if kind != "network") >= 500
    page = (ROOT / "docs" / "promises.md").read_text("utf-8")
    assert set(re.findall(r"^\| `(\w+)` \|", page, re.MULTILINE)) == {*COUNTS}
