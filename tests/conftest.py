"""Shared by all tests: one thread, fixed seeds, no time limit on slow machines."""

from __future__ import annotations

import sys

import pytest
import torch
from hypothesis import HealthCheck, settings

settings.register_profile(
    "default", deadline=None, max_examples=60, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("default")
torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _compiler() -> None:
    """Clear the compiler, which gives a function up at its ninth form, counted over all tests."""
    if "torch._dynamo" in sys.modules:
        torch._dynamo.reset()


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run the tests that share something of their file in one process, so that it is made once."""
    for item in items:
        fixtures = item._fixtureinfo.name2fixturedefs.items()
        shared = [name for name, found in fixtures if found[-1].scope == "module"]
        if shared:
            item.add_marker(pytest.mark.xdist_group(f"{item.path.stem}-{shared[0]}"))
