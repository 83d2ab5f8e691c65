"""`python -m tests.system.mutants [NAME …]`: plants bugs in a copy of the tree, and shows what catches each.

Without names all are planted, one after another. A mutant is caught by a short run of the tester on the copy's services
(`--by run`), by its test files (`--by tests`), or by the first of both that finds it (`--by any`, the default). The
exit code is 1 if a mutant is not caught.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

from tests.system import checks
from tests.system.mutants.catalogue import MUTANTS, UNREST, VERIFY, Mutant
from tests.system.mutants.planting import REPOSITORY, copy_with, python_of

SEEDS: Final = (1, 2, 3)
# The time of a run with its start, rest and end; and of a test file on a busy machine.
RUN_SECONDS: Final = 900
TESTS_SECONDS: Final = 600
# The findings in the report of a run.
_FOUND: Final = re.compile(r"^ +(\w+): \d+$", re.MULTILINE)
_VERIFY_FAILED: Final = re.compile(r"^skyhigh verify ended with 1:", re.MULTILINE)
_NO_REST: Final = "did not come to rest"
_say = partial(print, flush=True)
_FAILED_TEST: Final = re.compile(r"^FAILED (\S+)", re.MULTILINE)
# A test whose set-up failed or that timed out shows nothing about the mutant.
_NOT_RUN: Final = re.compile(r"^ERROR |Failed: Timeout", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Catch:
    """What caught a mutant, and after what time."""

    by: str
    seconds: float

    def __str__(self) -> str:
        return f"{self.by} ({self.seconds:.0f} s)"


class UndecidedError(Exception):
    """A command reached its time limit before it could find anything."""


class Runs:
    """Short runs of the tester.

    A finding that a seed also has without the bug does not count.
    """

    def __init__(self, seeds: Sequence[int], minutes: float) -> None:
        self._seeds = seeds
        self._minutes = minutes
        self._without: dict[tuple[int, bool], set[str]] = {}

    def catch(self, mutant: Mutant, copy: Path) -> Catch | None:
        """Plays seeds on the copy's services until an expected check finds something."""
        begun = time.monotonic()
        for seed in self._seeds if mutant.checks else ():
            found = self._found(copy, seed, with_faults=mutant.with_faults) & set(mutant.checks)
            found -= self._found_without(seed, with_faults=mutant.with_faults) if found else set()
            if found:
                return Catch(f"{', '.join(sorted(found))} with seed {seed}", time.monotonic() - begun)
        return None

    def _found_without(self, seed: int, *, with_faults: bool) -> set[str]:
        known = self._without.get((seed, with_faults))
        if known is None:
            known = self._without[seed, with_faults] = self._found(REPOSITORY, seed, with_faults=with_faults)
            if known:
                _say(f"seed {seed} finds {', '.join(sorted(known))} without a bug, too")
        return known

    def _found(self, checkout: Path, seed: int, *, with_faults: bool) -> set[str]:
        with tempfile.TemporaryDirectory(prefix="skyhigh-mutant-run-") as folder:
            command = [
                *(sys.executable, "-m", "tests.system"),
                *("--seed", str(seed), "--minutes", str(self._minutes)),
                *("--faults", "all" if with_faults else "none"),
                *("--checkout", str(checkout), "--folder", folder),
            ]
            return found_in(_output(command, REPOSITORY, RUN_SECONDS))


def found_in(report: str) -> set[str]:
    """Returns the checks that found something, according to the report of a run."""
    found = set(_FOUND.findall(report)) & set(checks.CHECKS)
    if _VERIFY_FAILED.search(report):
        found.add(VERIFY)
    if _NO_REST in report:
        found.add(UNREST)
    return found


def by_tests(mutant: Mutant, copy: Path) -> Catch | None:
    """Runs the mutant's test files in the copy, one after another, until one fails."""
    begun = time.monotonic()
    for name in mutant.tests:
        command = [python_of(copy), "-m", "pytest", "-q", "-n0", "-x", "-p", "no:cacheprovider", name]
        output = _output([*command, f"--timeout={TESTS_SECONDS}"], copy, TESTS_SECONDS)
        if _NOT_RUN.search(output):
            raise UndecidedError(f"{name} could not be run")
        failed = _FAILED_TEST.search(output)
        if failed:
            return Catch(failed[1].rpartition("/")[2], time.monotonic() - begun)
    return None


def _output(command: Sequence[str], folder: Path, seconds: float) -> str:
    """Returns the output of a command.

    Raises UndecidedError if it reaches the time limit, because the machine is busy.
    """
    variables = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    try:
        ended = subprocess.run(
            command, cwd=folder, env=variables, check=False, capture_output=True, text=True, timeout=seconds
        )
    except subprocess.TimeoutExpired as expired:
        raise UndecidedError(f"not ended after {seconds:.0f} s: {' '.join(command[1:4])}") from expired
    return ended.stdout + ended.stderr


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.system.mutants", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help="which mutants; all where left out")
    parser.add_argument("--by", choices=("run", "tests", "any"), default="any")
    parser.add_argument("--seeds", type=int, nargs="+", default=SEEDS, help="the seeds to play until one finds it")
    parser.add_argument("--minutes", type=float, default=0.5, help="how long the clients play a seed")
    parser.add_argument("--list", action="store_true", help="only list them")
    given = parser.parse_args(arguments)
    known = {mutant.name: mutant for mutant in MUTANTS}
    unknown = [name for name in given.names if name not in known]
    if unknown:
        parser.error(f"no mutant is called {', '.join(unknown)}; --list shows all")
    chosen = [known[name] for name in given.names] or list(MUTANTS)
    if given.list:
        for mutant in chosen:
            _say(f"{mutant.name}: {mutant.file}; {', '.join((*mutant.checks, *mutant.tests))}")
        return 0
    runs = Runs(given.seeds, given.minutes)
    missed = 0
    for mutant in chosen:
        catch = None
        verdict = "NOT CAUGHT"
        try:
            with copy_with(mutant) as copy:
                if given.by != "tests":
                    catch = runs.catch(mutant, copy)
                if catch is None and given.by != "run":
                    catch = by_tests(mutant, copy)
        except UndecidedError as undecided:
            verdict = f"UNDECIDED, {undecided}"
        missed += catch is None
        _say(f"{mutant.name}: {verdict if catch is None else f'caught by {catch}'}")
    _say(f"{len(chosen) - missed} of {len(chosen)} mutants caught")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
