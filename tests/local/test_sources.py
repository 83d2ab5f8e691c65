"""An edit of a source file is detected.

A new modification time of an unchanged file is not an edit.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from deploy.local.process_table import processes_of
from deploy.local.sources import ROOT, digests, edited, newest_file
from deploy.local.stack import Stack


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """Returns a repository with two parts."""
    for name in ("seat_service/app.py", "seat_service/sql/one.sql", "services/db.py"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    return tmp_path


def before(repository: Path) -> dict[str, str]:
    """Returns the digests of both parts."""
    return digests(["seat_service", "services"], repository)


def test_an_edited_part_is_named_with_its_newest_file(repository: Path) -> None:
    known = before(repository)
    file = repository / "seat_service/sql/one.sql"
    file.write_text("another")
    os.utime(file, (2**31, 2**31))
    assert edited(known, repository) == ["seat_service"]
    assert newest_file("seat_service", repository) == "seat_service/sql/one.sql"


def test_a_new_file_and_a_removed_file_are_edits(repository: Path) -> None:
    known = before(repository)
    added = repository / "services/new.py"
    added.touch()
    assert edited(known, repository) == ["services"]
    added.unlink()
    assert edited(known, repository) == []
    (repository / "services/db.py").unlink()
    assert edited(known, repository) == ["services"]


def test_a_new_time_is_no_edit(repository: Path) -> None:
    known = before(repository)
    os.utime(repository / "services/db.py", (1, 1))
    assert edited(known, repository) == []


@pytest.mark.parametrize("name", ["services/__pycache__/db.pyc", "services/.db.py.swp", "services/README.md"])
def test_what_tools_write_and_people_read_is_no_edit(repository: Path, name: str) -> None:
    known = before(repository)
    (repository / name).parent.mkdir(exist_ok=True)
    (repository / name).touch()
    assert edited(known, repository) == []


def test_each_process_of_ours_names_sources_that_exist(tmp_path: Path) -> None:
    stack = Stack.from_environment({"SKYHIGH_HOME": str(tmp_path)})
    ours = {process.name: process.sources for process in processes_of(stack) if process.sources}
    assert len(ours) == 11
    assert all((ROOT / part).exists() for parts in ours.values() for part in parts)
    assert ours["seat"] == ("seat_service", "services", "gen")
    assert ours["limits"] == ("gateway", "services", "gen")
