"""A folder that cannot hold a stack is refused at once, with the cause and the remedy."""

from __future__ import annotations

import os
import re
import shutil
from collections import namedtuple
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from deploy.local import home as homes
from deploy.local.home import LONGEST_PATH_BYTES, UnusableHomeError, ensure_home, fault, holder_of, lock

NOBODY = 65534
Usage = namedtuple("Usage", "total used free")


@contextmanager
def as_ordinary_user() -> Iterator[None]:
    """Runs the block without root's rights."""
    if os.geteuid() != 0:
        yield
        return
    os.setegid(NOBODY)
    os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(0)
        os.setegid(0)


def refusal(home: Path) -> str:
    """Returns why a folder is refused."""
    with pytest.raises(UnusableHomeError) as refused:
        ensure_home(home)
    assert "\n" not in str(refused.value)
    return str(refused.value)


def test_a_missing_folder_is_made_and_left_empty(tmp_path: Path) -> None:
    home = tmp_path / "a folder" / "ü'\" #"
    ensure_home(home)
    assert list(home.iterdir()) == []
    assert fault(home) is None


@pytest.mark.parametrize("below", ["", "below/this"])
def test_a_file_where_a_folder_is_needed_is_named(tmp_path: Path, below: str) -> None:
    (tmp_path / "file").touch()
    assert refusal(tmp_path / "file" / below).startswith(f"{tmp_path / 'file'} is a file")


def test_a_folder_of_another_user_is_named_with_its_owner() -> None:
    closed = Path("/var/tmp") / f"skyhigh-test-{os.getpid()}"
    closed.mkdir(mode=0o500)
    try:
        with as_ordinary_user():
            assert re.search(
                rf"^{closed}\S* belongs to \w+, and you may not use it\. Set SKYHIGH_HOME", refusal(closed)
            )
    finally:
        closed.rmdir()


def test_a_path_that_is_too_long_is_refused(tmp_path: Path) -> None:
    home = tmp_path.joinpath(*["long" * 20] * (LONGEST_PATH_BYTES // 80))
    assert f"at most {LONGEST_PATH_BYTES}" in refusal(home)


def test_a_full_disk_is_named_with_what_the_stack_needs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(10**9, 10**9 - 7_000_000, 7_000_000))
    assert f"the disk of {tmp_path} is full: 7 MB are free and the stack needs 200 MB" in refusal(tmp_path)
    assert "is full: 7 MB are free" in (fault(tmp_path) or "")


def test_a_disk_that_fills_while_we_look_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path, content: bytes) -> None:
        raise OSError(28, os.strerror(28), str(path))

    monkeypatch.setattr(homes, "write_private", full)
    assert refusal(tmp_path).startswith(f"the disk of {tmp_path} is full. Free some space")


def test_a_lock_has_one_holder_whose_pid_is_known(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    with lock(path, wait=False) as first, lock(path, wait=False) as second:
        assert (first, second) == (True, False)
        assert holder_of(path) == str(os.getpid())
    with lock(path, wait=True) as third:
        assert third
