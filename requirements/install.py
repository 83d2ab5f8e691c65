"""Installs what the project needs below its own folder: `install.py [--dev]`, run by make with any Python.

1. `.venv`, with the Python that `PYTHON` names, or else the one that `.venv` has, or else `python3`.
2. The locked packages: `runtime` and `local`, with `--dev` also `dev`. pip resolves nothing: it installs exactly the
   releases of `requirements/*.lock`, from the index that pip is configured for (docs/decisions/0028).
3. The project itself, editable; its build compiles the protos into `gen/`.
4. Swagger UI below `gateway/docs`, by npm.

Each step writes its stamp last, and is skipped while the stamp fits. If a run ends while it changes `.venv`, the file
`unfinished` stays. The next run then makes `.venv` again: pip would take a half-written package for an installed one.
"""

from __future__ import annotations

import argparse
import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final, NoReturn

REPOSITORY: Final = Path(__file__).resolve().parents[1]
OLDEST_PYTHON: Final = (3, 11)
# How long pip waits for a silent registry, and how often it retries: an unreachable one ends the run within a minute.
REGISTRY_TIMEOUT_SECONDS: Final = 15
REGISTRY_RETRIES: Final = 2
GIVE_UP_SECONDS: Final = 45
PIP: Final = ["-m", "pip", "--disable-pip-version-check", "--no-input"]
# A user's pip may be set to install elsewhere, or to constrain versions. The index that it is set to is kept.
PIP_SETTINGS: Final = {"PIP_USER": "0", "PIP_CONSTRAINT": os.devnull, "PYTHONUNBUFFERED": "1"}


class Installation:
    """What is installed below one folder: `.venv`, `gen` and `gateway/docs/node_modules`."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.venv = root / ".venv"
        self.python = self.venv / "bin/python"
        self.stamps = self.venv / ".stamps"
        self.unfinished = self.stamps / "unfinished"
        self.log = self.venv / "install.log"
        self._lock = -1

    def install(self, locks: Iterable[str]) -> None:
        """Installs what is missing. Waits while another run installs."""
        with self._only_run():
            self.prepare_venv()
            self.install_packages(locks)
            self.install_project()
            self.install_swagger_ui()

    def prepare_venv(self) -> None:
        """Makes `.venv`, or makes it again if it is unfinished, was moved, or has another Python than named."""
        named = os.environ.get("PYTHON")
        python = shutil.which(named or "python3")
        if python is None:
            _fail(f"there is no {named or 'python3'} here; `make PYTHON=…` names another Python")
        if Path(python).is_relative_to(self.venv):
            # `.venv` is activated: the Python that it was made with makes the next one.
            python = os.path.realpath(python)
        if not self.unfinished.exists():
            if self._fits("venv", str(self.venv)) and self.python.exists():
                if not named or _version(self.python) == _version(python):
                    return
            elif self._works_unstamped(python if named else None):
                self._stamp("venv", str(self.venv))
                return
        if _version(python) < OLDEST_PYTHON:
            oldest = ".".join(map(str, OLDEST_PYTHON))
            _fail(f"SkyHigh needs Python {oldest} or newer, and {python} is older; `make PYTHON=…` names another")
        if self.venv.exists():
            print("Removing .venv: it is unfinished, was moved, or has another Python …")
            shutil.rmtree(self.venv)
        print("Making .venv …")
        self.stamps.mkdir(parents=True)
        self.unfinished.touch()
        made = self._run(python, "-m", "venv", str(self.venv))
        if made.returncode:
            _fail(f"{python} -m venv failed: {made.stdout.strip()}")
        self._stamp("venv", str(self.venv))
        self.unfinished.unlink()

    def install_packages(self, locks: Iterable[str]) -> None:
        """Installs the lock files that changed since they were installed, in one call of pip."""
        contents = {name: (self.root / "requirements" / f"{name}.lock").read_bytes() for name in locks}
        prints = {name: hashlib.sha256(content).hexdigest() for name, content in contents.items()}
        stale = [name for name, value in prints.items() if not self._fits(name, value)]
        if not stale:
            return
        print(f"Installing Python packages ({', '.join(stale)}) into .venv …", flush=True)
        files = [option for name in stale for option in ("-r", str(self.root / "requirements" / f"{name}.lock"))]
        exact = ["--no-deps", "--require-hashes", "--only-binary", ":all:"]
        patience = ["--timeout", str(REGISTRY_TIMEOUT_SECONDS), "--retries", str(REGISTRY_RETRIES)]
        site_packages = next(self.venv.glob("lib/python*/site-packages"))
        before = site_packages.stat().st_mtime_ns
        self.unfinished.touch()
        try:
            self._pip("install", "--progress-bar", "off", *exact, *patience, *files)
        except BaseException:
            # pip downloads everything before it installs anything: without a registry `.venv` stays as it was.
            if site_packages.stat().st_mtime_ns == before:
                self.unfinished.unlink()
            raise
        for name in stale:
            self._stamp(name, prints[name])
        self.unfinished.unlink()

    def install_project(self) -> None:
        """Installs the project and compiles its protos, if they or `pyproject.toml` changed or `gen` is missing."""
        sources = [self.root / "pyproject.toml", self.root / "protos/build_hook.py"]
        sources += sorted((self.root / "protos").rglob("*.proto"))
        digest = hashlib.sha256()
        for source in sources:
            digest.update(str(source.relative_to(self.root)).encode() + b"\0" + source.read_bytes() + b"\0")
        # The build writes this one last.
        descriptors = self.root / "gen/skyhigh.binpb"
        if descriptors.exists() and self._fits("project", digest.hexdigest()):
            return
        print("Compiling protos and installing the project …", flush=True)
        self._remove_stamp("project")
        self._pip("install", "--no-index", "--no-deps", "--no-build-isolation", "--editable", str(self.root))
        self._stamp("project", digest.hexdigest())

    def install_swagger_ui(self) -> None:
        """Installs the API's page, unless npm finished that for the present lock file."""
        folder = self.root / "gateway/docs"
        lock = folder / "package-lock.json"
        # npm writes it last.
        installed = folder / "node_modules/.package-lock.json"
        if not lock.exists() or (installed.exists() and installed.stat().st_mtime >= lock.stat().st_mtime):
            return
        print("Installing Swagger UI …", flush=True)
        # No script of a package runs: one of them would only report this machine to its maker.
        options = ["--ignore-scripts", "--no-audit", "--no-fund", "--loglevel", "error", "--fetch-retries", "1"]
        npm = self._run("npm", "ci", "--prefix", str(folder), *options)
        if npm.returncode:
            _fail(f"npm installed no Swagger UI: {' / '.join(npm.stdout.strip().splitlines()[:3])}")
        installed.touch()

    def _pip(self, *arguments: str) -> None:
        """Runs pip of `.venv`; ends with one line if it fails. The log keeps what pip printed."""
        started = time.monotonic()
        unreachable = answered = 0
        output: list[str] = []
        with (
            self.log.open("w") as log,
            subprocess.Popen(
                [self.python, *PIP, *arguments],
                cwd=self.root,
                env=os.environ | PIP_SETTINGS,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                errors="replace",
                pass_fds=self._passed(),
            ) as pip,
        ):
            assert pip.stdout
            for line in pip.stdout:
                log.write(line)
                output.append(line.strip())
                answered += line.lstrip().startswith(("Downloading", "Using cached", "Processing"))
                unreachable += "Retrying (" in line
                # A registry of many addresses, each of them silent, would take pip minutes.
                if unreachable and not answered and time.monotonic() - started > GIVE_UP_SECONDS:
                    pip.terminate()
        if pip.returncode == 0:
            return
        errors = [line.removeprefix("ERROR: ") for line in output if line.startswith("ERROR: ")]
        if unreachable and not _disk_full(output):
            _fail(
                "no package registry answers pip. Check the network, or name the one that is reachable here: "
                f"PIP_INDEX_URL=… make …, or `pip config set global.index-url …` (log: {self.log})"
            )
        missing = next((line for line in errors if line.startswith("No matching distribution found for ")), None)
        if missing:
            release = missing.removeprefix("No matching distribution found for ").partition(" ")[0]
            _fail(
                f"pip's registry has no wheel of {release} for this machine "
                f"(Python {'.'.join(map(str, _version(self.python)))}): use a registry or mirror that has it, or "
                f"another Python by `make PYTHON=…` (log: {self.log})"
            )
        _fail(f"pip failed: {errors[-1] if errors else ' '.join(output[-1:])} (log: {self.log})")

    def _works_unstamped(self, python: str | None) -> bool:
        """Whether a `.venv` that was made by hand is complete, made here, and of this Python, if one is named."""
        try:
            answer = subprocess.run([self.venv / "bin/pip", "--version"], capture_output=True, text=True, check=False)
        except OSError:
            return False
        # The script names the Python that it was made for, so that pip of a copied .venv answers from the original.
        if answer.returncode or f" from {self.venv}/" not in answer.stdout:
            return False
        version = _version(self.python)
        return version == _version(python) if python else version >= OLDEST_PYTHON

    @contextmanager
    def _only_run(self) -> Iterator[None]:
        """Keeps a second run waiting until the first one, and each child that it left running, has ended."""
        self._lock = os.open(self.root / "requirements", os.O_RDONLY)
        try:
            try:
                fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                print("Another make installs here; waiting for it …", flush=True)
                fcntl.flock(self._lock, fcntl.LOCK_EX)
            yield
        finally:
            os.close(self._lock)
            self._lock = -1

    def _passed(self) -> tuple[int, ...]:
        """The lock: a child that survives us keeps it, because it still writes."""
        return (self._lock,) if self._lock >= 0 else ()

    def _run(self, *command: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            check=False,
            pass_fds=self._passed(),
        )

    def _fits(self, step: str, value: str) -> bool:
        try:
            return (self.stamps / step).read_text() == value
        except OSError:
            return False

    def _stamp(self, step: str, value: str) -> None:
        self.stamps.mkdir(exist_ok=True)
        (self.stamps / step).write_text(value)

    def _remove_stamp(self, step: str) -> None:
        (self.stamps / step).unlink(missing_ok=True)


def _version(python: str | Path) -> tuple[int, ...]:
    command = [python, "-c", "import sys; print(*sys.version_info[:2])"]
    return tuple(map(int, subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()))


def _disk_full(output: Iterable[str]) -> bool:
    return any("No space left on device" in line for line in output)


def _fail(message: str) -> NoReturn:
    sys.exit(f"Installation failed: {message}")


def main() -> None:
    """Installs for running, or with `--dev` for developing."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--dev", action="store_true", help="also the tools of developers")
    locks = ["runtime", "local", "dev"] if parser.parse_args().dev else ["runtime", "local"]
    if sys.version_info < OLDEST_PYTHON:
        _fail(f"SkyHigh needs Python {'.'.join(map(str, OLDEST_PYTHON))} or newer")
    try:
        Installation(REPOSITORY).install(locks)
    except KeyboardInterrupt:
        sys.exit(130)
    except OSError as error:
        _fail(str(error))


if __name__ == "__main__":
    main()
