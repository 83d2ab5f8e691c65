"""Which tests coverage is measured with."""

from __future__ import annotations

import os
import zlib
from collections.abc import Generator
from typing import Final

import coverage
import pytest

# Python 3.11 runs a third slower while it is traced, and the same lines are reached by many tests. Every third test,
# always the same ones, reaches most of them; the figure is a lower bound. `make test COVERAGE=all` traces all.
_EVERY: Final = 1 if os.environ.get("COVERAGE") == "all" else 3


def measures(nodeid: str) -> bool:
    """Says whether coverage is measured while this test runs."""
    return zlib.crc32(nodeid.encode()) % _EVERY == 0


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    """Stops measuring for the tests that it is not measured with."""
    running = coverage.Coverage.current()
    if running is None or measures(item.nodeid):
        return (yield)
    running.stop()
    try:
        return (yield)
    finally:
        running.start()
