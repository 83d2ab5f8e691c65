"""`python -m tests.system`: plays a seed against a stack and prints the result.

README.md says more.
"""

from __future__ import annotations

import argparse
import asyncio
import secrets
import sys
import tempfile
from pathlib import Path

from tests.system import report
from tests.system.faults.stack import REPOSITORY
from tests.system.run import Plan, run


def main(arguments: list[str] | None = None) -> int:
    """Runs the command; returns the exit code: 1 if anything was violated."""
    parser = argparse.ArgumentParser(prog="python -m tests.system", description=__doc__)
    parser.add_argument("--seed", type=int, help="which run; a random one where left out")
    parser.add_argument("--minutes", type=float, default=1.0, help="how long the clients play")
    parser.add_argument("--operations", type=int, help="end sooner, after so many calls")
    parser.add_argument("--faults", choices=("all", "none"), default="all")
    parser.add_argument("--attach", type=Path, metavar="HOME", help="play on a stack that runs, without its faults")
    parser.add_argument("--checkout", type=Path, default=REPOSITORY, help="whose services run; it needs a .venv")
    parser.add_argument("--folder", type=Path, help="where the stack's data and logs and the history are")
    parser.add_argument("--keep", action="store_true", help="keep the stack's data")
    given = parser.parse_args(arguments)
    seed = given.seed if given.seed is not None else secrets.randbelow(1_000_000)
    folder = given.folder or Path(tempfile.mkdtemp(prefix=f"skyhigh-system-{seed}-"))
    plan = Plan(
        seed=seed,
        seconds=given.minutes * 60,
        operations=given.operations,
        with_faults=given.faults == "all" and given.attach is None,
        folder=folder,
        attach=given.attach,
        checkout=given.checkout.absolute(),
        keep_data=given.keep,
    )
    outcome = asyncio.run(run(plan))
    for line in report.lines(outcome):
        print(line)
    print(f"history: {folder / 'history.jsonl'}")
    return 0 if outcome.good else 1


if __name__ == "__main__":
    sys.exit(main())
