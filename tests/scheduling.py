"""Which tests run in which process, and which of them begin first."""

from __future__ import annotations

from pathlib import PurePosixPath
from typing import Any, Final

import pytest
from xdist.scheduler import LoadScopeScheduling

# Folders whose tests share a running stack run in one process, the longest first. All others are divided file by file:
# they fill the time that is left, so both processes end together.
WHOLE_FOLDERS: Final = ("security", "gateway", "chaos", "journeys", "limits", "plans")


def unit(nodeid: str) -> str:
    """Returns the folder or the file whose tests stay together in one process."""
    file = PurePosixPath(nodeid.partition("::")[0])
    folder = file.parent
    return str(folder if folder.name in WHOLE_FOLDERS else file)


def rank(nodeid: str) -> int:
    """Returns the place of a test's folder among those that begin first."""
    folder = PurePosixPath(nodeid.partition("::")[0]).parent.name
    return WHOLE_FOLDERS.index(folder) if folder in WHOLE_FOLDERS else len(WHOLE_FOLDERS)


class Scheduling(LoadScopeScheduling):  # type: ignore[misc]
    """Hands out folders and files as `unit` divides them."""

    def _split_scope(self, nodeid: str) -> str:
        return unit(nodeid)


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Scheduling:
    """Gives the processes of a run their scheduler."""
    return Scheduling(config, log)


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Moves the long folders to the front; within a folder the random order stays."""
    items.sort(key=lambda item: rank(item.nodeid))
