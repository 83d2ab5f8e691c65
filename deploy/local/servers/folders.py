"""Data folders that a server can use although the stack's folder has an unsuitable path or owner."""

from __future__ import annotations

import re
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Final

from deploy.local.servers.programs import group_of

PLAIN_PATH: Final = re.compile(r"[\w ./@:,=+#-]+")
LONGEST_PLAIN_PATH: Final = 200


def create_plain_folder(folder: Path) -> None:
    """Creates a folder, as a link to another one if its path is not plain.

    RabbitMQ reads the free disk space by a shell command that has the path of its folder in simple quotes.
    """
    if folder.exists():
        return
    if PLAIN_PATH.fullmatch(str(folder)) and len(str(folder)) <= LONGEST_PLAIN_PATH:
        folder.mkdir(parents=True)
        return
    folder.parent.mkdir(parents=True, exist_ok=True)
    # A dangling link may be left: a clean-up of /var/tmp may have removed its folder.
    folder.unlink(missing_ok=True)
    folder.symlink_to(tempfile.mkdtemp(prefix="skyhigh-", dir="/var/tmp"))


def create_folder_of(user: str | None, folder: Path) -> Path:
    """Creates a folder that `user` owns; returns its real path.

    If `user` cannot reach it, for example below root's home, `folder` becomes a link to a folder in /var/tmp.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if user is None:
        return folder
    if not folder.is_symlink():
        shutil.chown(folder, user)
        reachable = subprocess.run(
            ["test", "-w", str(folder)], check=False, user=user, group=group_of(user), extra_groups=[], cwd="/"
        )
        if reachable.returncode == 0:
            return folder
        folder.rmdir()
        elsewhere = tempfile.mkdtemp(prefix="skyhigh-", dir="/var/tmp")
        shutil.chown(elsewhere, user)
        folder.symlink_to(elsewhere)
    return folder.resolve()
