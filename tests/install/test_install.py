"""`requirements/install.py` installs a small project.

The registry is on loopback, and the test makes the wheels.
"""

from __future__ import annotations

import base64
import hashlib
import os
import shutil
import signal
import subprocess
import sys
import threading
import zipfile
from collections.abc import Iterator, Sequence
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Final

import pytest

# A test makes up to two environments, and each takes up to a minute on a busy machine.
pytestmark = pytest.mark.timeout(900)
SCRIPT: Final = Path(__file__).resolve().parents[2] / "requirements/install.py"
PYTHON: Final = getattr(sys, "_base_executable", sys.executable)
# Builds an empty editable project and, like the real build hook, writes `gen/skyhigh.binpb`.
BACKEND: Final = """
import pathlib, zipfile
def build_editable(wheel_directory, config_settings=None, metadata_directory=None):
    gen = pathlib.Path("gen")
    gen.mkdir(exist_ok=True)
    (gen / "skyhigh.binpb").touch()
    with zipfile.ZipFile(pathlib.Path(wheel_directory, "skyhigh-0.1-py3-none-any.whl"), "w") as wheel:
        info = "skyhigh-0.1.dist-info/"
        wheel.writestr(info + "METADATA", "Metadata-Version: 2.1\\nName: skyhigh\\nVersion: 0.1\\n")
        tag = "Root-Is-Purelib: true\\nTag: py3-none-any\\n"
        wheel.writestr(info + "WHEEL", "Wheel-Version: 1.0\\nGenerator: test\\n" + tag)
        wheel.writestr(info + "RECORD", "")
    return "skyhigh-0.1-py3-none-any.whl"
"""


class Registry:
    """A package registry on loopback.

    While `open` is not set, it answers no request for a wheel.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.open = threading.Event()
        self.open.set()
        self.asked = threading.Event()
        self.requests: list[str] = []
        registry = self

        class Handler(SimpleHTTPRequestHandler):
            def do_GET(self) -> None:
                registry.requests.append(self.path)
                if self.path.endswith(".whl"):
                    registry.asked.set()
                    registry.open.wait()
                super().do_GET()

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(folder)))
        self.url = f"http://127.0.0.1:{self.server.server_port}/"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def add(self, name: str, version: str, requires: Sequence[str] = ()) -> str:
        """Publishes a wheel with one module; returns its entry in a lock file."""
        folder = self.folder / name
        folder.mkdir(exist_ok=True)
        path = folder / f"{name}-{version}-py3-none-any.whl"
        info = f"{name}-{version}.dist-info"
        files = {
            f"{name}.py": f"version = {version!r}\n",
            f"{info}/METADATA": "\n".join(
                ["Metadata-Version: 2.1", f"Name: {name}", f"Version: {version}", "Provides-Extra: more"]
                + [f"Requires-Dist: {line}" for line in requires]
            ),
            f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        }
        digests = {
            file: base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).decode().rstrip("=")
            for file, text in files.items()
        }
        files[f"{info}/RECORD"] = "".join(f"{file},sha256={digest},\n" for file, digest in digests.items())
        with zipfile.ZipFile(path, "w") as wheel:
            for file, text in files.items():
                wheel.writestr(file, text)
        return f"{name}=={version} --hash=sha256:{hashlib.sha256(path.read_bytes()).hexdigest()}\n"


class Project:
    """The smallest project that `install.py` accepts, in a folder with a space in its name."""

    def __init__(self, root: Path, registry: Registry) -> None:
        self.root = root
        self.registry = registry
        self.started: list[subprocess.Popen[str]] = []
        (root / "requirements").mkdir(parents=True)
        (root / "protos").mkdir()
        shutil.copy(SCRIPT, root / "requirements")
        (root / "protos/build_hook.py").write_text(BACKEND)
        (root / "pyproject.toml").write_text(
            '[build-system]\nrequires = []\nbuild-backend = "build_hook"\nbackend-path = ["protos"]\n'
            '[project]\nname = "skyhigh"\nversion = "0.1"\n'
        )
        # As coverage[toml] of pytest-cov showed: pip with dependency resolution installs the newer release of a package
        # that is required by an extra.
        self.lock("runtime", registry.add("alpha", "1.0", ["beta[more]>=1.0"]))
        self.lock("local", registry.add("beta", "1.0", ['gamma>=1.0; extra == "more"']), registry.add("gamma", "1.0"))
        self.lock("dev", registry.add("delta", "1.0"))

    def lock(self, name: str, *entries: str) -> None:
        (self.root / "requirements" / f"{name}.lock").write_text("# a comment\n" + "".join(entries))

    def start(self, *options: str, index: str | None = None) -> subprocess.Popen[str]:
        kept = {name: value for name, value in os.environ.items() if not name.lower().startswith(("pip_", "http"))}
        kept |= {
            "PIP_CONFIG_FILE": os.devnull,
            "PIP_INDEX_URL": index or self.registry.url,
            "PIP_NO_CACHE_DIR": "1",
            "no_proxy": "127.0.0.1",
        }
        kept.pop("PYTHON", None)
        process = subprocess.Popen(
            # A shell starts a background test run with Ctrl-C ignored, and every child would inherit that.
            ["env", "--default-signal=INT", PYTHON, self.root / "requirements/install.py", *options],
            env=kept,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            process_group=0,
        )
        self.started.append(process)
        return process

    def install(self, *options: str, index: str | None = None) -> tuple[int, str]:
        """Returns the exit code and the output of one run."""
        process = self.start(*options, index=index)
        output, _ = process.communicate()
        return process.returncode, output

    def versions(self) -> dict[str, str]:
        """Returns the versions of the installed modules."""
        code = (
            "import importlib\n"
            "for name in ('alpha', 'beta', 'gamma', 'delta'):\n"
            "    try: print(name, importlib.import_module(name).version)\n"
            "    except ImportError: pass\n"
        )
        out = subprocess.run([self.root / ".venv/bin/python", "-c", code], capture_output=True, text=True, check=True)
        return dict(line.split() for line in out.stdout.splitlines())


LOCKED: Final = {"alpha": "1.0", "beta": "1.0", "gamma": "1.0"}


@pytest.fixture
def registry(tmp_path: Path) -> Iterator[Registry]:
    (tmp_path / "registry").mkdir()
    registry = Registry(tmp_path / "registry")
    yield registry
    registry.open.set()
    registry.server.shutdown()
    registry.server.server_close()


@pytest.fixture
def project(tmp_path: Path, registry: Registry) -> Iterator[Project]:
    project = Project(tmp_path / "a clone", registry)
    yield project
    for process in project.started:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()


def test_only_locked_releases_are_installed_from_a_newer_registry(project: Project, registry: Registry) -> None:
    for name in ("alpha", "beta", "gamma", "delta"):
        registry.add(name, "2.0")
    code, output = project.install()
    assert code == 0, output
    assert project.versions() == LOCKED
    registry.requests.clear()
    assert project.install() == (0, "")
    assert registry.requests == []
    code, output = project.install("--dev")
    assert code == 0, output
    assert "(dev)" in output
    assert project.versions() == LOCKED | {"delta": "1.0"}


def test_installation_interrupted_in_pip_is_taken_up_again(project: Project, registry: Registry) -> None:
    registry.open.clear()
    interrupted = project.start()
    registry.asked.wait()
    os.killpg(interrupted.pid, signal.SIGINT)
    output, _ = interrupted.communicate()
    assert interrupted.returncode == 130, output
    registry.open.set()
    code, output = project.install()
    assert code == 0, output
    assert project.versions() == LOCKED


def test_venv_that_was_never_finished_is_made_again(project: Project) -> None:
    # An interrupted `python -m venv` leaves this: a Python without pip.
    subprocess.run([PYTHON, "-m", "venv", "--without-pip", project.root / ".venv"], check=True)
    code, output = project.install()
    assert code == 0, output
    assert project.versions() == LOCKED
    # A killed pip leaves this: a package with its metadata but without its module.
    next(project.root.glob(".venv/lib/*/site-packages/alpha.py")).unlink()
    (project.root / ".venv/.stamps/runtime").unlink()
    (project.root / ".venv/.stamps/unfinished").touch()
    code, output = project.install()
    assert code == 0, output
    assert project.versions() == LOCKED


def test_venv_of_a_moved_clone_is_made_again(project: Project, tmp_path: Path) -> None:
    code, output = project.install()
    assert code == 0, output
    project.root = project.root.rename(tmp_path / "moved")
    code, output = project.install()
    assert code == 0, output
    pip = subprocess.run([project.root / ".venv/bin/pip", "--version"], capture_output=True, text=True, check=True)
    assert str(project.root) in pip.stdout


def test_unreachable_registry_is_named_in_one_line_and_leaves_venv(project: Project, registry: Registry) -> None:
    subprocess.run([PYTHON, "-m", "venv", project.root / ".venv"], check=True)
    # No program listens on the discard port of loopback.
    code, output = project.install(index="http://127.0.0.1:9/")
    assert code == 1
    assert output.splitlines()[-1].startswith("Installation failed: no package registry answers pip.")
    assert len(output.splitlines()) == 2
    code, output = project.install()
    assert code == 0, output
    assert "Making .venv" not in output
    assert project.versions() == LOCKED


def test_release_that_the_registry_lacks_is_named(project: Project, registry: Registry) -> None:
    shutil.rmtree(registry.folder / "gamma")
    code, output = project.install()
    assert code == 1
    assert "pip's registry has no wheel of gamma==1.0 for this machine" in output.splitlines()[-1]


def test_second_run_waits_for_the_first(project: Project, registry: Registry) -> None:
    registry.open.clear()
    first = project.start()
    registry.asked.wait()
    second = project.start()
    assert second.stdout
    assert second.stdout.readline().startswith("Another make installs here")
    registry.open.set()
    assert first.communicate()[0].count("Installing") == 1
    assert "Installing" not in second.communicate()[0]
    assert (first.returncode, second.returncode) == (0, 0)
    assert project.versions() == LOCKED
