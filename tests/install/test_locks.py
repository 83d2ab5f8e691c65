"""The lock files are complete, disjoint and pinned with hashes.

The tests read only the lock files and the metadata of installed packages.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterable, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any, Final

import pytest
from packaging.markers import default_environment
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

REPOSITORY: Final = Path(__file__).resolve().parents[2]
PYTHONS: Final = ("3.11.0", "3.11.7", "3.12.1", "3.13.0")
# The lock files that are installed together, with the extras of pyproject.toml that they provide.
COMBINATIONS: Final = {
    ("runtime",): (),
    ("runtime", "local"): ("local",),
    ("runtime", "local", "dev"): ("local", "dev"),
}


def text_of(lock: str) -> str:
    return (REPOSITORY / "requirements" / f"{lock}.lock").read_text()


def entries(text: str) -> list[tuple[Requirement, list[str]]]:
    """Returns each requirement of a lock file, with its hashes."""
    logical = re.sub(r" \\\n", " ", text).splitlines()
    lines = [line for line in logical if line and not line.startswith("#")]
    return [(Requirement(line.partition(" --hash")[0]), re.findall(r"--hash=(\S+)", line)) for line in lines]


def environment_of(python: str) -> dict[str, str]:
    here = {name: str(value) for name, value in default_environment().items()}
    return here | {"python_full_version": python, "python_version": python.rpartition(".")[0], "extra": ""}


def pins(locks: Iterable[str], environment: Mapping[str, str]) -> dict[str, Version]:
    """Returns the version of each package that these lock files install in this environment."""
    pinned: dict[str, Version] = {}
    for lock in locks:
        for requirement, _ in entries(text_of(lock)):
            if requirement.marker is None or requirement.marker.evaluate(dict(environment)):
                assert requirement.name not in pinned, f"{requirement.name} is locked twice for {environment}"
                pinned[requirement.name] = Version(str(requirement.specifier).removeprefix("=="))
    return pinned


def unsatisfied(pinned: Mapping[str, Version], wanted: Iterable[str], environment: Mapping[str, str]) -> list[str]:
    """Returns the requirements that the pins do not satisfy.

    These are requirements of `wanted`, and of each pinned package with its extras.
    """
    pending = [(Requirement(line), "pyproject.toml") for line in wanted]
    pending += [(Requirement(name), "its lock file") for name in pinned]
    seen: set[tuple[str, str]] = set()
    missing: list[str] = []
    while pending:
        requirement, origin = pending.pop()
        name = canonicalize_name(requirement.name)
        if name not in pinned or not requirement.specifier.contains(pinned[name], prereleases=True):
            missing.append(f"{requirement}, needed by {origin}")
            continue
        for extra in ("", *requirement.extras):
            if (name, extra) in seen:
                continue
            seen.add((name, extra))
            for line in required_by(name):
                needed = Requirement(line)
                if needed.marker is None or needed.marker.evaluate({**environment, "extra": extra}):
                    pending.append((needed, name))
    return missing


def required_by(name: str) -> list[str]:
    try:
        return metadata.requires(name) or []
    except metadata.PackageNotFoundError:
        # A package that is not installed is needed only on another Python or system.
        assert name not in pins(("runtime", "local", "dev"), default_here()), f"{name} is locked and not installed"
        return []


def default_here() -> dict[str, str]:
    return {name: str(value) for name, value in default_environment().items()} | {"extra": ""}


def project() -> Any:
    return tomllib.loads((REPOSITORY / "pyproject.toml").read_text())


def wanted_for(locks: Iterable[str]) -> list[str]:
    """Returns the requirements of pyproject.toml that these lock files have to satisfy together."""
    declared = project()
    wanted: list[str] = list(declared["project"]["dependencies"])
    for lock in locks:
        if lock != "runtime":
            wanted += declared["project"]["optional-dependencies"][lock]
        if lock == "local":
            wanted += declared["build-system"]["requires"]
    return wanted


@pytest.mark.parametrize("python", PYTHONS)
@pytest.mark.parametrize("locks", COMBINATIONS, ids=" and ".join)
def test_locks_satisfy_every_requirement_within_themselves(locks: tuple[str, ...], python: str) -> None:
    environment = environment_of(python)
    assert unsatisfied(pins(locks, environment), wanted_for(locks), environment) == []


@pytest.mark.parametrize("package", ["hiredis", "protobuf", "aiormq"])
def test_a_package_missing_from_a_lock_is_found(package: str) -> None:
    environment = environment_of("3.11.7")
    pinned = pins(("runtime",), environment)
    del pinned[package]
    assert any(canonicalize_name(package) in line for line in unsatisfied(pinned, wanted_for(["runtime"]), environment))


def test_a_pin_below_what_a_package_needs_is_found() -> None:
    environment = environment_of("3.11.7")
    pinned = pins(("runtime",), environment) | {"protobuf": Version("3.0")}
    assert any(line.startswith("protobuf") for line in unsatisfied(pinned, wanted_for(["runtime"]), environment))


def test_no_package_stands_in_two_locks() -> None:
    names = [{requirement.name for requirement, _ in entries(text_of(lock))} for lock in ("runtime", "local", "dev")]
    assert len(set.union(*names)) == sum(map(len, names))


@pytest.mark.parametrize("lock", ["runtime", "local", "dev"])
def test_each_pin_is_exact_and_has_hashes(lock: str) -> None:
    locked = entries(text_of(lock))
    assert locked
    for requirement, hashes in locked:
        assert re.fullmatch(r"==[^*,]+", str(requirement.specifier)), requirement
        assert requirement.url is None, requirement
        assert not requirement.extras, requirement
        assert hashes, requirement
        assert all(re.fullmatch(r"sha256:[0-9a-f]{64}", value) for value in hashes), requirement


@pytest.mark.parametrize("lock", ["runtime", "local", "dev"])
def test_locks_name_no_registry_and_no_file(lock: str) -> None:
    assert not re.search(r"://|--(extra-)?index-url|--find-links|^-|^\.", text_of(lock), re.MULTILINE)
