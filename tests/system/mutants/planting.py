"""Plants a bug in a copy of the tree."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import mkdtemp
from typing import Final

from tests.system.mutants.catalogue import Mutant

REPOSITORY: Final = Path(__file__).resolve().parents[3]
# The file by which a checkout's environment finds the checkout's modules and its generated stubs.
OWN_PATHS: Final = "_skyhigh.pth"


def planted(mutant: Mutant, source: str) -> str:
    """Returns the file's text with the bug.

    Raises ValueError unless each old text occurs exactly once.
    """
    for old, new in mutant.edits:
        if source.count(old) != 1:
            raise ValueError(f"{mutant.name}: in {mutant.file} the old text occurs {source.count(old)} times: {old!r}")
        source = source.replace(old, new)
    return source


@contextmanager
def copy_with(mutant: Mutant | None) -> Iterator[Path]:
    """Yields a copy of this checkout, with the bug if one is given.

    Removes it afterwards.
    """
    copy = Path(mkdtemp(prefix="skyhigh-mutant-"))
    try:
        listed = subprocess.run(
            ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
            cwd=REPOSITORY, check=True, capture_output=True, text=True,
        )  # fmt: skip
        for name in filter(None, listed.stdout.split("\0")):
            target = copy / name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(REPOSITORY / name, target)
        (copy / "gen").symlink_to((REPOSITORY / "gen").resolve())
        _make_environment(copy)
        if mutant is not None:
            target = copy / mutant.file
            target.write_text(planted(mutant, target.read_text()))
        yield copy
    finally:
        shutil.rmtree(copy, ignore_errors=True)


def _make_environment(copy: Path) -> None:
    """Creates a `.venv` in the copy with the packages of this checkout and the modules of the copy.

    The services of a stack ignore their working folder, so that only the environment decides which modules they import.
    """
    own, made = (REPOSITORY / ".venv").resolve(), copy / ".venv"
    (packages,) = own.glob("lib/python*/site-packages")
    target = made / packages.relative_to(own)
    for folder, linked in ((own / "bin", made / "bin"), (packages, target)):
        linked.mkdir(parents=True)
        for entry in folder.iterdir():
            # The interpreter finds its environment by the path with which it was started.
            (linked / entry.name).symlink_to(entry)
    shutil.copy2(own / "pyvenv.cfg", made / "pyvenv.cfg")
    (target / OWN_PATHS).unlink()
    (target / OWN_PATHS).write_text(f"{copy}\n{copy / 'gen'}\n")


def python_of(checkout: Path) -> str:
    """Returns the interpreter of a checkout, which imports the checkout's modules."""
    return str(checkout / ".venv" / "bin" / "python")
