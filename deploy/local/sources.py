"""Digests of source files, to find processes whose source was edited since.

They are digests of contents and not times, because a checkout, or compiling the same protos again, changes only times.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parents[2]
# Files that tools generate, or that only people read.
SKIPPED_FOLDERS: Final = frozenset({"__pycache__", "node_modules"})
SKIPPED_SUFFIXES: Final = frozenset({".pyc", ".pyi", ".md"})

# Time, size and digest of each file. A file is read again only if its time or its size has changed.
_known: dict[Path, tuple[int, int, bytes]] = {}


def digests(parts: Sequence[str], root: Path = ROOT) -> dict[str, str]:
    """Returns the digest of each part: a file or folder, relative to the repository."""
    return {part: _digest(root / part) for part in parts}


def edited(before: Mapping[str, str], root: Path = ROOT) -> list[str]:
    """Returns the parts whose content has changed since these digests."""
    return [part for part, digest in digests(list(before), root).items() if digest != before[part]]


def newest_file(part: str, root: Path = ROOT) -> str:
    """Returns the most recently written file of a part, relative to the repository."""
    files = list(_files(root / part))
    newest = max(files, key=lambda file: file.stat().st_mtime_ns, default=root / part)
    return str(newest.relative_to(root))


def _digest(path: Path) -> str:
    total = hashlib.sha256()
    for file in sorted(_files(path)):
        total.update(f"{file.relative_to(path.parent)}\0".encode() + _content(file))
    return total.hexdigest()[:16]


def _content(file: Path) -> bytes:
    try:
        status = file.stat()
        known = _known.get(file)
        if known is None or known[:2] != (status.st_mtime_ns, status.st_size):
            known = (status.st_mtime_ns, status.st_size, hashlib.sha256(file.read_bytes()).digest())
            _known[file] = known
        return known[2]
    except FileNotFoundError:
        return b""


def _files(path: Path) -> Iterator[Path]:
    if path.is_file():
        yield path
    for folder, folders, files in os.walk(path):
        folders[:] = [name for name in folders if name not in SKIPPED_FOLDERS and not name.startswith(".")]
        for name in files:
            file = Path(folder, name)
            if file.suffix not in SKIPPED_SUFFIXES and not name.startswith("."):
                yield file
