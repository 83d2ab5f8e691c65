"""How a planted bug gets into a copy of the tree."""

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
# What a checkout has beside its tracked files: the interpreter with the dependencies, and the stubs, which no mutant
# changes. Programs that run in the copy's folder import the copy's modules, because Python looks there first.
SHARED: Final = (".venv", "gen")


def planted(mutant: Mutant, source: str) -> str:
    """Returns the file with the bug. Raises ValueError if an old text is not there exactly once."""
    for old, new in mutant.edits:
        if source.count(old) != 1:
            raise ValueError(f"{mutant.name}: in {mutant.file} the old text occurs {source.count(old)} times: {old!r}")
        source = source.replace(old, new)
    return source


@contextmanager
def copy_with(mutant: Mutant | None) -> Iterator[Path]:
    """Yields a copy of this checkout with the bug in it, or without one; removes it afterwards."""
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
        for name in SHARED:
            (copy / name).symlink_to((REPOSITORY / name).resolve())
        if mutant is not None:
            target = copy / mutant.file
            target.write_text(planted(mutant, target.read_text()))
        yield copy
    finally:
        shutil.rmtree(copy, ignore_errors=True)
