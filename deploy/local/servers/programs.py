"""The installed programs of the servers, and the users that run them."""

from __future__ import annotations

import os
import pwd
import shutil
from pathlib import Path


class MissingServerError(Exception):
    """A server's program is not installed."""


def postgres_programs() -> Path | None:
    """Returns the folder of the newest installed Postgres, or None.

    Debian does not put it into the PATH.
    """
    versions = [path.parent for path in Path("/usr/lib/postgresql").glob("*/bin/initdb")]
    if versions:
        return max(versions, key=lambda path: int(path.parent.name))
    found = shutil.which("initdb")
    return Path(found).resolve().parent if found else None


def program(name: str, package: str) -> str:
    """Returns the path of a program. Raises MissingServerError, which names the package, if it is not installed."""
    found = shutil.which(name)
    if found is None:
        raise MissingServerError(f"{package} is not installed")
    return found


def unprivileged(user: str) -> str | None:
    """Returns the user for a server that refuses to run as root.

    That is `user` if this process runs as root; otherwise None, which means the user of this process.
    """
    return user if os.geteuid() == 0 else None


def group_of(user: str | None) -> int | None:
    """Returns the main group of a user; None for None."""
    return None if user is None else pwd.getpwnam(user).pw_gid
