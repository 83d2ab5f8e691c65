"""The folder of a stack's data: checks whether a stack can use it, and locks in it."""

from __future__ import annotations

import errno
import fcntl
import os
import pwd
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from deploy.local.secrets import write_private

# A new data folder takes 90 MB. RabbitMQ stops accepting messages if less than 50 MB of the disk are free.
NEW_HOME_BYTES: Final = 200_000_000
USED_HOME_BYTES: Final = 60_000_000
# Postgres and RabbitMQ append up to 150 bytes to the path.
LONGEST_PATH_BYTES: Final = 3500


class UnusableHomeError(Exception):
    """A stack cannot use the folder; the text names the cause and what to do."""


def home_of(environment: Mapping[str, str] = os.environ) -> Path:
    """Returns the folder of the stack: SKYHIGH_HOME, or `.skyhigh` in the repository."""
    given = environment.get("SKYHIGH_HOME")
    return Path(given).absolute() if given else Path(__file__).resolve().parents[2] / ".skyhigh"


def ensure_home(home: Path) -> None:
    """Creates the folder. Raises UnusableHomeError if a stack could not use it."""
    if len(os.fsencode(home)) > LONGEST_PATH_BYTES:
        raise UnusableHomeError(
            f"the path of SKYHIGH_HOME has {len(os.fsencode(home))} bytes; "
            f"name a folder with at most {LONGEST_PATH_BYTES}"
        )
    if "\n" in str(home):
        raise UnusableHomeError("the path of SKYHIGH_HOME has a line break; name a folder without one")
    probe = home / ".writable"
    try:
        home.mkdir(parents=True, exist_ok=True)
        for file in ("stack.json", "secrets.json"):
            if (home / file).exists():
                (home / file).read_bytes()
        write_private(probe, bytes(4096))
        probe.unlink()
    except OSError as error:
        raise UnusableHomeError(_reason(home, error)) from error
    needed = USED_HOME_BYTES if (home / "postgres").exists() else NEW_HOME_BYTES
    if (free := shutil.disk_usage(home).free) < needed:
        raise UnusableHomeError(
            f"the disk of {home} is full: {free // 1_000_000} MB are free and the stack needs "
            f"{needed // 1_000_000} MB. Free some space, or name a folder on another disk in SKYHIGH_HOME"
        )


def fault(home: Path) -> str | None:
    """Returns what is wrong with a folder that is in use, or None."""
    try:
        free = shutil.disk_usage(home).free
    except OSError as error:
        return _reason(home, error)
    if free < USED_HOME_BYTES // 2:
        return f"the disk of {home} is full: {free // 1_000_000} MB are free. Free some space, then `make up` again"
    return None


@contextmanager
def lock(path: Path, *, wait: bool) -> Iterator[bool]:
    """Holds an exclusive lock on a file during the block, and yields True.

    If another process has the lock and `wait` is False, yields False. The kernel releases the lock when this process
    ends, even if it is killed.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            yield False
            return
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield True


def holder_of(path: Path) -> str:
    """Returns the pid that the holder of a lock wrote into the file, or "?"."""
    try:
        return path.read_text() or "?"
    except OSError:
        return "?"


def _reason(home: Path, error: OSError) -> str:
    place = Path(os.fsdecode(error.filename)) if error.filename else home
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"the disk of {home} is full. Free some space, or name a folder on another disk in SKYHIGH_HOME"
    if error.errno in (errno.ENOTDIR, errno.EEXIST):
        culprit = next((part for part in (home, *home.parents) if part.is_file()), place)
        return f"{culprit} is a file, and the stack needs a folder there. Move it away, or set SKYHIGH_HOME"
    if error.errno in (errno.EACCES, errno.EPERM):
        return f"{place} belongs to {_owner(place)}, and you may not use it. Set SKYHIGH_HOME to a folder of your own"
    return f"{place} cannot be used: {error.strerror}. Set SKYHIGH_HOME to a folder that can"


def _owner(place: Path) -> str:
    for part in (place, *place.parents):
        try:
            uid = part.stat().st_uid
        except OSError:
            continue
        try:
            return pwd.getpwuid(uid).pw_name
        except KeyError:
            return f"user {uid}"
    return "another user"
