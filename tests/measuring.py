"""Decides during which tests coverage is measured."""

from __future__ import annotations

import os
import zlib
from collections.abc import Generator
from typing import Final

import coverage
import pytest

# Python 3.11 is a third slower while coverage traces it, and many tests reach the same lines. Every third test, always
# the same ones, reaches most of them, so the figure is a lower bound. `make test COVERAGE=all` traces all tests.
_EVERY: Final = 1 if os.environ.get("COVERAGE") == "all" else 3


def measures(nodeid: str) -> bool:
    """Returns whether coverage is measured during this test."""
    return zlib.crc32(nodeid.encode()) % _EVERY == 0


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    """Stops measuring during the tests that `measures` leaves out."""
    running = coverage.Coverage.current()
    if running is None or measures(item.nodeid):
        return (yield)
    running.stop()
    try:
        return (yield)
    finally:
        running.start()
