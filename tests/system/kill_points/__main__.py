"""`python -m tests.system.kill_points [SCENARIO…]`: kills a process at every step, and prints the results."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import random
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

# isort: split
# Before any service, which reads the variable when it is imported.
import tests.patience  # noqa: F401

# isort: split

from services import telemetry
from tests.system.kill_points.run import play
from tests.system.kill_points.scenarios import SCENARIOS, Scenario
from tests.system.kill_points.steps import Point


def main() -> int:
    """Returns 1 if something is violated."""
    parser = argparse.ArgumentParser(prog="python -m tests.system.kill_points", description=__doc__)
    parser.add_argument("scenarios", nargs="*", metavar="SCENARIO", help=", ".join(SCENARIOS))
    parser.add_argument("--lanes", type=int, default=3, help="how many scenarios are played side by side")
    parser.add_argument("--sample", type=int, default=0, help="so many points of each scenario, not all")
    parser.add_argument("--only", default="", help="points whose text contains this")
    parser.add_argument("--seed", type=int, default=0, help="chooses the sample")
    parser.add_argument("--folder", type=Path, help="where data and logs stay; without it they are removed")
    arguments = parser.parse_args()
    if unknown := set(arguments.scenarios) - set(SCENARIOS):
        parser.error(f"no scenario: {', '.join(sorted(unknown))}")
    telemetry.configure_logging("kill-points", "error")
    chosen = random.Random(arguments.seed)

    def choose(_: Scenario, points: Sequence[Point]) -> Sequence[Point]:
        wanted = [point for point in points if arguments.only in str(point)]
        return chosen.sample(wanted, min(arguments.sample, len(wanted))) if arguments.sample else wanted

    began = time.monotonic()
    with contextlib.ExitStack() as stack:
        folder = arguments.folder or Path(
            stack.enter_context(tempfile.TemporaryDirectory(prefix="skyhigh-kill-points-", ignore_cleanup_errors=True))
        )
        results = asyncio.run(
            play(
                folder,
                arguments.scenarios or SCENARIOS,
                lanes=arguments.lanes,
                choose=choose,
                tell=lambda line: print(f"{time.monotonic() - began:6.1f} {line}", flush=True),  # noqa: T201
            )
        )
    print(f"\n{results.table()}\n")  # noqa: T201
    print("\n".join(results.wrong) or "Nothing is violated.")  # noqa: T201
    return 1 if results.wrong else 0


if __name__ == "__main__":
    sys.exit(main())
