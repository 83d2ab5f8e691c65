"""Assigns tests to the processes of a run, and decides which of them begin first."""

from __future__ import annotations

from pathlib import PurePosixPath
from typing import Any, Final

import pytest
from xdist.scheduler import LoadScopeScheduling

# The tests of each of these folders share a running stack, so they run in one process; the longest folder is first. All
# other tests are assigned file by file. They fill the time that is left, so both processes end at about the same time.
WHOLE_FOLDERS: Final = ("security", "gateway", "chaos", "journeys", "limits", "plans")


def unit(nodeid: str) -> str:
    """Returns the folder or the file whose tests stay together in one process."""
    file = PurePosixPath(nodeid.partition("::")[0])
    folder = file.parent
    return str(folder if folder.name in WHOLE_FOLDERS else file)


def rank(nodeid: str) -> int:
    """Returns the position of a test's folder among the folders that begin first."""
    folder = PurePosixPath(nodeid.partition("::")[0]).parent.name
    return WHOLE_FOLDERS.index(folder) if folder in WHOLE_FOLDERS else len(WHOLE_FOLDERS)


class Scheduling(LoadScopeScheduling):  # type: ignore[misc]
    """Assigns folders and files to processes as `unit` groups them."""

    def _split_scope(self, nodeid: str) -> str:
        return unit(nodeid)


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Scheduling:
    """Returns the scheduler of a run."""
    return Scheduling(config, log)


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Moves the long folders to the front; their tests keep their random order."""
    items.sort(key=lambda item: rank(item.nodeid))
