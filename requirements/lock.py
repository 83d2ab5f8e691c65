"""Writes the three lock files from `pyproject.toml`: `make lock`, or `make lock UPGRADE=1`.

uv resolves everything at once, so that the three files agree. Each locked package then goes into the first file that
needs it: `runtime.lock` (the services), `local.lock` (the stack on one machine and the build of the project), or
`dev.lock` (the developers' tools). Locked versions stay, unless `pyproject.toml` excludes them or `--upgrade` is given.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
import venv
from pathlib import Path
from typing import Final

REPOSITORY: Final = Path(__file__).resolve().parents[1]
FOLDER: Final = REPOSITORY / "requirements"
# In the order in which they build on each other, each with the extras of `pyproject.toml` that it adds.
LOCKS: Final = {"runtime": (), "local": ("local",), "dev": ("dev",)}
UV: Final = "uv==0.13.9"
HEADER: Final = "# Written by `make lock`. No other lock file has these packages.\n"


def main() -> None:
    """Resolves the requirements and writes the lock files."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--upgrade", action="store_true", help="take the newest releases that pyproject.toml allows")
    upgrade = parser.parse_args().upgrade
    with tempfile.TemporaryDirectory() as scratch:
        uv = _install_uv(Path(scratch))
        resolved = Path(scratch, "all.lock")
        if not upgrade:
            # uv prefers the versions that it finds in the file that it writes.
            resolved.write_text("".join(path.read_text() for path in FOLDER.glob("*.lock")))
        _resolve(uv, resolved, [extra for extras in LOCKS.values() for extra in extras])
        entries = entries_of(resolved.read_text())
        written: set[str] = set()
        extras: list[str] = []
        for name, more in LOCKS.items():
            extras += more
            subset = Path(scratch, f"{name}.lock")
            _resolve(uv, subset, extras, "--constraints", str(resolved))
            names = entries_of(subset.read_text()).keys() - written
            if missing := names - entries.keys():
                sys.exit(f"uv resolved {', '.join(missing)} for {name} only: the lock files would not agree")
            written |= names
            lines = [entry for package in sorted(names) for entry in entries[package]]
            (FOLDER / f"{name}.lock").write_text(HEADER + "".join(lines))
            print(f"requirements/{name}.lock: {len(names)} packages")


def entries_of(lock: str) -> dict[str, list[str]]:
    """Returns the entries of a lock file by package: a package has one for each version that markers choose."""
    entries: dict[str, list[str]] = {}
    for entry in re.findall(r"^[a-z0-9].*(?:\n .*)*\n", lock, re.MULTILINE):
        entries.setdefault(entry.partition("==")[0], []).append(entry)
    return entries


def _install_uv(folder: Path) -> Path:
    """Installs uv into an environment of its own: it is needed here only."""
    venv.create(folder / "venv", with_pip=True)
    pip = [str(folder / "venv/bin/python"), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, "--only-binary", ":all:", UV], check=True)
    return folder / "venv/bin/uv"


def _resolve(uv: Path, output: Path, extras: list[str], *options: str) -> None:
    """Has uv write the versions, markers and hashes for any platform and each Python from 3.11 on."""
    names = [option for extra in extras for option in ("--extra", extra)]
    form = ["--generate-hashes", "--no-emit-index-url", "--no-annotate", "--no-header", "--quiet"]
    universal = ["--universal", "--python-version", "3.11"]
    command = ["pip", "compile", *universal, *form, *names, *options, "--output-file", str(output), "pyproject.toml"]
    subprocess.run([uv, *command], cwd=REPOSITORY, check=True, stdout=subprocess.DEVNULL)


if __name__ == "__main__":
    main()
